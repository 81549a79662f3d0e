"""Writes datasets to disk: synthetic streets as a Cityscapes tree, CULane's lists and masks, and
decoded caches.

Every file is written atomically, so an interrupted run does no harm.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkd.data.base import DataConfig, Dataset
from segkd.data.check import Progress
from segkd.data.cityscapes import CLASSES, TO_LABEL_ID, Cityscapes
from segkd.data.culane import MASK_WIDTH, MASKS, CULane
from segkd.data.culane_lists import splits_of
from segkd.data.decoded_files import is_current, write_pixels
from segkd.data.lane_lists import held_out
from segkd.data.lane_masks import painted
from segkd.data.lane_writing import list_line
from segkd.data.packing import pack
from segkd.data.paired import PairedDataset
from segkd.data.reading import read_ids
from segkd.data.splits import SHARE
from segkd.data.writing import write_image
from segkd.errors import DataError
from segkd.files import make_folder, write_text
from segkd.synthetic.claim import claim
from segkd.synthetic.streets import Streets

_log = logging.getLogger(__name__)

_CITY = "streets"


def make_streets(
    config: DataConfig,
    out: Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    progress: Progress | None = None,
) -> None:
    """Writes synthetic street scenes so that ``data.name=cityscapes`` reads them.

    Args:
        config: size, seed, weather and numbers of images of ``streets``.
        out: becomes ``data.root``.
        splits: of ``streets``, all of whose scenes are written.
        progress: called after each image with (done, total).

    Raises:
        DataError: a split is unknown, or ``out`` already holds something else; nothing is written.
    """
    datasets = [Streets(config, split) for split in splits]
    for dataset in datasets:
        _require_room_for(dataset, out, dataset.split)
    claim(out, datasets[0].facts)
    total, done = sum(map(len, datasets)), 0
    for dataset in datasets:

        def advance(written: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + written, total)

        write_cityscapes(dataset, out, dataset.split, progress=advance)
        done += len(dataset)


def write_cityscapes(
    dataset: Dataset,
    out: Path,
    split: str,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes a dataset of the 19 classes as one split of a Cityscapes tree, losslessly.

    Args:
        dataset: its samples need labels.
        out: becomes ``data.root``.
        split: name of the split.
        progress: called after each image with (done, total).

    Raises:
        DataError: other classes, or ``out`` already holds other cities or further images.
    """
    if tuple(dataset.classes) != CLASSES:
        raise DataError(f"only datasets with the {len(CLASSES)} classes of Cityscapes fit its tree")
    _require_room_for(dataset, out, split)
    for index in range(len(dataset)):
        sample, (image, label) = dataset.read(index), _files(out, split, index)
        write_image(image, sample.image)
        write_image(label, TO_LABEL_ID[sample.label])
        if progress is not None:
            progress(index + 1, len(dataset))


def _files(out: Path, split: str, index: int) -> tuple[Path, Path]:
    """Image and label of a scene."""
    stem = f"{_CITY}_{index:06d}_000019"
    return (
        out / "leftImg8bit" / split / _CITY / f"{stem}_leftImg8bit.png",
        out / "gtFine" / split / _CITY / f"{stem}_gtFine_labelIds.png",
    )


def _require_room_for(dataset: Dataset, out: Path, split: str) -> None:
    """Refuses a split that holds other images than those of a dataset, which would be mixed in."""
    own = {path for index in range(len(dataset)) for path in _files(out, split, index)}
    for folder in (out / kind / split for kind in ("leftImg8bit", "gtFine")):
        cities = [path for path in folder.glob("*") if path.name != _CITY]
        if cities:
            raise DataError(f"{folder} already holds {cities[0].name}: choose another --out")
        further = sorted(path for path in folder.glob(f"{_CITY}/*.png") if path not in own)
        if further:
            raise DataError(
                f"{folder / _CITY} already holds {len(further)} more than these {len(dataset)} "
                f"images, e.g. {further[0].name}: choose another --out, or remove them"
            )


