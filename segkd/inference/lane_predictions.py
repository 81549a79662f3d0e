"""The lanes of an evaluation as files for the official programs."""

from pathlib import Path
from typing import Any

from segkd.data.lane_base import LaneDataset
from segkd.data.writing import write_image
from segkd.errors import ConfigError
from segkd.inference.lane_decode import Found, Lanes
from segkd.inference.lane_files import (
    tusimple_item,
    write_curvelanes,
    write_lines,
    write_tusimple,
)
from segkd.runtime import Runtime
from segkd.texts import target_below

TUSIMPLE_FILE = "predictions.json"


class LanePredictions:
    """Writes predicted lanes: call it with index and lanes of each image, then ``finish``.

    CULane and LLAMAS get ``.lines.txt`` files, CurveLanes ``.lines.json``, TuSimple
    ``predictions.json``, BDD100K PNG masks of 0 and 255.

    Args:
        folder: of the files, which are named like the images of the set.
        dataset: determines the kind of files.
    """

    def __init__(self, folder: Path, dataset: LaneDataset) -> None:
        self.folder, self.dataset = Path(folder), dataset
        self._items: dict[int, dict[str, Any]] = {}

    def __call__(self, index: int, found: Found) -> None:
        entry = self.dataset.prediction_entry(index)
        if not isinstance(found, Lanes):
            write_image(target_below(self.folder, entry.with_suffix(".png")), 255 * found)
        elif self.dataset.metric == "tusimple":
            self._items[index] = tusimple_item(entry.as_posix(), found)
        elif self.dataset.metric == "curvelanes":
            write_curvelanes(self.folder, entry, found.found)
        else:
            write_lines(self.folder, entry, found.found)

    def finish(self, runtime: Runtime) -> None:
        """Writes TuSimple's file for all processes; must be called by all of them."""
        if self.dataset.metric != "tusimple":
            return
        joined: dict[int, dict[str, Any]] = {}
        for items in runtime.gather_objects(self._items):
            joined |= items
        if runtime.is_main:
            ordered = [joined[index] for index in sorted(joined)]
            write_tusimple(self.folder / TUSIMPLE_FILE, ordered)


def require_apart(folder: Path, dataset: LaneDataset) -> None:
    """Refuses the folder of the set itself, where CULane's annotations have the same names.

    Raises:
        ConfigError: an image of the set is where its prediction would be.
    """
    if dataset.metric == "tusimple" or not len(dataset):  # one file of a name of its own
        return
    for index in (0, len(dataset) - 1):
        image = Path(folder) / dataset.entry(index)
        if image.is_file():
            raise ConfigError(
                f"predictions: {folder} is the folder of '{dataset.name}' itself (it has {image}), "
                "whose annotations predictions would replace. Give another folder"
            )
