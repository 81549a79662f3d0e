"""`segkd lane`: lanes of a picture, a folder, or a video."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segkd.inference.lane_video import Drive
    from segkd.inference.media import Source


class Points(StrEnum):
    """Files of lane points."""

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
        help="Rows at the top that are left out. Default: as many as bring pictures to the shape "
        "of the training's."
    ),
]


def lane(
    student: Annotated[str, typer.Argument(metavar="CHECKPOINT|RUN|ONNX")],
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER|VIDEO")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder, or a file for the overlay of a picture or video. Default: lanes/NAME."
        ),
    ] = None,
    points: _Points = Points.json,
    attention: Annotated[
        bool, typer.Option("--attention", help="Attention maps of all stages beside the picture.")
    ] = False,
    stages: Annotated[
        str | None, typer.Option(help="Only these stages, e.g. stage3,stage4,stage5.")
    ] = None,
    smooth: Annotated[
        float, typer.Option(help="Share of the earlier frames of a video: 0 to below 1.")
    ] = 0.0,
    top: _Top = None,
) -> None:
    """Find the lanes of a picture, of all pictures of a folder, or of a video.

    Overlays show each lane with its identity and score, videos also the frames per second. A
    frame that cannot be read or answered is named and passed over, and the exit code is 2.

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
    """What came of it: pictures, rate, files, and what is missing."""
    from segkd.commands.display import fail, say
    from segkd.inference.broken import raise_if_broken

    count = drive.frames + len(drive.broken)
    say(f"{drive.frames} of {count} pictures, {drive.fps:.1f} per second in the detector")
    for path in drive.written:
        say(f"Written: {path}")
    if source.kind == "video" and count < source.count:
        fail(f"{source.path} ends after {count} of {source.count} frames", label="warning")
    raise_if_broken(drive.broken, drive.frames)
