"""Writes synthetic road scenes as a CULane tree.

Every file is written atomically: an image after its annotation, the lists last. Existing images
are kept, so that an interrupted run can be continued.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkd.data.check import Progress
from segkd.data.lane_masks import painted, present
from segkd.data.lane_writing import list_line
from segkd.data.reading import read_ids
from segkd.data.writing import write_image
from segkd.files import write_text
from segkd.metrics.culane_text import lines_file
from segkd.synthetic.claim import claim
from segkd.synthetic.lanes import Lanes, LanesConfig
from segkd.synthetic.roads.categories import CATEGORIES
from segkd.synthetic.roads.plan import SLOTS

CULANE_SIZE = (590, 1640)
_SPLITS = ("train", "val", "test")
_QUALITY = 95  # of JPEG


def make_lanes(config: LanesConfig, out: Path, *, progress: Progress | None = None) -> None:
    """Writes all splits so that ``data.name=culane`` reads them.

    Args:
        config: size, seed, lane width and numbers of images; ``cut_top`` is ignored.
        out: becomes ``data.root``.
        progress: called after each image with (done, total).

    Raises:
        DataError: ``out`` already holds something else.
    """
    config = config.model_copy(update={"cut_top": 0})
    splits = [Lanes(config, split) for split in _SPLITS]
    claim(out, splits[0].facts)
    total, done = sum(map(len, splits)), 0
    for dataset in splits:
        lines = []
        for index in range(len(dataset)):
            lines.append(_write_scene(dataset, index, out))
            done += 1
            if progress is not None:
                progress(done, total)
        _write_lists(dataset, lines, out)


def masks_folder(config: LanesConfig) -> str:
    """CULane's folder name for masks with lanes this wide."""
    return f"laneseg_label_w{config.lane_width}"


def _write_scene(dataset: Lanes, index: int, out: Path) -> str:
    """Writes one scene unless it exists. Returns its line of ``train_gt.txt``."""
    config, entry, masks = dataset.config, dataset.entry(index), Path(masks_folder(dataset.config))
    mask, lane_file = out / masks / entry.with_suffix(".png"), out / lines_file(str(entry))
    if all(path.is_file() for path in (out / entry, mask, lane_file)):
        # What is there counts: a photograph may have become another one since.
        label = read_ids(mask)
    else:
        lanes = dataset.slots(index)
        label = painted(lanes, config.size, config.lane_width, curved=False)
        write_text(lane_file, "".join(_line(lane) for lane in lanes if lane is not None))
        write_image(mask, label)
        write_image(out / entry, dataset.read(index).image, quality=_QUALITY)
    return list_line(entry.as_posix(), masks, present(label, SLOTS))


def _line(lane: np.ndarray) -> str:
    return " ".join(f"{x:.3f} {y:.3f}" for x, y in lane.tolist()) + " \n"


def _write_lists(dataset: Lanes, lines: Sequence[str], out: Path) -> None:
    """``train.txt`` and ``train_gt.txt``, or ``test.txt`` and a list per category."""
    folder, split = out / "list", dataset.split
    images = [f"/{dataset.entry(index).as_posix()}\n" for index in range(len(dataset))]
    write_text(folder / f"{split}.txt", "".join(images))
    if split != "test":
        write_text(folder / f"{split}_gt.txt", "".join(lines))
        return
    for number, name in enumerate(CATEGORIES):
        path = folder / "test_split" / f"test{number}_{name}.txt"
        if dataset.categories[name]:
            write_text(path, "".join(images[index] for index in dataset.categories[name]))
        else:
            path.unlink(missing_ok=True)
