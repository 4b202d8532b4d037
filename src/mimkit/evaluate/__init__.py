"""Evaluation: a trained model or a baseline and pictures with labels enter, accuracies leave."""
