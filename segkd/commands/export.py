"""`segkd export`: exports a student, checks, quantises and times the files."""

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from segkd.commands.export_options import (
    PICTURES,
    REPEATS,
    Options,
    Size,
    check,
    check_data_keys,
    facts_file,
    keys_read,
    of_scores,
)
from segkd.commands.option_keys import mistake
from segkd.cpus import saturates_int8
from segkd.inference.stopping import stopped_with
from segkd.texts import json_text

if TYPE_CHECKING:
    import numpy as np

    from segkd.export.bundle import Bake as Bakes
    from segkd.export.lane_decoder import LaneDecoding
    from segkd.export.program import Exported
    from segkd.models.network import Network

FLOAT, INT8, PT2 = "ONNX fp32", "ONNX int8", "torch.export"
Format = Annotated[str, typer.Option(help="onnx, or pt2 (torch.export).")]
Out = Annotated[Path | None, typer.Option(help="File. Default: RUN/export/student.onnx.")]
Bake = Annotated[
    str,
    typer.Option(
        help="none: normalised floats to logits; normalize: uint8 to logits; labels: uint8 to "
        "class ids at the size of the image; lanes: uint8 to points of lanes."
    ),
]
Camera = Annotated[
    Size | None,
    typer.Option(
        metavar="H W",
        help="With --bake lanes, size of the images in whose pixels points are. Default: that of "
        "the training set's.",
    ),
]
Resize = Annotated[
    Size | None, typer.Option(metavar="H W", help="Resize images to this size inside the file.")
]
Shape = Annotated[Size | None, typer.Option(metavar="H W", help="Size for checks and timing.")]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Folder of images for int8, whole frames. Default: the training split."),
]
Pictures = Annotated[
    int | None, typer.Option(help=f"Number of calibration images. Default: {PICTURES}.", min=1)
]
Repeats = Annotated[int | None, typer.Option(help=f"Timed rounds. Default: {REPEATS}.", min=1)]
Limit = Annotated[int | None, typer.Option(help="mIoU on the first images only.", min=1)]


