"""Lane detection in Python: ``segkd.lanes.LaneDetector(run)(image)``."""

from segkd.inference.bird import BirdView, RoadFacts
from segkd.inference.lane_detector import LaneDetector
from segkd.inference.lane_track import LaneTracker
from segkd.inference.lane_types import Lane

__all__ = ["BirdView", "Lane", "LaneDetector", "LaneTracker", "RoadFacts"]
