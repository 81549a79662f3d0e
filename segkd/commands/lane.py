"""`segkd lane`: detects lanes in an image, a folder, a video, or what a camera sees."""

import os
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segkd.errors import ConfigError, DataError, Interrupted

if TYPE_CHECKING:
    from segkd.inference.lane_detector import LaneDetector
    from segkd.inference.lane_target import LaneSource, Target
    from segkd.inference.lane_video import Drive, Extras
    from segkd.inference.stopping import Stop
    from segkd.inference.viewers import Viewer


class Points(StrEnum):
    """Which files of lane points to write."""

    json = "json"
    lines = "lines"
    both = "both"
    none = "none"


class Fit(StrEnum):
    """Curves that replace the points of lanes."""

    poly = "poly"
    spline = "spline"


_Out = Annotated[
    str | None,
    typer.Option(
        help="Folder, or a file for the overlay of an image or video. Default: lanes/NAME; of a "
        "camera nothing is recorded without it."
    ),
]
_Points = Annotated[
    Points | None,
    typer.Option(
        help="json (default): one file with slots and scores; lines: CULane's .lines.txt."
    ),
]
_Top = Annotated[
    int | None,
    typer.Option(
        help="Rows to cut at the top. Default: as many as give images the aspect ratio of the "
        "training images, times data.squeeze.",
        min=0,
    ),
]
_Attention = Annotated[
    bool, typer.Option("--attention", help="Attention maps of all stages beside the image.")
]
_Stages = Annotated[str | None, typer.Option(help="Only these stages, e.g. stage3,stage4,stage5.")]
_Smooth = Annotated[float, typer.Option(help="Weight of earlier frames' maps.", min=0, max=0.99)]
_Fit = Annotated[
    Fit | None,
    typer.Option(help="Curves instead of points: a cubic, or a spline for winding roads."),
]
_Track = Annotated[
    bool, typer.Option("--track", help="Follow lanes: numbers that stay, steady points.")
]
_Bird = Annotated[
    Path | None,
    typer.Option(metavar="ROAD.yaml", help="Four points of the road: metres, a view from above."),
]
_Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="A line of JSON per frame; -: stdout.")
]
_Show = Annotated[bool, typer.Option("--show", help="Show overlays in a window; q closes it.")]
_Serve = Annotated[
    int | None, typer.Option(metavar="PORT", help="Show overlays at http://127.0.0.1:PORT.")
]
_Engine = Annotated[
    str | None,
    typer.Option(help="Of an ONNX file: onnxruntime (default), openvino, openvino-bf16."),
]
_RECONNECT = 60.0  # seconds without --reconnect
_Reconnect = Annotated[
    float | None,
    typer.Option(
        min=0,
        help=f"Seconds for which a camera that breaks off is tried again. Default: {_RECONNECT:g}.",
    ),
]


