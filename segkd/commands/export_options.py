"""The options of `segkd export`, and which of them go together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segkd.export.bundle import Bake as Bakes

Size = tuple[int, int]
_ALWAYS_TOLD = {"source", "size", "difference", "files"}  # keys in the JSON of every export


@dataclass(frozen=True)
class Options:
    """The arguments of `segkd export`."""

    source: str
    overrides: Sequence[str]
    format: str
    out: Path | None
    bake: "Bakes"
    resize: Size | None
    size: Size | None
    dynamic: bool
    opset: int | None
    int8: bool
    symmetric: bool
    calibration: Path | None
    pictures: int
    camera: Size | None
    score: bool
    limit: int | None
    latency: bool
    compiled: bool
    threads: int | None
    repeats: int


def check(options: Options) -> None:
    """Refuses options that do not go together, or would change nothing.

    Raises:
        ConfigError: says which.
    """
    from typing import get_args

    from segkd.config.load import require_read
    from segkd.export.bundle import Bake as Bakes

    known = {"--format": ("onnx", "pt2"), "--bake": get_args(Bakes)}
    for option, value in (("--format", options.format), ("--bake", options.bake)):
        if value not in known[option]:
            raise mistake(f"{option}: got '{value}'. Known: {', '.join(known[option])}")
    if options.int8 and options.format != "onnx":
        raise mistake("--int8 needs --format onnx")
    if options.opset and options.format != "onnx":
        raise mistake("--opset needs --format onnx")
    if options.calibration and not options.int8:
        raise mistake("--calibration needs --int8: add it")
    if options.camera and options.bake != "lanes":
        raise mistake("--camera is for --bake lanes: add it, or leave --camera out")
    if options.symmetric and not options.int8:
        raise mistake("--symmetric needs --int8: add it")
    ending = f".{options.format}"
    if options.out and options.out.suffix.lower() != ending:
        raise mistake(
            f"--out: got '{options.out}', expected a file that ends with {ending}. "
            "--format is onnx (default) or pt2"
        )
    scored = options.int8 and options.score
    if options.limit and not scored:
        raise mistake("--limit is for scores of --int8: add it, or leave --limit out")
    read = ["eval.lanes"] if options.bake == "lanes" else []
    if options.int8 and not (options.calibration and not options.score):
        read = [*read, "data"]
    if scored:
        read = ["data", "eval", "runtime"]
    if options.overrides and not read:
        raise mistake(
            f"{options.overrides[0]} would change nothing here: KEY=VALUE is read for scores and "
            "calibration images of --int8, and for --bake lanes (eval.lanes)"
        )
    require_read(options.overrides, read, "this export")


def facts_file(path: Path) -> Path:
    """The JSON file for the numbers of an exported one, which is beside it.

    Args:
        path: of the exported file.

    Raises:
        ConfigError: there is a file of this name which no earlier export wrote.
    """
    from segkd.errors import DataError
    from segkd.texts import parse_json, read_text

    facts = path.with_name(f"{path.stem}.json")
    if facts.exists():
        try:
            found = parse_json(read_text(facts), str(facts))
        except DataError:
            found = None
        if not isinstance(found, dict) or not found.keys() >= _ALWAYS_TOLD:
            raise mistake(
                f"{facts} is there already, and no export wrote it: the numbers of this export "
                "would replace it. Give another --out, or move it"
            )
    return facts


def mistake(text: str) -> Exception:
    """The error of a wrong option."""
    from segkd.errors import ConfigError

    return ConfigError(text)
