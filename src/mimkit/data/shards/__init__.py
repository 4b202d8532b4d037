"""Shards: pictures in tar files enter, a set in which each picture is read by its place leaves."""
