"""`segkd predict`: overlays and label maps of an image, a folder, or a video."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from segkd.commands.option_keys import mistake

if TYPE_CHECKING:
    from segkd.inference.label_files import Format as LabelFormat
    from segkd.inference.media import Source
    from segkd.inference.prediction_files import PredictionFiles, Wanted
    from segkd.inference.predictor import Predictor


_STRENGTH = 0.6  # opacity of overlays without --strength
Out = Annotated[
    str | None,
    typer.Option(
        help="Folder, or a file for the overlay of an image or video. Default: predictions/NAME."
    ),
]
Labels = Annotated[bool | None, typer.Option(help="Label maps. Default: yes, except for a video.")]
Format = Annotated[
    str | None,
    typer.Option(help="Label maps: labels (grey ids), palette, cityscapes, voc, ade20k."),
]
Engine = Annotated[
    str | None,
    typer.Option(help="Of an ONNX file: onnxruntime (default), openvino, openvino-bf16."),
]
Probabilities = Annotated[
    str | None,
    typer.Option(help="npz: (K, H, W) float16 per image; png: a grey image per class."),
]

Legend = Annotated[bool | None, typer.Option(help="Names of classes below overlays. Default: yes.")]
Strength = Annotated[
    float | None,
    typer.Option(help=f"Opacity of colours, 0 to 1. Default: {_STRENGTH}.", min=0, max=1),
]


def predict(
    student: Annotated[str, typer.Argument(metavar="CHECKPOINT|RUN|ONNX")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER|VIDEO")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    out: Out = None,
    overlays: Annotated[bool, typer.Option(help="Class colours over the image.")] = True,
    labels: Labels = None,
    format: Format = None,
    probabilities: Probabilities = None,
    legend: Legend = None,
    strength: Strength = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 1,
    top_k: Annotated[
        int | None, typer.Option(help="npz: keep the K most probable classes.", min=1)
    ] = None,
    stride: Annotated[int, typer.Option(help="npz: one prediction per N x N pixels.", min=1)] = 1,
    engine: Engine = None,
) -> None:
    """Segment an image, all images of a folder, or a video.

    Images may have any size; they are resized as in the student's training (data.resize). Images
    that cannot be read or processed are reported and skipped, and the exit code is 2.

    \b
    Example: segkd predict runs/quickstart/alone/seed0 street.jpg --out street_labels.png
             segkd predict model.onnx /data/frames --out out --format cityscapes --batch-size 4
             segkd predict pretrained:streets_fpn_mobilenetv3_large drive.mp4 eval.flip=true
    As a teacher's stored predictions: --probabilities npz --stride 4 --top-k 5
    """
    from segkd.inference.prediction_files import Wanted

    _check_words(format, probabilities, stored=bool(top_k or stride > 1))
    if format and labels is False:
        raise mistake("--format is of label maps, which --no-labels leaves out: remove one")
    of_overlays = {"--strength": strength, "--legend or --no-legend": legend}
    given = [option for option, value in of_overlays.items() if value is not None]
    if given and not overlays:
        raise mistake(f"{given[0]} is for overlays, which --no-overlays leaves out: remove one")
    asked = bool(labels or format or probabilities)
    wanted = Wanted(
        overlays=overlays,
        labels=labels is not False,
        probabilities=cast(Literal["npz", "png"] | None, probabilities),  # checked
        format=cast("LabelFormat", format or "labels"),
        legend=legend is not False,
        strength=_STRENGTH if strength is None else strength,
        stride=stride,
        top_k=top_k,
    )
    _run(
        student,
        source,
        overrides or [],
        out,
        wanted,
        asked=asked,
        batch_size=batch_size,
        engine=engine,
    )


def _check_words(format: str | None, probabilities: str | None, stored: bool) -> None:
    from segkd.errors import ConfigError
    from segkd.inference.label_files import FORMATS

    if stored and probabilities != "npz":
        raise ConfigError("--top-k and --stride are for --probabilities npz")
    choices = (("--format", format, FORMATS), ("--probabilities", probabilities, ("npz", "png")))
    for option, value, known in choices:
        if value is not None and value not in known:
            raise ConfigError(f"{option}: got '{value}'. Known: {', '.join(known)}")


def _run(
    student: str,
    source: Path,
    overrides: list[str],
    out: str | None,
    wanted: "Wanted",
    *,
    asked: bool,
    batch_size: int,
    engine: str | None,
) -> None:
    """Predicts; ``asked``: whether files besides the overlay were requested explicitly."""
    from dataclasses import replace

    from segkd.commands.display import note_all_kept, progress, say
    from segkd.inference.media import open_source
    from segkd.inference.output_names import refuse_replacing, without_outputs
    from segkd.inference.prediction_files import PredictionFiles
    from segkd.inference.predictor import predict_files
    from segkd.inference.stopping import stoppable
    from segkd.inference.video_writer import video_path
    from segkd.runtime import limit_threads

    limit_threads()
    opened = open_source(source)
    target = Path(out or Path("predictions", _default_name(opened))).expanduser()
    opened = without_outputs(opened, target)
    is_folder = out is None or out.endswith("/")
    file = _as_file(target, opened, wanted, asked, is_folder=is_folder)
    if opened.kind == "video" and not asked:
        wanted = replace(wanted, labels=False)
    _require_some(wanted, opened)
    predictor = _predictor(student, overrides, batch_size, wanted, engine)
    video = None
    if opened.kind == "video" and wanted.overlays:
        video = video_path(file or target / f"{source.stem}.mp4", opened.fps)
        wanted = replace(wanted, overlays=False)
    network = predictor.network
    note_all_kept(wanted.top_k, len(network.classes))
    files = PredictionFiles(target, wanted, network.classes, network.palette, opened.names)
    single = video or file
    several = [] if file else files.outputs(opened.names)
    refuse_replacing([*several, *([single] if single else [])], opened.originals)
    if file is None:
        files.write_facts()
    start = time.perf_counter()
    picture = file if opened.kind == "image" else None
    with stoppable() as stop, progress(f"predict {source}") as advance:
        count, video = predict_files(
            predictor, opened, files, picture=picture, video=video, progress=advance, stop=stop
        )
    rate = count / (time.perf_counter() - start)
    say(f"{video or file or target}: {count} of {count + len(predictor.broken)} images")
    say(f"{rate:.1f} images per second, including files")
    if file is None:
        _tell_earlier(files)
    _tell_missing(opened, predictor, count, stop.number if stop() else None)


def _tell_missing(source: "Source", predictor: "Predictor", count: int, signal: int | None) -> None:
    """Tells what has no prediction; ``signal``: received, perhaps before the last image.

    Raises:
        Interrupted: the command was stopped before the last image.
        SegKDError: images were passed over.
    """
    from segkd.commands.display import fail
    from segkd.errors import Interrupted
    from segkd.inference.broken import broken_text, early_end, left_text, raise_if_broken

    seen = count + len(predictor.broken)
    if signal is not None and seen < source.count:
        if broken := broken_text(predictor.broken, count):
            fail(broken, label="warning")
        raise Interrupted(left_text(source.name, seen, source.count), signal)
    if early := early_end(source, seen):
        fail(early, label="warning")
    raise_if_broken(predictor.broken, count)


def _tell_earlier(files: "PredictionFiles") -> None:
    """Warns of files that another prediction has left in the folder."""
    from segkd.commands.display import fail

    if others := files.earlier():
        fail(
            f"beside these are files of an earlier prediction ({len(others)}, e.g. {others[0]}): "
            "what reads the folder reads both. Remove them, or give another folder: --out FOLDER",
            label="warning",
        )


def _predictor(
    student: str, overrides: list[str], batch_size: int, wanted: "Wanted", engine: str | None
) -> "Predictor":
    """The student on its device, with the evaluation settings of its configuration."""
    from segkd.commands.display import note_match
    from segkd.config.load import stored_evaluation
    from segkd.errors import ConfigError
    from segkd.inference.foreign_student import network_and_rest
    from segkd.inference.predictor import READ, Predictor
    from segkd.models.openvino_session import run_by
    from segkd.runtime import Runtime

    network, payload, rest = network_and_rest(student, overrides, READ, "`segkd predict`")
    note_match(network)
    run_by(network, engine, student)
    config = stored_evaluation(payload, rest)
    if wanted.probabilities and getattr(network, "returns_labels", False):
        raise ConfigError(
            f"--probabilities: argmax is baked into {student}, so it returns classes only. Export "
            "it with --bake normalize, or remove --probabilities"
        )
    runtime = Runtime.start(config.runtime.device, config.runtime.precision)
    return Predictor(
        network.to(runtime.device),
        config.eval,
        config.data.resize,
        batch_size,
        scores=wanted.probabilities is not None,
        autocast=runtime.autocast,
    )


def _require_some(wanted: "Wanted", source: "Source") -> None:
    """Raises ConfigError if no file of an image is wanted, so that all would be in vain."""
    from segkd.errors import ConfigError

    if wanted.overlays or wanted.labels or wanted.probabilities:
        return
    given = "--no-overlays" if source.kind == "video" else "--no-overlays --no-labels"
    raise ConfigError(
        f"{given}: nothing of {source.path} would be written. Add --labels or --probabilities npz"
    )


def _as_file(
    target: Path, source: "Source", wanted: "Wanted", asked: bool, *, is_folder: bool = False
) -> Path | None:
    """``target`` if it is an image or video file to write; None if it is a folder.

    ``is_folder``: it was given with a slash at its end.
    """
    from segkd.data.paired import IMAGE_ENDINGS
    from segkd.errors import ConfigError
    from segkd.inference.endings import ENDINGS, is_file_name, unknown_ending
    from segkd.inference.media import VIDEO_ENDINGS

    endings = ENDINGS[source.kind]
    ending = target.suffix.lower()
    if target.is_dir() or is_folder:
        return None
    if ending not in (*IMAGE_ENDINGS, *VIDEO_ENDINGS):
        if not is_file_name(target):
            return None
        raise ConfigError(
            f"--out {target}: this ending is unknown" + unknown_ending(target, endings)
        )
    if ending not in endings:
        known = f" or a file with the ending {endings[0]}" if endings else ""
        raise ConfigError(f"--out {target}: for {source.path} give a folder{known}")
    if asked or not wanted.overlays:
        raise ConfigError(
            f"--out {target} is for the overlay only. For label maps and probabilities give a "
            f"folder: --out {target.with_suffix('')}"
        )
    return target


def _default_name(source: "Source") -> str:
    path = source.path.resolve()
    return path.name if source.kind == "folder" else path.stem
