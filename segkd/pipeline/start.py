"""`segkd init`: a spec and a config from a folder of images, with a comment on each choice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from segkd.data.draft import Draft, draft
from segkd.errors import ConfigError
from segkd.files import write_text
from segkd.pipeline.commented import commented
from segkd.pipeline.settings import choose
from segkd.pipeline.source import SPEC, DataSource, of_draft, spec_files, write_spec
from segkd.pipeline.students import DEFAULT, student_of
from segkd.pipeline.unlabelled import TRAIN, VAL, describe_images

_TEACHER = "TEACHER.pt"
Bar = Callable[[int, int], None]


@dataclass(frozen=True)
class Started:
    """What was found and written.

    Attributes:
        config: the file to train.
        files: all written files.
        found: what the folder holds.
        labelled: whether there are masks; without them a teacher must be written into the config.
    """

    config: Path
    files: list[Path]
    found: Draft
    labelled: bool


def start(
    folder: Path,
    *,
    out: Path = Path("."),
    name: str | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    plain: bool = False,
    progress: Bar = lambda done, total: None,
) -> Started:
    """Looks at a folder of images and masks, and writes files with which a student trains on them.

    Args:
        folder: its files are only read.
        out: folder of the written files NAME.yaml, NAME.spec.yaml and, where needed,
            NAME.train.txt, NAME.val.txt ….
        name: of these files; default: that of the folder.
        images, masks: folders below it, where names do not tell the two apart.
        plain: describe its files, even if they are those of a set that segkd knows.
        progress: called with (done, total) masks.

    Raises:
        SegKDError: nothing can be made of the folder, or a file exists already.
    """
    name = name or folder.expanduser().resolve().name or "data"
    config = out / f"{name}.yaml"
    _refuse_names(out, name)  # before masks are read
    found = draft(folder, images=images, masks=masks, plain=plain, progress=progress)
    source = of_draft(found)
    if found.labelled:
        data, notes, tail = _with_masks(source)
    else:
        data, notes, tail = _without_masks(source, out / f"{name}.labels")
    files = [config, *spec_files(source, out, f"{name}.")]
    _refuse_existing(files)  # which lists are needed was not known before
    write_spec(source, out, f"{name}.")
    data["data"] = {**source.block, **data["data"]}
    head = (
        f"Written by: segkd init {quote(str(folder))}\nTrain it: segkd train {quote(str(config))}"
    )
    write_text(config, commented(data, notes, head) + tail)
    return Started(config, files, found, source.labelled)


def _refuse_names(out: Path, name: str) -> None:
    """Refuses files that cannot be written. Raises ConfigError."""
    if Path(name).name != name:
        path = Path(name)
        raise ConfigError(
            f"--name: got '{name}', expected a name without folders: --out "
            f"{quote(str(out / path.parent))} --name {quote(path.name or 'NAME')}"
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file. Give a folder")
    _refuse_existing([out / f"{name}.yaml", out / f"{name}.{SPEC}"])


def _refuse_existing(files: list[Path]) -> None:
    """Refuses to overwrite. Raises ConfigError."""
    for path in files:
        if path.exists():
            raise ConfigError(
                f"{path} exists already: remove it, or give another name: --name NAME"
            )


def _with_masks(source: DataSource) -> tuple[dict[str, Any], dict[str, str], str]:
    settings = choose(source.sizes, source.counts["train"])
    student = student_of(DEFAULT)
    data: dict[str, Any] = {"steps": settings.keys["steps"], "data": settings.data}
    data["student"] = student.block
    data |= {key: value for key, value in settings.keys.items() if key != "steps"}
    notes = settings.notes | {f"data.{key}": text for key, text in source.notes.items()}
    notes["student"] = student.note
    lines = [
        "With a teacher (or in one go: segkd distill --teacher TEACHER --data THIS_FILE):",
        "teachers: {main: {checkpoint: runs/teacher}}",
        "methods: {kd: {}, cwd: {}}",
    ]
    if "unlabeled" in source.counts:
        lines += [
            f"The {source.counts['unlabeled']} images without masks, below `data`:",
            "  unlabeled: {split: unlabeled, share: 0.334}",
        ]
    return data, notes, "".join(f"# {line}\n" for line in lines)


def _without_masks(source: DataSource, labels: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """A config that learns from a teacher alone; its classes must be those of the teacher."""
    found = source.found
    assert found is not None  # it is a folder
    names = [one.name for one in found.named]
    describe_images(source, names or ["class_0", "class_1"], labels)
    settings = choose(source.sizes, found.counts[TRAIN])
    student = student_of(DEFAULT)
    data: dict[str, Any] = {"steps": settings.keys["steps"]}
    data["data"] = {**settings.data, "labels": "none"}
    data["task"] = {"weight": 0.0}
    data["student"] = student.block
    data["teachers"] = {"main": {"checkpoint": _TEACHER}}
    data["methods"] = {"kd": {}, "cwd": {}}
    data |= {key: value for key, value in settings.keys.items() if key != "steps"}
    notes = settings.notes | {f"data.{key}": text for key, text in source.notes.items()}
    notes["data.labels"] = "there are none: the student learns from the teacher alone"
    notes["task"] = "no loss on labels"
    notes["student"] = student.note
    notes["teachers"] = f"put a teacher in the place of {_TEACHER}"
    lines = [
        f"Scores need labels: write label maps of the {found.counts[VAL]} images of the split "
        f"`{VAL}`",
        f"into {labels}, by hand or by the teacher (segkd predict TEACHER IMAGES).",
        f"In one go, also without masks: segkd distill --teacher TEACHER --data "
        f"{quote(str(found.root))}",
    ]
    return data, notes, "".join(f"# {line}\n" for line in lines)
