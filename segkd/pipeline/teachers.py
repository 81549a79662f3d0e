"""The argument `--teacher`: a checkpoint, a model of the hub, an ONNX file, a function, a name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from segkd import registry
from segkd.checkpoint import ForeignFile
from segkd.errors import CheckpointError, ConfigError
from segkd.models.class_names import order_of
from segkd.models.label_sets import recognised
from segkd.models.student_info import unnamed
from segkd.models.weights import load_student_file
from segkd.pipeline.students import student_of
from segkd.yaml_tree import inline

NAME = "teacher"  # in the recipe
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KINDS = (
    "a run folder or checkpoint, pretrained:NAME, hf:ID_OR_FOLDER, FILE.onnx, module:function, or "
    "train:ARCH/ENCODER to train one first"
)
Size = tuple[int, int]


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher as an entry of ``teachers:``.

    Attributes:
        text: as the user wrote it.
        block: keys; empty for a network of the caller.
        classes: names of its classes; None if it does not say.
        features: whether it has logits and features, as a network has; else probabilities only.
        fixed: the only (height, width) that it takes, or None.
        student: block ``student:`` of the run that trains it; empty if it exists.
    """

    text: str
    block: dict[str, Any]
    classes: tuple[str, ...] | None = None
    features: bool = True
    fixed: Size | None = None
    student: dict[str, Any] = field(default_factory=dict)


def teacher_of(text: str, own: Mapping[str, Any]) -> TeacherChoice:
    """The teacher that a text names.

    Args:
        text: of `--teacher`.
        own: keys of the teacher's entry that the user gave besides, e.g. ``arch``.

    Raises:
        SegKDError: there is none; says what can be given.
    """
    if not text.strip():
        raise ConfigError(f"--teacher: is empty. Give {_KINDS}")
    kind, _, rest = text.partition(":")
    if kind == "hf":
        if not rest.strip():
            raise ConfigError(f"--teacher: '{text}' names no model. Give {_KINDS}")
        return _of_hub(text, rest)
    if kind == "train":
        return _trained(text, rest)
    path = Path(text).expanduser()
    if path.suffix == ".py":
        raise ConfigError(
            f"--teacher: {text} is Python code: name its function as {path.stem}:FUNCTION, and "
            f"begin the command with PYTHONPATH={quote(str(path.parent))}"
        )
    if text.startswith("pretrained:") or path.exists() or path.suffix.lower() in _FILES:
        return _of_onnx(text, path) if path.suffix.lower() == ".onnx" else _of_file(text, path, own)
    if _FUNCTION.fullmatch(text):
        return TeacherChoice(text, {"black_box": {"function": text}}, features=False)
    hint = ""
    if text.partition("/")[0] in registry.architectures():
        hint = f" To train this network first: --teacher train:{text}."
    raise ConfigError(f"--teacher: there is no file or folder '{text}'.{hint} Give {_KINDS}")


_FILES = (".pt", ".pth", ".safetensors", ".onnx", ".ckpt")


def require_same_classes(choice: TeacherChoice, classes: Sequence[str], data: str = "DATA") -> None:
    """Checks that the teacher's classes are those of the data, in any order.

    Args:
        choice: the teacher.
        classes: of the data.
        data: how the user named it.

    Raises:
        ConfigError: they differ; says how to map them.
    """
    if choice.classes is None:
        return
    try:
        order_of(choice.classes, classes, f"teacher {choice.text}")
    except CheckpointError as error:
        reason = str(error).partition(". Use a checkpoint")[0]
        raise ConfigError(
            f"{reason}. If they are other classes, say which is which: "
            f"{_map_of(choice, classes, data)}. If only the names differ, write the teacher's "
            "names into a classes.txt beside the images"
        ) from None