def export(
    student: Annotated[str, typer.Argument(metavar="CHECKPOINT|RUN")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    format: Format = "onnx",
    out: Out = None,
    bake: Bake = "normalize",
    resize: Resize = None,
    camera: Camera = None,
    size: Shape = None,
    static: Annotated[bool, typer.Option("--static", help="One image of one size only.")] = False,
    opset: Annotated[int | None, typer.Option(help="Of ONNX, for old runtimes.", min=18)] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also write a quantised file.")] = False,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="int8 without zero points, for TensorRT.")
    ] = False,
    calibration: Calibration = None,
    pictures: Pictures = None,
    score: Annotated[bool, typer.Option(help="mIoU before and after int8.")] = True,
    limit: Limit = None,
    latency: Annotated[bool, typer.Option(help="Time the files.")] = True,
    compile: Annotated[bool, typer.Option("--compile", help="Also time torch.compile.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    repeats: Repeats = None,
) -> None:
    """Write a student as one file for any batch and size, and compare its outputs.

    The file contains classes, colours and normalisation. Of a run with peers like the student
    (dml, kdcl) the best network is taken. Needs the extra `export`.
    Weights of another program: segkd export FILE student.arch=erfnet data.name=culane

    \b
    Example: segkd export runs/quickstart/alone/seed0 --int8 --limit 50
             segkd export best.pt --bake labels --resize 512 1024 --int8 --calibration frames
             segkd export runs/culane/enet_sad --bake lanes --camera 720 1280
    """
    options = Options(
        source=student,
        overrides=overrides or [],
        format=format,
        out=out,
        bake=cast("Bakes", bake),  # is checked next
        resize=resize,
        size=size,
        dynamic=not static,
        opset=opset,
        int8=int8,
        symmetric=symmetric,
        calibration=calibration,
        pictures=pictures,
        camera=camera,
        score=score,
        limit=limit,
        latency=latency,
        compiled=compile,
        threads=threads,
        repeats=repeats,
    )
    check(options)
    _run(options)


@stopped_with(lambda: "the export is not finished. The same command writes all files anew")
def _run(options: Options) -> None:
    """Exports; the numbers are also written to a JSON file next to the exported one."""
    from segkd.commands.display import note_match, say
    from segkd.config.load import stored_evaluation
    from segkd.export.choice import best_network
    from segkd.export.quantize import check_calibration, int8_path
    from segkd.inference.foreign_student import network_and_rest
    from segkd.runtime import limit_threads

    limit_threads()
    choice = best_network(options.source)
    path = options.out or default_path(options.source, options.format)
    beside = facts_file(path)
    network, _, rest = network_and_rest(
        choice.source, options.overrides, keys_read(options), "this export"
    )
    options = replace(options, overrides=rest)
    images: list[np.ndarray] = []
    if options.int8:
        if options.overrides:
            check_data_keys(
                options, stored_evaluation(network.info.payload, options.overrides).data
            )
        images = _images(network, options)
        check_calibration(network, images, options.source, symmetric=options.symmetric)
    note_match(network)
    for note in choice.notes:
        say(note)
    decoding = _decoding(network, options)
    written = _write(network, path, options, decoding)
    _tell_written(written, options)
    _tell_activations(network, path, options)
    files = {FLOAT if options.format == "onnx" else PT2: path}
    facts: dict[str, Any] = {"source": str(choice.source), "size": written.size}
    facts["difference"] = written.difference
    # Here already: if something fails below, no numbers of an earlier export stay.
    _write_facts(beside, facts, files)
    scores: dict[str, float] = {}
    score_name = ""
    if options.int8:
        files[INT8] = int8_path(path)
        facts["agreement"] = _quantize(path, files[INT8], images, options)
        if options.score:
            scores, score_name = _scores(files, options)
    if options.latency:
        facts["latency"] = _time(
            network, files, written.size, options, decoding, scores, score_name
        )
    else:
        for name, value in scores.items():
            say(f"{name}: {score_name} {100 * value:.2f} %")
    facts["trtexec"] = _tell_tensorrt(files, written.size, options)
    _write_facts(beside, facts | {"scores": scores}, files)
    trained = network.info.resize
    if trained and not options.resize:
        say(
            f"It was trained on images resized to {trained[0]}x{trained[1]}: a device has to do "
            f"the same, or bake it in with --resize {trained[0]} {trained[1]}"
        )


def _tell_written(written: "Exported", options: Options) -> None:
    """Prints what the file is, and a warning if it is of another size than was asked for."""
    from segkd.commands.display import say

    say(str(written))
    if options.size is not None and tuple(options.size) != tuple(written.size):
        asked, traced = ("x".join(map(str, size)) for size in (options.size, written.size))
        say(f"WARNING: --size: this network cannot take {asked}, so the file is of {traced}")


def _tell_activations(network: "Network", path: Path, options: Options) -> None:
    """Says where quantised activations are, of a student that was trained with them."""
    from segkd.commands.display import say

    quantization = network.info.quantization
    if quantization and quantization.settings.activations:
        where = "the int8 file has them" if options.int8 else "add --int8 for a file with them"
        bits = quantization.settings.activations
        say(f"Activations are float in {path.name}, and of {bits} bits in training: {where}")


def _write_facts(beside: Path, facts: dict[str, Any], files: dict[str, Path]) -> None:
    """Writes the numbers of an export, and which files there are."""
    from segkd.files import write_text

    names = {name: str(file) for name, file in files.items()}
    write_text(beside, json_text(facts | {"files": names}, indent=2) + "\n")


def _quantize(path: Path, file: Path, images: "list[np.ndarray]", options: Options) -> float:
    """Writes the int8 file; returns its agreement with the float one."""
    from segkd.commands.display import say
    from segkd.export import to_int8

    of_training = options.calibration is None
    quantized = to_int8(path, file, images, symmetric=options.symmetric, as_trained=of_training)
    say(str(quantized))
    if saturates_int8():
        say(
            "WARNING: this CPU has no VNNI: it cuts off large sums of int8 products, so scores "
            "of the int8 file are lower here than on other devices"
        )
    return quantized.agreement


def default_path(source: str, format: str) -> Path:
    """RUN/export/student.FORMAT for a run or its best.pt, else a file with the same stem.

    A checkpoint ``best_NAME.pt`` of a peer gives RUN/export/NAME.FORMAT.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    from segkd.models.weights import resolve

    checkpoint = resolve(source)
    if source.startswith("pretrained:"):
        return Path(f"{checkpoint.stem}.{format}")
    if checkpoint.parent.name == "checkpoints":
        is_best = checkpoint.name == "best.pt"
        name = "student" if is_best else checkpoint.stem.removeprefix("best_")
        return checkpoint.parent.parent / "export" / f"{name}.{format}"
    return checkpoint.with_suffix(f".{format}")


def _decoding(network: "Network", options: Options) -> "LaneDecoding | None":
    """How lanes are decoded inside the file; None: they are not."""
    if options.bake != "lanes":
        return None
    from segkd.config.load import stored_evaluation
    from segkd.export.lane_decoder import LaneDecoding

    rules = None
    if options.overrides:
        rules = stored_evaluation(network.info.payload, options.overrides).eval.lanes
    return LaneDecoding.of(network, rules, options.camera)


def _write(
    network: "Network",
    path: Path,
    options: Options,
    decoding: "LaneDecoding | None",
) -> "Exported":
    from segkd.export import to_onnx, to_pt2

    write = to_pt2 if options.format == "pt2" else partial(to_onnx, opset=options.opset)
    return write(
        network,
        path,
        size=options.size,
        dynamic=options.dynamic,
        bake=options.bake,
        resize=options.resize,
        lanes=decoding,
    )


def _tell_tensorrt(files: dict[str, Path], shape: Size, options: Options) -> list[str]:
    """Prints and returns the commands with which TensorRT builds engines from the files."""
    from segkd.commands.display import say
    from segkd.export.tensorrt import trtexec_line

    lines = [
        trtexec_line(path, shape, dynamic=options.dynamic, int8=name == INT8)
        for name, path in files.items()
        if name == FLOAT or options.symmetric
    ]
    for line in lines if options.format == "onnx" else ():
        say(f"TensorRT: {line}")
    if INT8 in files and not options.symmetric:
        say(f"TensorRT cannot take {files[INT8].name}, which has zero points: add --symmetric")
    return lines if options.format == "onnx" else []


def _images(network: "Network", options: Options) -> "list[np.ndarray]":
    """The calibration images for int8. Raises SegKDError if there are none."""
    from segkd.errors import SegKDError

    wanted = options.pictures or PICTURES
    if options.calibration:
        from segkd.export.calibration import spread_frames

        return spread_frames(options.calibration, wanted)
    from segkd.config.load import stored_evaluation
    from segkd.data.unlabeled import open_unlabelled
    from segkd.engine.setup import open_dataset
    from segkd.export.calibration import spread_images

    try:
        config = stored_evaluation(network.info.payload, options.overrides)
        data = config.data
        dataset = open_dataset(config, data.val_split if data.all_unlabelled else data.train_split)
        if data.all_unlabelled:
            dataset = open_unlabelled(data, dataset)
    except SegKDError as error:
        raise mistake(
            "--int8 needs calibration images, and the student's training data cannot be opened. "
            f"Give --calibration FOLDER. The problem of the data: {error}"
        ) from error
    return spread_images(dataset, min(wanted, len(dataset)), skip=data.on_error == "skip")


def _scores(files: dict[str, Path], options: Options) -> tuple[dict[str, float], str]:
    """Score by file on the validation split, and its name.

    Empty, with a warning, if the data is not available.
    """
    from segkd.api import evaluate
    from segkd.commands.display import fail, progress
    from segkd.errors import SegKDError

    overrides = of_scores(options.overrides)
    overrides += [f"eval.limit={options.limit}"] if options.limit else []
    found: dict[str, float] = {}
    score_name = ""
    try:
        for name, file in files.items():
            with progress(f"score of {name}") as advance:
                result = evaluate(file, overrides=overrides, progress=advance)
            found[name], score_name = result.score, result.score_name
    except SegKDError as error:
        fail(f"no score: {error}. Skip it with --no-score", label="warning")
        return {}, score_name
    return {name: value for name, value in found.items() if not math.isnan(value)}, score_name


def _time(
    network: "Network",
    files: dict[str, Path],
    size: Size,
    options: Options,
    decoding: "LaneDecoding | None",
    scores: dict[str, float],
    score_name: str,
) -> list[dict[str, Any]]:
    """Prints the table of latencies; returns its rows as plain data."""
    from segkd.commands.display import say
    from segkd.export.latency import latency_table, measure, without_openvino

    repeats = options.repeats or REPEATS
    rows = measure(
        network,
        files,
        size=size,
        threads=options.threads,
        repeats=repeats,
        compiled=options.compiled,
        bake=options.bake,
        resize=options.resize,
        lanes=decoding,
    )
    table = latency_table(
        rows,
        network,
        size=size,
        resize=options.resize,
        threads=options.threads,
        repeats=repeats,
        scores=scores,
        score_name=score_name,
    )
    say("")
    say(table)
    if options.format == "onnx" and (hint := without_openvino()):
        say(hint)
    return [asdict(row) for row in rows]
