"""Procedural road scenes as a driver sees them, and their exact lanes: geometry from a seed."""
