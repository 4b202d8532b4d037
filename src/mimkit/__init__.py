"""mimkit: learn visual representations from unlabeled pictures by masked image modeling."""

__version__ = "0.2.0.dev0"