def _map_of(choice: TeacherChoice, classes: Sequence[str], data: str) -> str:
    """What to type for a teacher of other classes: segkd's map of two known sets, or a file."""
    assert choice.classes is not None  # else they are not compared
    key = f"teachers.{NAME}.classes"
    theirs, ours = recognised(choice.classes), recognised(classes)
    own = "hf" in choice.block  # such a model says its classes itself
    if theirs is not None and ours is not None:
        source = "" if own else f"from: {theirs.name}, "
        return f"add {key}='{{{source}to: {ours.name}}}' to the command"
    second = ours.name if ours is not None else quote(data)
    if own or theirs is not None:
        first = quote(str(choice.block["hf"])) if own else theirs.name if theirs else ""
        source = "" if own else f"from: {first}, "
        look = "look at it"
    else:
        first, source = "theirs.yaml", f"from: {inline(list(choice.classes))}, "
        look = f"with {inline(list(choice.classes))} in theirs.yaml; look at it"
    return (
        f"`segkd data map {first} {second} --write map.yaml` drafts a table; {look}, and add "
        f"{key}={quote(f'{{{source}map: map.yaml}}')} to the command"
    )


def _of_hub(text: str, model: str) -> TeacherChoice:
    from segkd.models.hf_source import read_source
    from segkd.models.huggingface import fixed_size, gives_log_prob

    folder = Path(model).expanduser()
    if folder.is_dir():
        model = str(folder.resolve())  # so that the recipe can be trained from any folder
    source = read_source(model)
    if not source.segments:
        raise ConfigError(
            f"--teacher: {model} has features without classes, but the student learns classes from "
            "its teacher. Name a model for semantic segmentation; features are for recipes, see "
            "docs/teachers.md"
        )
    return TeacherChoice(
        text,
        {"hf": model},
        None if unnamed(source.classes) else source.classes,
        features=not gives_log_prob(source),
        fixed=fixed_size(source),
    )


def _trained(text: str, network: str) -> TeacherChoice:
    choice = student_of(network, "--teacher train:ARCH/ENCODER")
    block = dict(choice.block)
    if block.get("arch") == "fpn":  # a teacher has the wider decoder
        block["options"] = {"decoder_pyramid_channels": 128, "decoder_segmentation_channels": 64}
    return TeacherChoice(text, {"checkpoint": f"run:{NAME}"}, student=block)


def _of_file(text: str, path: Path, own: Mapping[str, Any]) -> TeacherChoice:
    source = text if text.startswith("pretrained:") else str(path.resolve())
    if path.is_dir() and (path / "config.json").is_file() and not _is_ours(path):
        raise ConfigError(
            f"--teacher: {path} looks like a model of transformers: write --teacher "
            f"{quote(f'hf:{text}')}"
        )
    try:
        payload = load_student_file(source)
    except ForeignFile:
        if own.get("arch"):
            return TeacherChoice(text, {"checkpoint": source})
        raise ConfigError(
            f"--teacher: {path} was not written by segkd. For weights of another program name the "
            f"network as well: teachers.{NAME}.arch=NAME, where needed teachers.{NAME}.encoder and "
            f"teachers.{NAME}.options"
        ) from None
    return TeacherChoice(text, {"checkpoint": source}, tuple(payload["classes"]))


def _is_ours(folder: Path) -> bool:
    from segkd.texts import read_text

    return "segkd_version" in read_text(folder / "config.json")


def _of_onnx(text: str, path: Path) -> TeacherChoice:
    from segkd.models.onnx_metadata import has_metadata
    from segkd.models.onnx_network import OnnxNetwork, open_session

    if not path.is_file():
        raise ConfigError(f"--teacher: there is no file {path}")
    block = {"black_box": {"onnx": str(path.resolve())}}
    session = open_session(path)
    classes = None
    if has_metadata(session.get_modelmeta().custom_metadata_map):
        classes = tuple(OnnxNetwork(path).classes)
    shape = list(session.get_inputs()[0].shape)
    sides = shape[1:3] if len(shape) == 4 and shape[3] == 3 and shape[1] != 3 else shape[2:4]
    whole = [side for side in sides if isinstance(side, int)]
    fixed = (whole[0], whole[1]) if len(whole) == 2 else None
    return TeacherChoice(text, block, classes, features=False, fixed=fixed)
