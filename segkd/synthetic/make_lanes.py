"""Writes synthetic road scenes as a CULane tree.

Every file is written atomically: an image after its annotation, the lists last. Existing images
are kept, so that an interrupted run can be continued.
"""

import json
from pathlib import Path

import numpy as np

from segkd.data.check import Progress
from segkd.data.lane_masks import painted, present
from segkd.data.writing import write_image
from segkd.errors import DataError
from segkd.files import write_text
from segkd.metrics.culane_text import lines_file
from segkd.synthetic.lanes import Lanes, LanesConfig
from segkd.synthetic.roads.categories import CATEGORIES
from segkd.synthetic.roads.plan import SLOTS

CULANE_SIZE = (590, 1640)
_SPLITS = ("train", "val", "test")
_QUALITY = 95  # of JPEG
_FACTS = "scenes.json"  # size, seed and lane width of a folder's scenes


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
    _claim(out, config)
    total, done = sum(map(len, splits)), 0
    for dataset in splits:
        entries = []
        for index in range(len(dataset)):
            entries.append(_write_scene(dataset, index, out))
            done += 1
            if progress is not None:
                progress(done, total)
        _write_lists(dataset, entries, out)


def masks_folder(config: LanesConfig) -> str:
    """CULane's folder name for masks with lanes this wide."""
    return f"laneseg_label_w{config.lane_width}"


def _write_scene(dataset: Lanes, index: int, out: Path) -> str:
    """Writes one scene unless it exists. Returns its line of ``train_gt.txt``."""
    config, entry = dataset.config, dataset.entry(index)
    mask = Path(masks_folder(config), entry.with_suffix(".png"))
    lanes = dataset.slots(index)
    label = painted(lanes, config.size, config.lane_width, curved=False)
    if not (out / entry).is_file():
        text = "".join(_line(lane) for lane in lanes if lane is not None)
        write_text(out / lines_file(str(entry)), text)
        write_image(out / mask, label)
        write_image(out / entry, dataset.read(index).image, quality=_QUALITY)
    flags = " ".join(str(int(flag)) for flag in present(label, SLOTS))
    return f"/{entry.as_posix()} /{mask.as_posix()} {flags}"


def _line(lane: np.ndarray) -> str:
    return " ".join(f"{x:.3f} {y:.3f}" for x, y in lane.tolist()) + " \n"


def _write_lists(dataset: Lanes, entries: list[str], out: Path) -> None:
    """``train.txt`` and ``train_gt.txt``, or ``test.txt`` and a list per category."""
    folder, split = out / "list", dataset.split
    images = [entry.partition(" ")[0] for entry in entries]
    _write_lines(folder / f"{split}.txt", images)
    if split != "test":
        _write_lines(folder / f"{split}_gt.txt", entries)
        return
    for number, name in enumerate(CATEGORIES):
        path = folder / "test_split" / f"test{number}_{name}.txt"
        if dataset.categories[name]:
            _write_lines(path, [images[index] for index in dataset.categories[name]])
        else:
            path.unlink(missing_ok=True)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_text(path, "".join(line + "\n" for line in lines))


def _claim(out: Path, config: LanesConfig) -> None:
    """Records which scenes a folder holds, so that others are never added to them."""
    facts = {"size": list(config.size), "seed": config.seed, "lane_width": config.lane_width}
    if config.photographs is not None:
        facts["photographs"] = config.photographs.model_dump(mode="json")
    path = out / _FACTS
    if path.is_file():
        if json.loads(path.read_text()) != facts:
            raise DataError(
                f"{out} holds scenes of another size, seed or lane width ({path.read_text()}): "
                f"choose another --out, or remove the folder"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: choose another --out")
    write_text(path, json.dumps(facts))
