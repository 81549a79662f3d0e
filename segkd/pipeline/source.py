"""The argument `--data`: a folder of images, a config with a block `data:`, or a dataset's name."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from segkd import registry
from segkd.config.load import load_data, read_tree
from segkd.config_files import SUFFIX
from segkd.data.base import DataConfig, Dataset
from segkd.data.draft import Draft, draft
from segkd.data.paired import PairedDataset
from segkd.data.reading import header_size
from segkd.errors import ConfigError, DataError, SegKDError
from segkd.files import write_text
from segkd.pipeline.commented import commented
from segkd.yaml_tree import inline

SPEC = "spec.yaml"
_LOOKED_AT = 50  # images whose size is read
Bar = Callable[[int, int], None]
Size = tuple[int, int]


@dataclass
class DataSource:
    """Images and masks as the block ``data:`` of a config.

    Attributes:
        name: short, for titles and folders.
        block: keys of ``data:``, without sizes and batches.
        notes: comments by dotted key below ``data.``.
        classes: names; empty if there are no masks.
        sizes: number of images by (height, width).
        counts: number of images by split.
        found: what a folder holds; None for a named set or a config.
        labelled: whether there are masks.
    """

    name: str
    block: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    sizes: Counter[Size] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    found: Draft | None = None
    labelled: bool = True

    @property
    def named(self) -> bool:
        """Whether the names of the classes are from a file or a known set, not made up."""
        guess = self.found.guess if self.found else None
        return guess is None or bool(guess.origin)


def data_of(text: str, own: Mapping[str, Any], progress: Bar) -> DataSource:
    """The data that a text names.

    Args:
        text: a folder, a config file, or the name of a dataset.
        own: keys of ``data:`` that the user gave besides, e.g. ``root``.
        progress: called with (done, total) masks.

    Raises:
        SegKDError: there is no such data, or it cannot be used.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return of_draft(draft(path, progress=progress))
    if path.suffix in (SUFFIX, ".yml"):
        return _of_config(text, path, own)
    if text in registry.datasets:
        return _opened(text, {"name": text}, own)
    what = f"'{text}' is a file, no folder" if path.is_file() else f"there is no folder '{text}'"
    raise ConfigError(
        f"--data: {what}. Give the folder of your images, a config with a "
        f"block `data:`, or a dataset: {', '.join(registry.datasets.names())}"
    )


def of_draft(found: Draft) -> DataSource:
    """The source of a folder that was looked at; ``spec`` is filled in by ``write_spec``."""
    root = str(found.root)
    name = found.root.name or "data"
    if found.known:
        block = {"name": found.known, "root": root}
        notes = {"name": f"the files and classes of {root} are those of this set"}
    else:
        block, notes = {"name": "folder", "root": root}, {}
    source = DataSource(name, block, notes, tuple(found.classes), found.sizes, found.counts, found)
    source.labelled = found.labelled
    if "unlabeled" in found.counts and found.labelled:
        source.notes["train_split"] = f"besides, {found.counts['unlabeled']} images have no mask"
    return source


def spec_files(source: DataSource, folder: Path, prefix: str = "") -> list[Path]:
    """The files that ``write_spec`` writes."""
    found = source.found
    if found is None or not found.spec:
        return []
    return [folder / f"{prefix}{name}" for name in (SPEC, *(f"{one}.txt" for one in found.lists))]


def write_spec(source: DataSource, folder: Path, prefix: str = "") -> None:
    """Writes the spec and the lists of a folder's images, and names them in the block.

    Args:
        source: of a folder; those of others need no files.
        folder: to write to.
        prefix: of the files' names.
    """
    found = source.found
    if found is None or not found.spec:
        return
    folder = folder.resolve()
    spec = {**found.spec, "splits": {k: dict(v) for k, v in found.spec["splits"].items()}}
    notes = spec_notes(found)
    for split, lines in found.lists.items():
        path = folder / f"{prefix}{split}.txt"
        write_text(path, "\n".join(lines) + "\n")
        spec["splits"][split]["list"] = str(path)
    head = (
        f"What the images and masks of {found.root} are. Written after looking at them;\n"
        "change names and merge classes here (a class may have several ids or colours)."
    )
    path = folder / f"{prefix}{SPEC}"
    write_text(path, commented(spec, notes, head))
    source.block["spec"] = str(path)


def spec_notes(found: Draft) -> dict[str, str]:
    """A comment on each choice of a spec."""
    notes: dict[str, str] = {}
    guess = found.guess
    if guess is not None:
        notes |= {key: text for key, text in guess.notes.items() if key in found.spec}
        for number, entry in enumerate(guess.classes):
            notes[f"classes.{number}"] = guess.counts.get(entry["name"], "")
        if guess.masks == "ids":
            notes["masks"] = "the numbers in the masks are ids of classes"
        else:
            notes["masks"] = "the masks are RGB"
        if "color" in guess.notes:
            notes["classes"] = f"{notes.get('classes', '')}; color: {guess.notes['color']}"
    notes.setdefault("undeclared", "other values in a mask are errors; `ignore`: void")
    notes["splits"] = found.how
    for split, number in found.counts.items():
        notes[f"splits.{split}"] = f"{number} images"
    if "image_ending" in found.spec:
        notes["mask_ending"] = "takes the place of image_ending, or of the image's own ending"
    return notes


def _of_config(text: str, path: Path, own: Mapping[str, Any]) -> DataSource:
    if not path.is_file():
        raise ConfigError(f"--data: there is no file {text}")
    plain = read_tree(path.resolve()).plain()  # with its bases
    common = plain.get("common")
    block = plain.get("data") or (common.get("data") if isinstance(common, dict) else None)
    if not isinstance(block, dict):
        hint = ""
        if "splits" in plain:
            hint = (
                f" It is a spec: write a config with data: {{name: folder, root: …, spec: {text}}}"
            )
        raise ConfigError(f"--data: {text} has no block `data:`.{hint}")
    if block.get("labels") == "none":
        raise ConfigError(
            f"--data: {text} is of images without masks. Give their folder itself: --data "
            f"{quote(str(block.get('root', 'FOLDER')))}"
        )
    return _opened(path.stem, dict(block), own)


def _opened(name: str, block: dict[str, Any], own: Mapping[str, Any]) -> DataSource:
    """A source that a dataset of segkd reads."""
    overrides = [f"data.{key}={inline(value)}" for key, value in {**block, **own}.items()]
    config = load_data(str(block.get("name", "folder")), overrides)
    train, val = (_open(config, split) for split in (config.train_split, config.val_split))
    if train.task == "lanes":
        raise ConfigError(
            f"--data: '{name}' is a set of lanes. `segkd distill` is for semantic segmentation; "
            "for lanes see segkd list configs --kind run, e.g. culane/enet_sad"
        )
    counts = {"train": len(train), "val": len(val)}
    return DataSource(name, block, {}, tuple(train.classes), _sizes(train), counts)


def _open(config: DataConfig, split: str) -> Dataset:
    return registry.datasets.get(config.name)(config, split)


def _sizes(dataset: Dataset) -> Counter[Size]:
    found: Counter[Size] = Counter()
    step = max(1, len(dataset) // _LOOKED_AT)
    for index in range(0, len(dataset), step):
        try:
            if isinstance(dataset, PairedDataset):
                found[header_size(dataset.pairs[index][0])] += 1
            else:
                image = dataset.read(index).image
                found[image.shape[0], image.shape[1]] += 1
                break  # drawn scenes have one size
        except SegKDError:
            continue
    if not found:
        raise DataError("--data: no image of the training split can be read. See: segkd data check")
    return found
