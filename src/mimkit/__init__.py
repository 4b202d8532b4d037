"""mimkit: learn visual representations from unlabelled pictures by masked image modelling."""

__version__ = "0.2.0.dev0"
