"""The options of `segkd export`, and which of them go together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segkd.commands.option_keys import mistake

if TYPE_CHECKING:
    from segkd.data.base import DataConfig
    from segkd.export.bundle import Bake as Bakes

Size = tuple[int, int]
_ALWAYS_TOLD = {"source", "size", "difference", "files"}  # keys in the JSON of every export
_FORMATS = ("onnx", "pt2")
PICTURES, REPEATS = 64, 50  # if --pictures and --repeats are not given
_OF_CALIBRATION = ("data.train_split", "data.unlabeled")  # keys that no score reads


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
    pictures: int | None
    camera: Size | None
    score: bool
    limit: int | None
    latency: bool
    compiled: bool
    threads: int | None
    repeats: int | None


def check(options: Options) -> None:
    """Refuses options that do not go together, or would change nothing.

    Raises:
        ConfigError: says which.
    """
    from segkd.config.load import require_read
    from segkd.export.bundle import check_bake

    if options.format not in _FORMATS:
        raise mistake(f"--format: got '{options.format}'. Known: {', '.join(_FORMATS)}")
    check_bake(options.bake, "--bake")
    if options.int8 and options.format != "onnx":
        raise mistake("--int8 needs --format onnx")
    if options.opset and options.format != "onnx":
        raise mistake("--opset needs --format onnx")
    if options.calibration and not options.int8:
        raise mistake("--calibration needs --int8: add it")
    if options.camera and options.bake != "lanes":
        raise mistake("--camera is for --bake lanes: add it, or leave --camera out")
    for option, given in (("--symmetric", options.symmetric), ("--pictures", options.pictures)):
        if given and not options.int8:
            raise mistake(f"{option} needs --int8: add it")
    _check_timing(options)
    ending = f".{options.format}"
    if options.out and options.out.suffix.lower() != ending:
        raise mistake(
            f"--out: got '{options.out}', expected a file that ends with {ending}. "
            "--format is onnx (default) or pt2"
        )
    if options.out and options.out.is_dir():
        raise mistake(f"--out: {options.out} is a folder, and a file {ending} is written")
    scored = options.int8 and options.score
    if options.limit and not scored:
        raise mistake("--limit is for scores of --int8: add it, or leave --limit out")
    if is_foreign(options):  # its keys are checked where it is opened
        return
    read = keys_read(options)
    if options.overrides and not read:
        raise mistake(
            f"{options.overrides[0]} would change nothing here: KEY=VALUE is read for scores and "
            "calibration images of --int8, for --bake lanes (eval.lanes: rules of decoding), and "
            "for weights of another program (student.arch=… data.name=…)"
        )
    require_read(options.overrides, read, "this export")


def is_foreign(options: Options) -> bool:
    """Whether the source is said to be a weights file of another program, by ``student.…``."""
    from segkd.yaml_tree import overrides_tree

    return "student" in overrides_tree(options.overrides).value


def keys_read(options: Options) -> list[str]:
    """Keys of the configuration that an export reads, besides those of another program's file."""
    scored = options.int8 and options.score
    if scored:
        return ["data", "eval"]
    calibrated = options.int8 and not options.calibration
    return [*_baked(options), *(["data"] if calibrated else [])]


def facts_file(path: Path) -> Path:
    """The JSON file for the numbers of an exported one, which is beside it.

    Args:
        path: of the exported file.

    Raises:
        ConfigError: there is a file of this name which no earlier export wrote.
        OSError: their folder cannot be made, as it is below a file.
    """
    from segkd.errors import DataError
    from segkd.files import require_place
    from segkd.texts import parse_json, read_text

    require_place(path.parent)
    # Files of several formats stand side by side; the usual one has the short name.
    facts = path.with_name(f"{path.stem if path.suffix.lower() == '.onnx' else path.name}.json")
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


def check_data_keys(options: Options, data: "DataConfig") -> None:
    """Refuses overrides that neither the scores nor the calibration images of --int8 read.

    Args:
        options: of an export with --int8.
        data: of the student's training, with the overrides.

    Raises:
        ConfigError: names the first.
    """
    from segkd.config.load import require_read
    from segkd.config.read_keys import evaluation_keys

    # Not of the runtime: the files are scored as they are, on the CPU.
    read = [key for key in evaluation_keys(data) if not key.startswith("runtime.")]
    if not options.score:
        read = [key for key in read if key.startswith("data.")]
    if not options.calibration:
        read += _OF_CALIBRATION
    require_read(options.overrides, [*read, *_baked(options)], "this export")


def of_scores(overrides: Sequence[str]) -> list[str]:
    """The overrides without those of calibration images, which an evaluation would refuse."""
    keys = [override.partition("=")[0] for override in overrides]
    return [
        override
        for override, key in zip(overrides, keys, strict=True)
        if not any(f"{key}.".startswith(f"{one}.") for one in _OF_CALIBRATION)
    ]


def _baked(options: Options) -> list[str]:
    """The keys of rules that become part of a file; curves are fitted by those who ask it."""
    from segkd.inference.lane_output import BAKED

    return [f"eval.lanes.{key}" for key in BAKED] if options.bake == "lanes" else []


def _check_timing(options: Options) -> None:
    """Raises ConfigError for options of the table of latencies, if there is none."""
    timing = {
        "--compile": options.compiled,
        "--threads": options.threads,
        "--repeats": options.repeats,
    }
    given = [option for option, value in timing.items() if value]
    if given and not options.latency:
        raise mistake(f"{given[0]} is for the times of the files: remove it, or --no-latency")
