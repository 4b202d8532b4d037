"""Targets: what a method predicts for the patches or squares of a picture."""
