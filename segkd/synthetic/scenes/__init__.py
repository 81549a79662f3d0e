"""Procedural street scenes: geometry in metres from a seed, painted with its label map."""
