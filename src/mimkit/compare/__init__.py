"""Comparisons: recipes and a budget enter; runs of all with every seed, and one table, leave."""
