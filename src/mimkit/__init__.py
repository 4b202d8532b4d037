"""mimkit: learn visual representations from unlabeled pictures by masked image modeling."""

__version__ = "0.1.0"
