"""Converts annotations of lanes between labelme, VIA, TuSimple and CULane."""

import os
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from segkd.data.check import Progress
from segkd.data.lane_exchange.annotated import Annotated, Labels, Left
from segkd.data.lane_exchange.culane_tree import is_culane, read_culane, write_culane
from segkd.data.lane_exchange.labelme import (
    is_labelme,
    json_files,
    read_labelme,
    write_labelme,
)
from segkd.data.lane_exchange.tusimple_files import (
    Rows,
    label_files,
    read_tusimple,
    write_tusimple_files,
)
from segkd.data.lane_exchange.unfinished import begin, finish, require_finished, require_free
from segkd.data.lane_exchange.via import is_via, read_via, write_via
from segkd.data.lane_lists import STANDARD, held_out
from segkd.errors import DataError
from segkd.files import make_folder
from segkd.texts import target_below

Format = Literal["culane", "tusimple", "labelme", "via"]
Images = Literal["link", "copy", "none"]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        source: format of the source.
        images: number of images by split.
        lanes: number of lanes.
        slots: of a CULane tree, for ``data.num_lanes``; 0 for other formats.
        missing: number of images that do not exist.
        left: what could not be carried over.
    """

    source: Format
    images: dict[str, int]
    lanes: int
    slots: int = 0
    missing: int = 0
    left: Left = field(default_factory=Left)


@dataclass(frozen=True)
class Conversion:
    """How to convert.

    Attributes:
        labels: of lines that are lanes, in labelme and VIA, see ``Labels``; empty: all lines.
        attribute: of VIA's regions, that is the label; empty: the usual ones.
        val_share: share of validation, where the source has no splits.
        rows: of TuSimple files, see ``write_tusimple_files``.
        images: hard links (copies on another disk), copies, or annotations alone.
    """

    labels: tuple[str, ...] = ()
    attribute: str = ""
    val_share: float = 0.2
    rows: Rows = "benchmark"
    images: Images = "link"


def convert(
    source: Path,
    out: Path,
    to: Format,
    *,
    given: Format | None = None,
    how: Conversion | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Writes the annotations of a set in another format, with lists of its splits.

    Args:
        source: root of a CULane or TuSimple set, folder of labelme files, or a file of VIA.
        out: an empty or new folder, or one in which the same conversion was stopped.
        to: format to write.
        given: format of the source; None: found by its files.
        how: options.
        progress: called after each image with (done, total).

    Raises:
        DataError: the source is none of these or malformed, it has no line of a label, or ``out``
            holds files already, or another conversion that was stopped, or lies in the source.
    """
    how, left = how or Conversion(), Left()
    require_finished(source)
    kind = given or found_format(source)
    require_free(out, source, to, kind, how)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        # A set without lists is all that lies below its root: it would grow by what is written.
        raise DataError(f"{out}: lies in the source {source}. Give a folder outside of it")
    images = with_splits(_read(kind, source, left, how), how.val_share)
    _require_different(images)
    begin(out, source, to, kind, how)
    missing = _carry_images(images, out, how.images, progress)
    slots = 0
    if to == "culane":
        slots = write_culane(out, images, left)
    elif to == "tusimple":
        write_tusimple_files(out, images, left, how.rows)
    elif to == "labelme":
        write_labelme(out, images)
    else:
        write_via(out, images)
    finish(out)
    counts = Counter(one.split for one in images)
    lanes = sum(len(one.lines) for one in images)
    return Converted(kind, dict(sorted(counts.items())), lanes, slots, missing, left)


def found_format(source: Path) -> Format:
    """The format of a source by its files. Raises DataError if it is none."""
    if source.is_file() and is_via(source):
        return "via"
    if source.is_dir():
        if is_culane(source):
            return "culane"
        if label_files(source):
            return "tusimple"
        if any(map(is_labelme, json_files(source))):
            return "labelme"
        if any(map(is_via, source.glob("*.json"))):
            return "via"
    what = "is not" if source.exists() else "does not exist; expected"
    raise DataError(
        f"{source}: {what} one of: a CULane tree (list/*.txt or .lines.txt files), TuSimple's "
        "label files (*.json, a JSON object per line), a folder of labelme's JSON files, or a JSON "
        "file of VIA"
    )


def with_splits(images: Sequence[Annotated], val_share: float) -> list[Annotated]:
    """Images with splits: their own; those without one go to train or val, by whole folders.

    The one name that all have, like ``labels`` of a file ``labels.json``, is no split.
    """
    names = {one.split for one in images}
    if len(names) == 1 and names.isdisjoint(STANDARD):
        images = [replace(one, split="") for one in images]
    unknown = [one.entry for one in images if not one.split]
    held = held_out(unknown, val_share) if unknown else set()
    return [
        one if one.split else replace(one, split="val" if one.entry in held else "train")
        for one in images
    ]


def _read(kind: Format, source: Path, left: Left, how: Conversion) -> list[Annotated]:
    if kind in ("culane", "tusimple") and (how.labels or how.attribute):
        raise DataError(f"--labels and --attribute are for labelme and VIA; {source} is {kind}")
    if kind == "culane":
        return read_culane(source, left)
    if kind == "tusimple":
        return read_tusimple(source, left)
    labels = Labels(how.labels)
    if kind == "labelme":
        if how.attribute:
            raise DataError(
                f"--attribute is for VIA; {source} is labelme, which has --labels alone"
            )
        images = read_labelme(source, left, labels)
    else:
        images = read_via(_via_file(source), left, labels, how.attribute)
    labels.require_seen(source)
    return images


def _via_file(source: Path) -> Path:
    if source.is_file():
        return source
    files = [path for path in sorted(source.glob("*.json")) if is_via(path)]
    if len(files) != 1:
        raise DataError(f"{source}: has {len(files)} files of VIA. Name the one to convert")
    return files[0]


def _require_different(images: Collection[Annotated]) -> None:
    """Raises DataError if two images have one name without its ending, or are one image."""
    seen: dict[str, str] = {}
    for one in images:
        stem = str(Path(one.entry).with_suffix(""))
        if seen.get(stem) == one.entry:
            raise DataError(
                f"{one.entry} is annotated twice, in two files or entries of the source. Remove "
                "one of them, e.g. a copy, or a file of predictions beside the labels"
            )
        if stem in seen:
            raise DataError(
                f"{one.entry} and {seen[stem]} would have one annotation file. Rename one of them"
            )
        seen[stem] = one.entry


def _carry_images(
    images: Sequence[Annotated], out: Path, way: Images, progress: Progress | None
) -> int:
    """Links or copies the images; returns how many do not exist."""
    missing = 0
    for number, one in enumerate(images, 1):
        target = target_below(out, one.entry)
        if not one.image.is_file():
            missing += 1
        elif way != "none":
            make_folder(target.parent)
            if way == "copy":
                shutil.copyfile(one.image, target)
            else:
                _link(one.image.resolve(), target)
        if progress is not None:
            progress(number, len(images))
    return missing


def _link(image: Path, target: Path) -> None:
    if target.exists() and target.samefile(image):
        return  # linked before the same conversion was stopped
    try:
        os.link(image, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(image, target)
