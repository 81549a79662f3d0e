"""Lanes over an image, a folder of images, or a video, and their points as files."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkd.data.paired import IMAGE_ENDINGS
from segkd.errors import ConfigError, DataError
from segkd.files import write_text
from segkd.inference.broken import FAILURES, why
from segkd.inference.lane_detector import Detection, LaneDetector
from segkd.inference.lane_files import number, write_lines
from segkd.inference.media import VIDEO_ENDINGS, Frame, Source, VideoWriter
from segkd.inference.prediction_files import write_picture
from segkd.texts import json_text
from segkd.viz.lane_overlay import draw_lanes, heat, side_panels, write_line

Points = Literal["json", "lines", "both", "none"]

_RATE_MEMORY = 0.9  # of the frames per second that are shown


@dataclass(frozen=True)
class Target:
    """Where results go.

    Attributes:
        folder: of everything but an overlay with a name of its own.
        overlay: the file for the overlay of an image or video; None for a folder of images.
    """

    folder: Path
    overlay: Path | None

    @classmethod
    def of(cls, out: Path, source: Source) -> "Target":
        """``out`` is a file for one overlay, or a folder. Raises ConfigError if it cannot be."""
        endings = {"image": IMAGE_ENDINGS, "video": VIDEO_ENDINGS, "folder": ()}[source.kind]
        ending = out.suffix.lower()
        if ending in endings and not out.is_dir():
            return cls(out.parent, out)
        if (ending in (*IMAGE_ENDINGS, *VIDEO_ENDINGS) and not out.is_dir()) or out.is_file():
            kind = {"image": "an image", "video": "a video", "folder": "a folder of images"}
            wanted = "a folder" if source.kind == "folder" else f"a folder or a file {endings[0]}"
            raise ConfigError(f"--out {out}: {source.path} is {kind[source.kind]}. Give {wanted}")
        if source.kind == "folder":
            return cls(out, None)
        name = f"{source.path.stem}.mp4" if source.kind == "video" else source.path.name
        return cls(out, out / name)

    def lines(self, source: Source) -> Path:
        """The folder of ``.lines.txt`` files; a video has one of its own."""
        own = source.kind == "video"
        return self.folder / f"{self.overlay.stem}_lines" if own else self.folder

    def json(self) -> Path:
        return self.folder / (f"{self.overlay.stem}.lanes.json" if self.overlay else "lanes.json")


@dataclass
class Drive:
    """What came of a source.

    Attributes:
        frames: number of pictures that were answered.
        seconds: that the detector took for them.
        broken: what could not be read, by name.
        written: overlay, or folder of overlays, and files of points.
    """

    frames: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Pictures per second of the detector; reading and drawing not counted."""
        return self.frames / self.seconds if self.seconds else 0.0


def detect_files(
    detector: LaneDetector,
    source: Source,
    target: Target,
    *,
    points: Points = "json",
    progress: Callable[[int, int], None] | None = None,
) -> Drive:
    """Draws and writes the lanes of all pictures of a source; what is broken is passed over.

    In the place of a broken frame of a video the overlay before it is shown again.

    Raises:
        DataError: nothing of the source can be read or answered.
    """
    detector.forget()
    drive, items = Drive(), []
    is_video = source.kind == "video"
    writer = VideoWriter(target.overlay, fps=source.fps) if is_video else None
    with writer or nullcontext():
        last = None
        for frame, found, rate in _detections(detector, source, drive, progress):
            if found is not None:
                last = overlay(detector, frame.image, found, rate if is_video else None)
                items.append(_item(frame, found))
                if points in ("lines", "both"):
                    lanes = [lane.points for lane in found.lanes]
                    write_lines(target.lines(source), _entry(frame, source), lanes)
            if writer is not None and last is not None:
                writer.write(last)
            elif found is not None:
                write_picture(target.overlay or target.folder / frame.name, last)
        if not drive.frames:
            first = next(iter(drive.broken.values()), f"{source.path}: no picture")
            raise DataError(f"nothing of {source.path} can be answered; the first: {first}")
    drive.written.append(writer.path if writer else target.overlay or target.folder)
    if points in ("lines", "both"):
        drive.written.append(target.lines(source))
    if points in ("json", "both"):
        facts = {"source": str(source.path), "slots": list(detector.names), "frames": items}
        write_text(target.json(), json_text(facts | {"broken": drive.broken}) + "\n")
        drive.written.append(target.json())
    return drive


def overlay(
    detector: LaneDetector, image: np.ndarray, found: Detection, rate: float | None = None
) -> np.ndarray:
    """A picture with its lanes, their names and scores; attention maps stand at the right.

    Args:
        rate: frames per second to be written, or None.
    """
    by_slot = {lane.slot: lane for lane in found.lanes}
    slots = range(len(detector.names))
    alone = found.pixels is not None  # lines without identity have no name and no score
    lanes = [by_slot[slot].points if slot in by_slot and not alone else None for slot in slots]
    names = [
        f"{lane.name} {lane.score:.2f}" if (lane := by_slot.get(slot)) else "" for slot in slots
    ]
    drawn = draw_lanes(image, lanes, detector.palette, names, pixels=found.pixels)
    if rate is not None:
        write_line(drawn, f"{rate:.1f} fps")
    seen = image[found.top :]
    panels = {stage: heat(seen, attention) for stage, attention in found.attention.items()}
    return side_panels(drawn, panels)


def _detections(
    detector: LaneDetector,
    source: Source,
    drive: Drive,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Frame, Detection | None, float]]:
    """Each frame, what was found (None for a broken one), and the recent frames per second."""
    recent = None
    for seen, frame in enumerate(source.frames(), 1):
        found = None
        if frame.image is None:
            drive.broken[frame.name] = frame.error
        else:
            begin = time.perf_counter()
            try:
                found = detector.detect(frame.image)
            except FAILURES as error:
                drive.broken[frame.name] = why(error, frame.name)
            else:
                seconds = time.perf_counter() - begin
                recent = seconds if recent is None else _RATE_MEMORY * recent + 0.1 * seconds
                drive.frames, drive.seconds = drive.frames + 1, drive.seconds + seconds
        yield frame, found, 1 / max(recent or 1.0, 1e-9)
        if progress is not None:
            progress(seen, max(seen, source.count))


def _entry(frame: Frame, source: Source) -> str:
    """A name whose suffix can be replaced; frames of a video have none."""
    return f"{frame.name}.jpg" if source.kind == "video" else frame.name


def _item(frame: Frame, found: Detection) -> dict[str, Any]:
    lanes = [
        {
            "slot": lane.slot,
            "name": lane.name,
            "score": number(lane.score),
            "points": [[number(x), number(y)] for x, y in lane.points.tolist()],
        }
        for lane in found.lanes
    ]
    return {"name": frame.name, "index": frame.index, "lanes": lanes}
