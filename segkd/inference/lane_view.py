"""Which part of a camera's images a lane student sees, and at which size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segkd.errors import DataError

Size = tuple[int, int]  # height, width

TUSIMPLE_ROWS = np.arange(160, 720, 10) / 720  # the benchmark's h_samples over the height
SIZES: dict[str, Size] = {  # of the images of each benchmark
    "culane": (590, 1640),
    "tusimple": (720, 1280),
    "bdd100k": (720, 1280),
    "curvelanes": (1440, 2560),
    "llamas": (717, 1276),
}


@dataclass(frozen=True)
class LaneView:
    """The part of images that a student sees.

    Attributes:
        camera: (H, W) of the images.
        top: rows above the part that looks like the training images.
        cut: rows at the top of that part which are cut off as in training.
        trained: (H, W) of the training images.
    """

    camera: Size
    top: int
    cut: int
    trained: Size = field(compare=False)

    @property
    def road(self) -> Size:
        """(H, W) of the part that looks like the training images."""
        return self.camera[0] - self.top, self.camera[1]

    @property
    def seen(self) -> Size:
        """(H, W) of the part that is resized for the network."""
        return self.road[0] - self.cut, self.camera[1]

    def rows(self, metric: str) -> np.ndarray | None:
        """y of TuSimple's rows in ``road``; None: the rows of other sets follow from its size."""
        return TUSIMPLE_ROWS * self.road[0] if metric == "tusimple" else None

    def points_in(self, points: np.ndarray, other: "LaneView") -> np.ndarray:
        """Points (…, 2) as x, y in images of this view, in those of another view of the student.

        They are scaled as the part of both that is seen, pixel centres being whole numbers.
        """
        if self == other:
            return points
        before, after = np.array([0, self.top + self.cut]), np.array([0, other.top + other.cut])
        scale = np.array(other.seen[::-1]) / np.array(self.seen[::-1])
        return (points - before + 0.5) * scale - 0.5 + after


def trained_size(facts: Mapping[str, Any]) -> Size:
    """(H, W) of the training images from the lane facts of a student's file."""
    height, width = facts["size"] or SIZES[facts["metric"]]
    return height, width


def lane_view(facts: Mapping[str, Any], camera: Size, top: int | None = None) -> LaneView:
    """The view of a student in images of a size.

    Args:
        facts: the entry ``lanes`` of the student's file.
        camera: (H, W) of the images.
        top: see ``LaneView``; None: as many rows as leave the aspect ratio of the training images,
            squeezed by ``data.squeeze`` at most.
    """
    trained = trained_size(facts)
    if top is None:
        tallest = camera[1] * trained[0] / trained[1] * facts.get("squeeze", 1.0)
        top = max(0, camera[0] - max(1, round(tallest)))
    cut = round(facts["cut_top"] * (camera[0] - top) / trained[0])
    return LaneView(camera, top, cut, trained)


def note_on_size(facts: Mapping[str, Any], camera: Size, cut: int, resize: Size | None) -> str:
    """What to know before the images of another set are scored; empty if they look as in training.

    Args:
        facts: the entry ``lanes`` of the student's file, and ``resize`` of its images or None.
        camera: (H, W) of the stored images.
        cut: rows that are cut at their top.
        resize: (H, W) to which the rest is resized; None: it is not.

    Raises:
        DataError: the cut leaves no row.
    """
    if cut >= camera[0]:
        raise DataError(
            f"data.cut_top={cut} leaves nothing of images of {camera[0]}x{camera[1]}: set it to "
            f"less than {camera[0]}"
        )
    view, (height, width) = lane_view(facts, camera), trained_size(facts)
    wanted = tuple(facts.get("resize") or (height - facts["cut_top"], width))
    shown = tuple(resize or (camera[0] - cut, camera[1]))
    if shown == wanted:
        return ""
    return (
        f"it sees {shown[0]}x{shown[1]} pixels of each image, and was trained on "
        f"{wanted[0]}x{wanted[1]}. As `segkd lane` shows them: data.cut_top={view.top + view.cut} "
        f"data.resize=[{wanted[0]},{wanted[1]}]"
    )
