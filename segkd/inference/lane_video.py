"""Overlays of lanes on an image, a folder of images, or a video, and lane points as files."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segkd.data.paired import IMAGE_ENDINGS
from segkd.data.writing import write_image
from segkd.errors import ConfigError, DataError
from segkd.files import write_text
from segkd.inference.broken import FAILURES, why
from segkd.inference.lane_detector import Detection, LaneDetector
from segkd.inference.lane_files import number, write_lines
from segkd.inference.media import VIDEO_ENDINGS, BrokenFrame, Frame, Source, VideoWriter
from segkd.texts import json_text
from segkd.viz.lane_overlay import draw_lanes, heat, side_panels, write_line

Points = Literal["json", "lines", "both", "none"]

_RATE_MEMORY = 0.9  # weight of earlier frames in the frame rate shown


@dataclass(frozen=True)
class Target:
    """Where to write results.

    Attributes:
        folder: of all files except an overlay with its own name.
        overlay: the file for the overlay of an image or video; None for a folder of images.
    """

    folder: Path
    overlay: Path | None

    @classmethod
    def of(cls, out: Path, source: Source) -> "Target":
        """The target for an ``out`` that is a folder, or a file for one overlay.

        Raises:
            ConfigError: a file whose ending does not fit the source.
        """
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
        """The folder of ``.lines.txt`` files; a video has its own."""
        if source.kind != "video" or self.overlay is None:
            return self.folder
        return self.folder / f"{self.overlay.stem}_lines"

    def json(self) -> Path:
        """The file of lane points."""
        return self.folder / (f"{self.overlay.stem}.lanes.json" if self.overlay else "lanes.json")


@dataclass
class Drive:
    """The outcome for a source.

    Attributes:
        frames: number of images with a prediction.
        seconds: that the detector took for them.
        broken: why images have no prediction, by name.
        written: overlay, or folder of overlays, and files of points.
    """

    frames: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Images per second of the detector, without reading and drawing."""
        return self.frames / self.seconds if self.seconds else 0.0


def detect_files(
    detector: LaneDetector,
    source: Source,
    target: Target,
    *,
    points: Points = "json",
    progress: Callable[[int, int], None] | None = None,
) -> Drive:
    """Detects, draws and writes the lanes of all images of a source; broken images are skipped.

    In a video, the overlay before a broken frame is repeated.

    Args:
        detector: of the lanes.
        source: the images.
        target: where to write.
        points: files of lane points to write.
        progress: called with (done, total) images.

    Raises:
        DataError: no image of the source can be read and predicted.
    """
    detector.forget()
    drive = Drive()
    items: list[dict[str, Any]] = []
    writer = None
    if source.kind == "video" and target.overlay is not None:
        writer = VideoWriter(target.overlay, fps=source.fps)
    with writer or nullcontext():
        last: np.ndarray | None = None
        for frame, found, rate in _detections(detector, source, drive, progress):
            if found is not None and frame.image is not None:
                last = overlay(detector, frame.image, found, rate if writer else None)
                items.append(_item(frame, found))
                if points in ("lines", "both"):
                    lanes = [lane.points for lane in found.lanes]
                    write_lines(target.lines(source), _entry(frame, source), lanes)
                if writer is None:
                    write_image(target.overlay or target.folder / frame.name, last)
            if writer is not None and last is not None:
                writer.write(last)
        if not drive.frames:
            first = next(iter(drive.broken.values()), f"{source.path}: no image")
            raise DataError(f"no image of {source.path} has a prediction; the first: {first}")
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
    """An image with its lanes, their names and scores, and attention maps on the right.

    Args:
        detector: that detected the lanes.
        image: (H, W, 3) uint8 RGB.
        found: the lanes.
        rate: frames per second to write into the image, or None.

    Returns:
        (H, width, 3) uint8 RGB.
    """
    by_slot = {lane.slot: lane for lane in found.lanes}
    slots = range(len(detector.names))
    drawn_as_pixels = found.pixels is not None  # lanes without identity have no name and no score
    lanes = [
        by_slot[slot].points if slot in by_slot and not drawn_as_pixels else None for slot in slots
    ]
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
) -> Iterator[tuple[Frame | BrokenFrame, Detection | None, float]]:
    """Each image, its detection (None for a broken one), and the recent frames per second."""
    recent: float | None = None
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
    """A name whose ending can be replaced; frames of a video have none."""
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
