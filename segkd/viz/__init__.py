"""Drawing: overlays of label maps and lanes, comparison sheets, legends."""
