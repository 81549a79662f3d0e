"""Pictures: overlays of label maps, comparison sheets, plots of results."""
