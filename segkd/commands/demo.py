"""`segkd demo`: something to see before there is any data."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segkd.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from segkd.commands.display import Progress

demo = typer.Typer(
    help="Draw a video, and run a student on it.", no_args_is_help=True, rich_markup_mode=None
)

_SMALLEST, _LARGEST = 32, 4096  # pixels of a side
_SHIPPED, _NONE = "pretrained:lanes_fpn_efficientnet_lite0", "none"


@demo.callback()
def _group() -> None:
    pass


@demo.command(name="lanes", short_help="Draw a drive, and detect its lanes.")
def lanes(
    out: Annotated[Path, typer.Option(help="Folder of the videos.")] = Path("demo"),
    run: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT|RUN|ONNX|none", help="Detects the lanes; none: only draw the drive."
        ),
    ] = _SHIPPED,
    seconds: Annotated[float, typer.Option(help="Length of the drive.", min=1, max=600)] = 60.0,
    seed: Annotated[int, typer.Option(help="Another seed, another road.", min=0)] = 0,
    size: Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Of the video.")] = "360x640",
    fps: Annotated[float, typer.Option(help="Frames per second.", min=1, max=60)] = 15.0,
) -> None:
    """Draw a drive along a highway, with traffic and a change of lanes, and find its lanes.

    The drive is drive.mp4. In lanes.mp4 beside it are the lanes that the network found which ships
    with segkd, or another one (--run), as curves that are followed from frame to frame.

    \b
    Example: segkd demo lanes --seconds 20
             segkd demo lanes --run runs/culane/enet_sad --out demo --seed 3
    """
    from segkd.commands.display import progress, say
    from segkd.commands.lane import detect_video, video_detector

    wanted = _size(size)
    detector = None if run == _NONE else video_detector(run)  # before the drive, which takes long
    video = out.expanduser() / "drive.mp4"
    with progress(f"draw {video}") as advance:
        written = draw_drive(video, seconds, seed, wanted, fps, advance)
    say(f"Written: {written}")
    if detector is None:
        drive = shlex.quote(str(written))
        say(f"Detect its lanes: segkd lane RUN {drive} --out lanes.mp4 --fit poly --track")
        return
    detect_video(detector, written, written.with_name("lanes.mp4"))


def draw_drive(
    path: Path,
    seconds: float,
    seed: int,
    size: tuple[int, int],
    fps: float,
    progress: "Progress",
) -> Path:
    """Draws a drive into a video.

    Args:
        path: of the video.
        seconds: its length.
        seed: of the road.
        size: (height, width) of the frames.
        fps: frames per second.
        progress: called with (done, total) frames.

    Returns:
        The video; its ending becomes .avi where OpenCV cannot write the requested one.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM; the video holds what was drawn until then.
    """
    from segkd.inference.stopping import stoppable
    from segkd.inference.video_writer import VideoWriter
    from segkd.synthetic.roads.drive import Drive

    total = max(1, round(seconds * fps))
    drive = Drive(seed, seconds)
    with stoppable() as stop:
        with VideoWriter(path, fps=fps) as video:
            for number in range(total):
                video.write(drive.image(number / fps, size))
                progress(number + 1, total)
                if stop():
                    break
        if stop.number:
            done = (
                f"{video.path} holds the first {number + 1} of {total} frames. The same command "
                "draws all of them anew"
            )
            raise Interrupted(done, stop.number)
    return video.path


def _size(text: str) -> tuple[int, int]:
    """Height and width of ``360x640``."""
    parts = text.lower().split("x")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        height, width = int(parts[0]), int(parts[1])
        if all(_SMALLEST <= side <= _LARGEST for side in (height, width)):
            return height, width
    raise ConfigError(
        f"--size: got '{text}', expected height and width from {_SMALLEST} to {_LARGEST} pixels, "
        "e.g. 360x640"
    )
