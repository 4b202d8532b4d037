"""The Python interface: recipes, run folders, targets and pictures enter; runs, models and results leave."""
