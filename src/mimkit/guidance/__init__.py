"""Guidance: what a masker asks to see of a model enters, the mask of each batch leaves."""
