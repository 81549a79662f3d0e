"""What a detector finds in an image."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Lane:
    """One lane of an image.

    Attributes:
        slot: its identity, from left to right; class id minus 1.
        name: of the slot.
        points: (n, 2) float64, x and y in pixels of the image, from bottom to top.
        score: existence probability in [0, 1].
        track: number of the lane in a video, from 1, or None; set by ``LaneTracker``.
        seen: False for a tracked lane that is held in place, not seen in this frame.
        age: seconds from its first to its latest sight in a video.
    """

    slot: int
    name: str
    points: np.ndarray
    score: float
    track: int | None = None
    seen: bool = True
    age: float = 0.0


@dataclass(frozen=True)
class Detection:
    """All results for an image.

    Attributes:
        lanes: the detected lanes.
        pixels: (H, W) uint8, 1 on lanes, of students for lanes without identity (BDD100K), or None.
        attention: (h, w) float32 in [0, 1] by requested stage.
        top: rows at the top of the image that the network did not see.
    """

    lanes: list[Lane]
    pixels: np.ndarray | None = None
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    top: int = 0
