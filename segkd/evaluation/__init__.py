"""Scores of networks on datasets and of prediction files, and tables of results."""
