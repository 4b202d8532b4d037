"""Training: a config and a run folder enter, a trained model leaves."""