def lane(
    student: Annotated[str, typer.Argument(metavar="CHECKPOINT|RUN|ONNX")],
    source: Annotated[str, typer.Argument(metavar="IMAGE|FOLDER|VIDEO|CAMERA|URL")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    out: _Out = None,
    points: _Points = None,
    attention: _Attention = False,
    stages: _Stages = None,
    smooth: _Smooth = 0.0,
    top: _Top = None,
    fit: _Fit = None,
    track: _Track = False,
    bird: _Bird = None,
    json: _Json = None,
    show: _Show = False,
    serve: _Serve = None,
    reconnect: _Reconnect = None,
    engine: _Engine = None,
) -> None:
    """Detect the lanes of an image, of all images of a folder, of a video, or of a camera.

    Overlays show each lane with its identity and score, videos also the frames per second. Frames
    that cannot be read or processed are reported and skipped, and the exit code is 2.

    A camera is a number (0) or an address (rtsp://, http://). Its newest frame is taken each time;
    others are dropped and counted. Ctrl-C ends it, and all files are complete.

    \b
    Example: segkd lane runs/culane/enet_sad drive.mp4 --out lanes.mp4 --fit poly --track
             segkd lane model.onnx frames/ --out found --points lines
             segkd lane runs/culane/enet_sad road.jpg --attention eval.lanes.threshold=0.4
             segkd lane model.onnx rtsp://camera/1 --serve 8080 --bird road.yaml --json lanes.jsonl
    Weights of another program: segkd lane FILE IMAGE student.arch=erfnet data.name=culane
    """
    from segkd.commands.option_keys import with_option
    from segkd.inference.bird import BirdView
    from segkd.inference.lane_detector import LaneDetector
    from segkd.inference.lane_track import LaneTracker
    from segkd.inference.lane_video import Extras
    from segkd.inference.stopping import stoppable
    from segkd.models.openvino_session import run_by
    from segkd.runtime import limit_threads

    limit_threads()
    keys = with_option(overrides or [], "--fit", "eval.lanes.fit", fit.value if fit else None)
    wanted = tuple(stages.split(",")) if stages else (("all",) if attention else ())
    view = BirdView.read(bird) if bird else None
    with stoppable() as stop, ExitStack() as viewers:
        opened = _opened(source, stop, reconnect)
        target, kind = _target(opened, out, points, shown=show or serve is not None or bool(json))
        detector = LaneDetector(student, overrides=keys, smoothing=smooth, stages=wanted, top=top)
        run_by(detector.network, engine, student)
        extras = Extras(
            tracker=LaneTracker() if track else None,
            bird=view,
            json=json.expanduser() if json else None,
            viewers=_viewers(show, serve, opened.name, viewers),
            stop=stop,
        )
        _run(detector, opened, target, kind, extras)


def video_detector(student: str) -> "LaneDetector":
    """Finds lanes as curves. Raises SegKDError for a student that is missing or has no lanes."""
    from segkd.inference.lane_detector import LaneDetector
    from segkd.runtime import limit_threads

    limit_threads()
    return LaneDetector(student, overrides=["eval.lanes.fit=poly"])


def detect_video(detector: "LaneDetector", video: Path, out: Path) -> None:
    """Detects the lanes of a video, as curves that are followed; ``out`` is the overlay."""
    from segkd.inference.lane_target import Target
    from segkd.inference.lane_track import LaneTracker
    from segkd.inference.lane_video import Extras
    from segkd.inference.media import open_source
    from segkd.inference.stopping import stoppable

    with stoppable() as stop:
        opened = open_source(video)
        extras = Extras(tracker=LaneTracker(), stop=stop)
        _run(detector, opened, Target.of(out, opened), Points.json, extras)


def _run(
    detector: "LaneDetector",
    source: "LaneSource",
    target: "Target | None",
    points: Points,
    extras: "Extras",
) -> None:
    from segkd.commands.display import note_match, progress
    from segkd.inference.lane_results import STDOUT
    from segkd.inference.lane_video import detect_files

    note_match(detector.network)
    with progress(f"lane {source.name}") as advance:
        drive = detect_files(
            detector, source, target, points=points.value, progress=advance, extras=extras
        )
    signal = getattr(extras.stop, "number", 0)
    _tell(drive, source, to_stdout=extras.json == STDOUT, signal=signal)


def _opened(source: str, stop: "Stop", reconnect: float | None) -> "LaneSource":
    """The images of a file, a folder, a camera or an address.

    Raises:
        ConfigError: ``reconnect`` for anything but the last two.
    """
    from segkd.inference.media import open_source, shown
    from segkd.inference.stream import is_stream, meant_address, open_stream

    if address := meant_address(source):
        raise DataError(f"there is no such file or folder. Did you mean {shown(address)}?")
    if is_stream(source):
        seconds = _RECONNECT if reconnect is None else reconnect
        return open_stream(source, reconnect=seconds, stop=stop, tell=_note)
    if reconnect is not None:
        raise ConfigError(
            f"--reconnect is for cameras and addresses, and {source} is neither: leave it out"
        )
    return open_source(source)


def _target(
    source: "LaneSource", out: str | None, points: Points | None, *, shown: bool
) -> "tuple[Target | None, Points]":
    """Where to write, and which files of points; ``shown``: results go elsewhere, too."""
    from segkd.inference.lane_target import Target

    if source.kind != "stream":
        path = os.path.expanduser(out or f"lanes/{_default_name(source)}/")
        return Target.of(path, source), points or Points.json
    if out is None and not shown:
        raise ConfigError(
            f"{source.name} has no end, so say what to do with its lanes: --serve 8080 shows them "
            "in a browser here, --show in a window, --json lanes.jsonl and --out lanes.mp4 write"
        )
    target = Target.of(os.path.expanduser(out), source) if out else None
    return target, points or Points.none


def _default_name(source: "LaneSource") -> str:
    """A folder's whole name, since a dot in it begins no ending; of a file that before it."""
    path = source.path.resolve()
    return path.name if source.kind == "folder" else path.stem


def _viewers(show: bool, serve: int | None, title: str, stack: ExitStack) -> "list[Viewer]":
    """A window, a server, or both; closed with the stack if nobody else does."""
    from segkd.inference.viewers import Server, Window

    viewers: list[Viewer] = []
    if show:
        viewers.append(Window(title))
    if serve is not None:
        if serve == 0:  # taken as any free port, which nobody knows before
            raise ConfigError("--serve: got 0, expected a port, 1 to 65535, e.g. 8080")
        server = Server(serve)
        stack.callback(server.close)
        _note(f"lanes at {server.address}")
        viewers.append(server)
    return viewers


def _times(source: "LaneSource") -> str:
    breaks = getattr(source, "breaks", 0)
    return "once" if breaks == 1 else f"{breaks} times"


def _note(text: str) -> None:
    from segkd.commands.display import fail

    fail(text, label="note")


def _tell(
    drive: "Drive", source: "LaneSource", *, to_stdout: bool = False, signal: int = 0
) -> None:
    """Prints the number of images, the rate, the files, and what is missing.

    Raises:
        Interrupted: by ``signal`` before the last image; a camera, which has none, ends so.
        DataError: images were passed over, or a camera broke off.
    """
    from segkd.commands.display import fail, say
    from segkd.inference.broken import broken_text, early_end, left_text, raise_if_broken

    tell = _note if to_stdout else say  # standard output is for JSON alone
    count = drive.frames + len(drive.broken)
    dropped = getattr(source, "dropped", None)
    note = "" if dropped is None else f"; {dropped} frames dropped, {_times(source)} broken off"
    tell(f"{drive.frames} of {count} images, {drive.fps:.1f} per second in the detector{note}")
    for path in drive.written:
        tell(f"Written: {path}")
    if signal and count < source.count:
        if broken := broken_text(drive.broken, drive.frames):
            fail(broken, label="warning")
        raise Interrupted(left_text(source.name, count, source.count), signal)
    if not drive.stopped and (early := early_end(source, count)):
        fail(early, label="warning")
    raise_if_broken(drive.broken, drive.frames)
    ended = getattr(source, "ended", "")
    if ended:
        raise DataError(f"{source.name} {ended}. All that was written is complete")
