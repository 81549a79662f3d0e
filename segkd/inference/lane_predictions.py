"""What an evaluation found, in the files that the official programs read."""

from pathlib import Path

import numpy as np

from segkd.data.lane_base import LaneDataset
from segkd.inference.lane_decode import Lanes
from segkd.inference.lane_files import tusimple_item, write_lines, write_tusimple
from segkd.runtime import Runtime
from segkd.texts import target_below

TUSIMPLE_FILE = "predictions.json"


class LanePredictions:
    """Writes what is found: call it with index and found, then ``finish``.

    CULane gets ``.lines.txt`` files, TuSimple ``predictions.json``, BDD100K PNG masks of 0 and 255.

    Args:
        folder: of the files, named like the images of the set.
        dataset: decides the kind of files.
    """

    def __init__(self, folder: Path, dataset: LaneDataset) -> None:
        self.folder, self.dataset = Path(folder), dataset
        self._items: dict[int, dict] = {}

    def __call__(self, index: int, found: Lanes | np.ndarray) -> None:
        entry = self.dataset.entry(index)
        if self.dataset.metric == "tusimple":
            self._items[index] = tusimple_item(entry.as_posix(), found)
        elif self.dataset.metric == "culane":
            write_lines(self.folder, entry, found.found)
        else:
            from segkd.inference.prediction_files import write_picture

            write_picture(target_below(self.folder, entry.with_suffix(".png")), 255 * found)

    def finish(self, runtime: Runtime) -> None:
        """Joins what goes into one file over all processes."""
        if self.dataset.metric != "tusimple":
            return
        joined: dict[int, dict] = {}
        for items in runtime.gather_objects(self._items):
            joined |= items
        if runtime.is_main:
            ordered = [joined[index] for index in sorted(joined)]
            write_tusimple(self.folder / TUSIMPLE_FILE, ordered)
