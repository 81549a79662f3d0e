"""Scores of predictions, and the cost of networks."""