def make_culane(
    config: DataConfig,
    out: Path | None = None,
    *,
    val_share: float | None = None,
    masks: bool = False,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Writes ``train_gt.txt`` and ``val_gt.txt`` for a CULane tree, by default one without lists.

    Lists elsewhere than those of the tree keep its splits, its ``test`` as well; images that are in
    none are left out. Without lists whole clips (folders) go to one list, chosen by a hash of their
    names, so that no drive is in both and added clips move no others. Of a single clip the last
    frames are for validation.

    Args:
        config: of CULane; nothing is written to ``root`` unless it is the target.
        out: gets ``list/`` and masks; default: ``data.lists``, else the root.
        val_share: share of the clips for validation, of a tree without lists; default: a fifth.
        masks: paint ``laneseg_label_w16`` too, 16 px wide irrespective of ``data.lane_width``;
            existing masks are kept.
        progress: called after each image with (done, total).

    Returns:
        Images per split.

    Raises:
        DataError: lists exist already, ``val_share`` for a tree that has its splits, there are
            fewer than two images, or annotations are missing or broken.
    """
    dataset = CULane(config, "all")
    target = out / "list" if out else dataset.lists_folder
    split_of = _splits(dataset, val_share)
    files = {split: target / f"{split}_gt.txt" for split in dict.fromkeys(split_of.values())}
    for path in files.values():
        if path.exists():
            raise DataError(f"{path} exists already: remove it, or choose another --out FOLDER")
    if len(dataset) == 1:
        raise DataError(
            f"{dataset.root}: has one image, {dataset.listed[0].image}, which cannot be both for "
            "training and for validation. Add images"
        )
    _require_writable(target)
    lines: dict[str, list[str]] = {split: [] for split in files}
    for index, listed in enumerate(dataset.listed):
        if listed.image in split_of:
            entry = _entry(dataset, index, target.parent if masks else None)
            lines[split_of[listed.image]].append(entry)
        if progress is not None:
            progress(index + 1, len(dataset))
    for split, path in files.items():
        write_text(path, "".join(lines[split]))
    return {split: len(entries) for split, entries in lines.items()}


def _splits(dataset: CULane, val_share: float | None) -> dict[str, str]:
    """The split of each image: of the tree's own lists, else ``train`` and ``val``."""
    images = [listed.image for listed in dataset.listed]
    lists = dataset.root / "list"
    there = splits_of(lists)
    known = {image: there[image][0] for image in images if image in there}
    left_out = [image for image in images if known and image not in known]
    if left_out:
        _log.warning(
            "left out, in no list of %s: %d of %d images, e.g. %s",
            *(lists, len(left_out), len(images), left_out[0]),
        )
    if known and val_share is not None:
        raise DataError(
            f"{lists} has lists, whose splits are kept, so that a share for validation would "
            "change nothing: leave it out, or remove these lists"
        )
    if known:
        return known
    for_validation = held_out(images, SHARE if val_share is None else val_share)
    return {image: "val" if image in for_validation else "train" for image in images}


def _entry(dataset: CULane, index: int, masks: Path | None) -> str:
    """An image's line in a list; its mask is painted below ``masks``, unless there is one."""
    slots, entry = dataset.slots(index), Path(dataset.listed[index].image)
    flags = [lane is not None for lane in slots]
    mask = None if masks is None else masks / MASKS / entry.with_suffix(".png")
    if mask is not None and not mask.exists():
        left = dataset.config.left_of_car
        write_image(mask, painted(slots, dataset.image_size(index), MASK_WIDTH, left=left))
    elif mask is not None:
        _require_slots(mask, flags)
    return list_line(entry.as_posix(), MASKS, flags)


def _require_slots(mask: Path, flags: Sequence[bool]) -> None:
    """Raises DataError if a mask that is there has lanes in other slots."""
    ids = {*np.unique(read_ids(mask)).tolist()} - {0}
    if further := ids - {slot for slot, flag in enumerate(flags, 1) if flag}:
        raise DataError(
            f"{mask}: has lane {min(further)}, which is not in this list: it is of other slots. "
            f"Remove {MASKS} there, or choose another --out FOLDER"
        )


def _require_writable(folder: Path) -> None:
    """Makes a folder; a read-only one is refused even to the superuser."""
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        if not above.stat().st_mode & 0o222:
            raise PermissionError(None, f"{above} is read-only")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write: {error.strerror or error}. Choose another place with "
            f"--out FOLDER; data.lists=FOLDER/list then reads the lists from there."
        ) from None


def make_cache(
    dataset: Cityscapes, folder: Path | None = None, *, progress: Progress | None = None
) -> Path:
    """Writes decoded images and labels of train ids, for ``data.decoded``.

    Existing files are kept, unless their image or mask has changed since, or they are damaged, of
    an earlier version, or plain where they could be packed (see ``data.decoded_files``).

    Args:
        dataset: the split to decode.
        folder: default: the dataset's ``data.decoded``, else ``<root>/decoded``.
        progress: called after each image with (done, total).

    Returns:
        The folder.

    Raises:
        DataError: a file cannot be read, or there is not enough disk space.
    """
    folder = folder or dataset.cache_folder() or dataset.root / "decoded"
    make_folder(folder)
    missing = [index for index in range(len(dataset)) if not _cached(dataset, index, folder)]
    for done, index in enumerate(missing):
        sample = PairedDataset.read(dataset, index)  # from the images, whatever data.decoded says
        arrays = [array for array in (sample.image, sample.label) if array is not None]
        if done == 0:
            _require_room(folder, len(missing) * sum(pack(array)[0].size for array in arrays))
        for (path, source), array in zip(_decoded(dataset, index, folder), arrays, strict=False):
            write_pixels(path, array, source)
        if progress is not None:
            progress(len(dataset) - len(missing) + done + 1, len(dataset))
    return folder


def _decoded(dataset: Cityscapes, index: int, folder: Path) -> list[tuple[Path, Path]]:
    """Where image and mask are decoded to, each with its source."""
    pairs = zip(dataset.cache_files(index, folder), dataset.pairs[index], strict=True)
    return [(path, source) for path, source in pairs if path is not None and source is not None]


def _cached(dataset: Cityscapes, index: int, folder: Path) -> bool:
    return all(is_current(*pair) for pair in _decoded(dataset, index, folder))


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. Free "
            f"space, or set data.decoded to a folder on another disk."
        )
