"""Annotations of lanes in the formats of labelme, VIA, TuSimple and CULane, read and written."""
