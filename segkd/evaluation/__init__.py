"""Scoring networks on datasets, and tables of what came out."""
