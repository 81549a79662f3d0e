"""Overlays of lanes on images, videos and streams, and lane points as files."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from segkd.data.writing import write_image
from segkd.errors import ConfigError, DataError
from segkd.files import write_text
from segkd.inference.bird import BirdView
from segkd.inference.broken import FAILURES, why
from segkd.inference.lane_detector import LaneDetector
from segkd.inference.lane_files import write_lines
from segkd.inference.lane_picture import overlay
from segkd.inference.lane_results import STDOUT, JsonLines, broken_item, frame_item
from segkd.inference.lane_target import LaneSource, Target
from segkd.inference.lane_track import LaneTracker
from segkd.inference.lane_types import Detection
from segkd.inference.media import BrokenFrame, Frame, Source
from segkd.inference.output_names import ambiguous_stems, refuse_replacing, stem_of
from segkd.inference.video_writer import VideoWriter
from segkd.inference.viewers import Viewer
from segkd.texts import json_text

Points = Literal["json", "lines", "both", "none"]

_RATE_MEMORY = 0.9  # weight of earlier frames in the frame rate shown
_LONGEST_GAP = 2.0  # seconds of a recorded stream that one picture may stand still


@dataclass
class Drive:
    """The outcome for a source.

    Attributes:
        frames: number of images with a prediction.
        seconds: that the detector took for them.
        broken: why images have no prediction, by name.
        written: overlay, or folder of overlays, and files of points.
        stopped: whether it was ended before the source was.
    """

    frames: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    stopped: bool = False

    @property
    def fps(self) -> float:
        """Images per second of the detector, without reading and drawing."""
        return self.frames / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Extras:
    """What is done besides detecting, drawing and writing.

    Attributes:
        tracker: follows the lanes of a video or stream.
        bird: measures lanes in metres, and shows the road from above.
        json: file that gets a line for each frame, or ``-`` for standard output.
        viewers: show the overlays.
        stop: asked after each frame whether to end; what is written until then is complete.
    """

    tracker: LaneTracker | None = None
    bird: BirdView | None = None
    json: Path | None = None
    viewers: Sequence[Viewer] = ()
    stop: Callable[[], bool] = lambda: False


def detect_files(
    detector: LaneDetector,
    source: LaneSource,
    target: Target | None,
    *,
    points: Points = "json",
    progress: Callable[[int, int], None] | None = None,
    extras: Extras | None = None,
) -> Drive:
    """Detects, draws and writes the lanes of all images of a source; broken images are skipped.

    In a video, the overlay before a broken frame is repeated. The video of a stream keeps its
    time: pictures are repeated in place of dropped frames.

    Args:
        detector: of the lanes.
        source: the images.
        target: where to write; None: nowhere, except as in ``extras``.
        points: files of lane points to write.
        progress: called with (done, total) images.
        extras: tracking, metres, viewers.

    Raises:
        DataError: no image of the source can be read and predicted.
        ConfigError: one file for all frames of a stream, which has no end; tracks or smoothing of
            images that do not follow each other; an overlay would replace an image of the source.
    """
    extras = extras or Extras()
    source = source if target is None else target.without_earlier(source)
    drive = Drive()
    with _Outputs(detector, source, target, points, extras) as outputs:
        detector.forget()
        if extras.tracker is not None:
            extras.tracker.forget()
        for frame, found, rate in _detections(detector, source, drive, progress):
            outputs.take(frame, found, rate, drive)
            if extras.stop() or outputs.closed:
                drive.stopped = True
                break
        drive.stopped |= extras.stop()
        if not drive.frames and not drive.stopped:
            ended = getattr(source, "ended", "") or "no image"
            first = next(iter(drive.broken.values()), f"{source.name}: {ended}")
            raise DataError(f"no image of {source.name} has a prediction; the first: {first}")
    outputs.finish(drive)
    return drive


class _Outputs:
    """All that is written and shown of a source.

    Raises:
        ConfigError: see ``detect_files``; nothing has been opened then.
    """

    def __init__(
        self,
        detector: LaneDetector,
        source: LaneSource,
        target: Target | None,
        points: Points,
        extras: Extras,
    ) -> None:
        self.detector, self.source, self.target = detector, source, target
        self.points, self.extras, self.closed = points, extras, False
        self._require_possible()
        self._items: list[dict[str, Any]] = []
        self._last: np.ndarray | None = None
        self._end = 0.0  # of what is recorded, in seconds of a stream
        self._ambiguous = ambiguous_stems(source.names if isinstance(source, Source) else ())
        self._moves = source.kind in ("video", "stream")
        self._writer: VideoWriter | None = None
        if self._moves and target is not None and target.overlay is not None:
            self._writer = VideoWriter(target.overlay, fps=source.fps)
        self._lines = JsonLines(extras.json) if extras.json is not None else None

    def _require_possible(self) -> None:
        source, extras = self.source, self.extras
        if source.kind == "stream" and self.points in ("json", "both"):
            raise ConfigError(
                f"--points {self.points}: {source.name} has no end, and this file is written at "
                "the end. Use --json lanes.jsonl, which gets a line for each frame"
            )
        following = {"--track": extras.tracker is not None, "--smooth": self.detector.smoothing > 0}
        option = next((option for option, given in following.items() if given), None)
        if option and source.kind not in ("video", "stream"):
            raise ConfigError(
                f"{option}: {source.name} is no video, and its images need not follow each other. "
                f"Leave {option} out, or give a video"
            )
        if self.target is None and self.points in ("lines", "both"):
            raise ConfigError(f"--points {self.points}: they need a folder. Add --out FOLDER")
        outputs = [] if self.target is None else self.target.overlays(source)
        if extras.json not in (None, STDOUT):
            self._require_apart(extras.json, outputs)
            outputs.append(extras.json)
        refuse_replacing(outputs, source.originals if isinstance(source, Source) else ())

    def _require_apart(self, lines: Path, outputs: list[Path]) -> None:
        """Refuses a file of `--json` that is written for something else, too."""
        target = self.target
        of_points = target is not None and self.points in ("json", "both")
        others = [*outputs, target.json()] if target is not None and of_points else outputs
        if lines.resolve() in [path.resolve() for path in others]:
            raise ConfigError(
                f"--json {lines}: this file is written for --out as well. Give it another name"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        stack = contextlib.ExitStack()  # one failure does not keep the others open
        for viewer in self.extras.viewers:
            stack.callback(viewer.close)
        if self._lines is not None:
            stack.callback(self._lines.close)
        if self._writer is not None:
            stack.push(self._writer)
        stack.__exit__(*failure)

    def take(
        self, frame: Frame | BrokenFrame, found: Detection | None, rate: float, drive: Drive
    ) -> None:
        """Writes and shows one frame; ``found`` is None for one that has no detection."""
        if found is None or frame.image is None:
            if self._lines is not None:
                self._lines.write(broken_item(frame, drive.broken[frame.name]))
        else:
            self._detected(frame, found, rate)
        if self._writer is not None and self._last is not None:
            for _ in range(self._copies(frame)):
                self._writer.write(self._last)

    def _detected(self, frame: Frame, found: Detection, rate: float) -> None:
        extras, shape = self.extras, frame.image.shape
        if extras.tracker is not None:
            found = extras.tracker.follow(found, shape[1], frame.time)
        facts = extras.bird.measure(found.lanes, shape) if extras.bird is not None else None
        dropped = getattr(self.source, "dropped", None)
        if self._lines is not None or self.points in ("json", "both"):
            item = frame_item(frame, found, facts, dropped)
            if self._lines is not None:
                self._lines.write(item)
            if self.points in ("json", "both"):
                self._items.append(item)
        if self.points in ("lines", "both") and self.target is not None:
            lanes = [lane.points for lane in found.lanes]
            write_lines(self.target.lines(self.source), self._entry(frame), lanes)
        if self.target is None and not extras.viewers:
            return
        shown = rate if self._moves else None
        picture = overlay(self.detector, frame.image, found, shown, bird=extras.bird, facts=facts)
        self._last = picture
        if self.target is not None and not self._moves:
            write_image(self.target.overlay or self.target.folder / frame.name, picture)
        for viewer in extras.viewers:
            self.closed |= not viewer.show(picture)

    def _copies(self, frame: Frame | BrokenFrame) -> int:
        """How often a picture is recorded: once, of a stream so often that its time is kept."""
        if self.source.kind != "stream":
            return 1
        now, step = getattr(frame, "time", None) or 0.0, 1 / self.source.fps
        if not self._writer or not self._writer.frames:
            self._end = now
        self._end = max(self._end, now - _LONGEST_GAP)
        copies = max(0, round((now + step - self._end) / step))
        self._end += copies * step
        return copies

    def _entry(self, frame: Frame) -> str:
        """A name whose ending is replaced; frames of a video have none, images of one stem keep it.

        An image has the name of its overlay, as annotations may lie beside the image itself.
        """
        if self.source.kind == "image" and self.target is not None and self.target.overlay:
            return self.target.overlay.name
        keeps_all = self._moves or stem_of(frame.name) in self._ambiguous
        return f"{frame.name}.jpg" if keeps_all else frame.name

    def finish(self, drive: Drive) -> None:
        """Writes the file of all frames, and notes what was written."""
        written: list[Path] = []
        if self._writer is not None:
            written += [self._writer.path] if self._writer.frames else []
        elif self.target is not None:
            written.append(self.target.overlay or self.target.folder)
        if self.target is not None and self.points in ("lines", "both"):
            written.append(self.target.lines(self.source))
        if self.target is not None and self.points in ("json", "both"):
            facts = {"source": self.source.name, "slots": list(self.detector.names)}
            content = {**facts, "frames": self._items, "broken": drive.broken}
            write_text(self.target.json(), json_text(content) + "\n")
            written.append(self.target.json())
        if self.extras.json not in (None, STDOUT):
            written.append(self.extras.json)
        drive.written = list(dict.fromkeys(written))


def _detections(
    detector: LaneDetector,
    source: LaneSource,
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
