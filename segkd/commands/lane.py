"""`segkd lane`: detects lanes in an image, a folder, or a video."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segkd.inference.lane_video import Drive
    from segkd.inference.media import Source


class Points(StrEnum):
    """Which files of lane points to write."""

    json = "json"
    lines = "lines"
    both = "both"
    none = "none"


_Points = Annotated[
    Points, typer.Option(help="json: one file with slots and scores; lines: CULane's .lines.txt.")
]
_Top = Annotated[
    int | None,
    typer.Option(
        help="Rows to cut at the top. Default: as many as give images the aspect ratio of the "
        "training images."
    ),
]


def lane(
    student: Annotated[str, typer.Argument(metavar="CHECKPOINT|RUN|ONNX")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER|VIDEO")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder, or a file for the overlay of an image or video. Default: lanes/NAME."
        ),
    ] = None,
    points: _Points = Points.json,
    attention: Annotated[
        bool, typer.Option("--attention", help="Attention maps of all stages beside the image.")
    ] = False,
    stages: Annotated[
        str | None, typer.Option(help="Only these stages, e.g. stage3,stage4,stage5.")
    ] = None,
    smooth: Annotated[
        float, typer.Option(help="Weight of earlier frames of a video: 0 to below 1.")
    ] = 0.0,
    top: _Top = None,
) -> None:
    """Detect the lanes of an image, of all images of a folder, or of a video.

    Overlays show each lane with its identity and score, videos also the frames per second. Frames
    that cannot be read or processed are reported and skipped, and the exit code is 2.

    \b
    Example: segkd lane runs/culane/enet_sad drive.mp4 --out lanes.mp4 --smooth 0.5
             segkd lane model.onnx frames/ --out found --points lines
             segkd lane runs/culane/enet_sad road.jpg --attention eval.lanes.threshold=0.4
    """
    from segkd.commands.display import progress
    from segkd.inference.lane_detector import LaneDetector
    from segkd.inference.lane_video import Target, detect_files
    from segkd.inference.media import open_source

    opened = open_source(source)
    target = Target.of((out or Path("lanes") / source.stem).expanduser(), opened)
    wanted = tuple(stages.split(",")) if stages else (("all",) if attention else ())
    detector = LaneDetector(
        student, overrides=overrides or [], smoothing=smooth, stages=wanted, top=top
    )
    with progress(f"lane {source}") as advance:
        drive = detect_files(detector, opened, target, points=points.value, progress=advance)
    _tell(drive, opened)


def _tell(drive: "Drive", source: "Source") -> None:
    """Prints the number of images, the rate, the files, and what is missing."""
    from segkd.commands.display import fail, say
    from segkd.inference.broken import raise_if_broken

    count = drive.frames + len(drive.broken)
    say(f"{drive.frames} of {count} images, {drive.fps:.1f} per second in the detector")
    for path in drive.written:
        say(f"Written: {path}")
    if source.kind == "video" and count < source.count:
        fail(f"{source.path} ends after {count} of {source.count} frames", label="warning")
    raise_if_broken(drive.broken, drive.frames)
