"""Validates the contents of student files before they are used."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from segkd.errors import CheckpointError, ConfigError
from segkd.models.quantization_facts import QuantizationFacts
from segkd.yaml_tree import dump, parse

MOST_CLASSES = 10_000
_LONGEST = 200  # letters of a name
_MOST_PROBLEMS = 3
_MOST_ROWS = 10_000

Name = Annotated[str, Field(max_length=_LONGEST)]
Byte = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=1, le=1 << 20)]
Pair = tuple[Side, Side]
_Path = Annotated[str, Field(max_length=4096)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Output = Literal["logits", "labels", "exist", "points", "existence"]
Statistics = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Lanes(BaseModel):
    metric: Literal["culane", "tusimple", "bdd100k", "curvelanes", "llamas"]
    cut_top: Annotated[int, Field(ge=0, le=1 << 20)]
    squeeze: Annotated[float, Field(ge=1, le=100)] = 1.0
    size: Pair | None = None


class _Facts(BaseModel):
    """Keys of any file of a student; others are ignored."""

    model_config = ConfigDict(extra="allow")

    classes: Annotated[list[Name], Field(min_length=1, max_length=MOST_CLASSES)]
    palette: list[tuple[Byte, Byte, Byte]] | None = None
    ignore_index: int | None = None
    dataset: Name | None = None
    config: str | None = None
    step: int | None = None
    miou: float | None = None
    score: float | None = None
    score_name: Name | None = None
    lanes: _Lanes | None = None
    quantization: QuantizationFacts | None = None


class _Model(BaseModel):
    """Limits the length of strings; everything else is validated as a ``ModelConfig``."""

    model_config = ConfigDict(extra="allow")

    arch: Name = ""
    encoder: Name = ""
    weights: _Path | None = None
    checkpoint: _Path | None = None


class _Student(_Facts):
    model: _Model


class _Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")

    variant: Literal["python", "matlab"]
    threshold: _Share
    existence: _Share
    smoothing: Side
    sub_pixel: bool


class _LanePoints(BaseModel):
    model_config = ConfigDict(extra="allow")

    camera: Pair
    trained: Pair
    top: Annotated[int, Field(ge=0)]
    cut: Annotated[int, Field(ge=0)]
    whole: bool
    rules: _Rules


class _Export(_Facts):
    mean: Statistics
    std: Statistics
    divisor: Side
    fixed_size: Pair | None
    outputs: Annotated[list[_Output], Field(min_length=1)]
    bake: Name
    resize: Pair | None = None
    rows: Annotated[list[_Share], Field(min_length=2, max_length=_MOST_ROWS)] = []
    lane_points: _LanePoints | None = None


def check_student(payload: Mapping[str, Any], where: object) -> None:
    """Validates the payload of a ``best.pt`` or safetensors file.

    Args:
        payload: contents of the file.
        where: the file, for messages.

    Raises:
        CheckpointError: names the file and the invalid keys.
    """
    _check(_Student, payload, where)
    weights = payload["weights"]
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise _unwritten(where, "weights: expected tensors by name")


def check_export(facts: Mapping[str, Any], where: object) -> None:
    """Validates the metadata of an exported ONNX file; see ``check_student``."""
    _check(_Export, facts, where)
    if {"points", "existence"}.issubset(facts["outputs"]) != ("lane_points" in facts):
        raise _unwritten(where, "lane_points: expected with the output 'points' alone")
    if min(facts["std"]) <= 0:
        raise _unwritten(where, f"std: got {facts['std']}, expected numbers above 0")


def stored_config(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration in a student's payload as plain data; empty without one.

    Raises:
        CheckpointError: it is not a mapping of blocks.
    """
    text = payload.get("config") or ""
    try:
        stored = parse(text, "the configuration in the student's file").plain() or {}
    except ConfigError as error:
        raise CheckpointError(f"{error}. Use an undamaged copy of the file") from None
    whole = isinstance(stored, dict)
    if not whole or not all(isinstance(stored.get(k) or {}, dict) for k in ("data", "eval")):
        raise CheckpointError(
            "the configuration in the student's file is not a mapping of blocks. Use an undamaged "
            "copy of the file"
        )
    return stored


def with_baked_rules(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata whose configuration has the rules by which the file itself decodes lanes.

    The training's may differ from them, and whoever reads the configuration would take those for
    what the file does. Files without such rules keep theirs.

    Args:
        facts: of an exported file.

    Raises:
        CheckpointError: see ``stored_config``.
    """
    points = facts.get("lane_points")
    if points is None:
        return dict(facts)
    stored = stored_config(facts) or {"data": {"name": facts.get("dataset") or "arrays"}}
    evaluation = dict(stored.get("eval") or {})
    lanes = evaluation.get("lanes") or {}
    evaluation["lanes"] = {**(lanes if isinstance(lanes, dict) else {}), **points["rules"]}
    return {**facts, "config": dump({**stored, "eval": evaluation})}


def _check(kind: type[_Facts], payload: Mapping[str, Any], where: object) -> None:
    try:
        kind.model_validate(payload)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg'][0].lower()}{one['msg'][1:]}"
            for one in error.errors(include_url=False, include_input=False)
        ]
        more = f" (and {len(problems) - 3} more)" if len(problems) > _MOST_PROBLEMS else ""
        raise _unwritten(where, "; ".join(problems[:_MOST_PROBLEMS]) + more) from None
    palette = payload.get("palette")
    if palette is not None and len(palette) != len(payload["classes"]):
        text = f"palette: {len(palette)} colours for {len(payload['classes'])} classes"
        raise _unwritten(where, text)


def _unwritten(where: object, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{where} was changed after segkd wrote it, or is damaged: {problem}. Use the file as "
        "written by the run, `segkd export` or save_pretrained"
    )
