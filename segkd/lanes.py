"""Lane detection in Python: ``segkd.lanes.LaneDetector(run)(image)``."""

from segkd.inference.lane_detector import Lane, LaneDetector

__all__ = ["Lane", "LaneDetector"]
