"""Lanes of a frame as JSON: in one file for all frames, or one line per frame."""

import sys
from pathlib import Path
from typing import IO, Any

from segkd.errors import DataError
from segkd.files import make_folder
from segkd.inference.bird import RoadFacts
from segkd.inference.lane_files import number
from segkd.inference.lane_types import Detection, Lane
from segkd.inference.media import BrokenFrame, Frame
from segkd.texts import json_text

STDOUT = Path("-")


def frame_item(
    frame: Frame, found: Detection, facts: RoadFacts | None = None, dropped: int | None = None
) -> dict[str, Any]:
    """All that is known of a frame, as plain data; docs/lanes.md lists the keys.

    Args:
        frame: its name, number and time.
        found: its lanes.
        facts: of its lanes in metres, or None without a bird's-eye view.
        dropped: number of frames of a stream that were not looked at so far, or None.
    """
    item: dict[str, Any] = {"name": frame.name, "index": frame.index}
    if frame.time is not None:
        item["time"] = number(frame.time)
    if dropped is not None:
        item["dropped"] = dropped
    item["lanes"] = [_lane(lane) for lane in found.lanes]
    if facts is not None:
        for entry, side, bend in zip(item["lanes"], facts.sides, facts.curvatures, strict=True):
            entry["side_m"] = _digits(side)
            entry["curvature_per_m"] = _digits(bend)
        item["road"] = {
            "offset_m": _digits(facts.offset),
            "width_m": _digits(facts.width),
            "curvature_per_m": _digits(facts.curvature),
        }
    return item


def broken_item(frame: BrokenFrame | Frame, error: str) -> dict[str, Any]:
    """A frame without a detection."""
    return {"name": frame.name, "index": frame.index, "error": error}


class JsonLines:
    """A file with one JSON object per line; each line is complete as soon as it is written.

    Args:
        path: of the file, which is replaced; ``-``: standard output.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] = sys.stdout
        if path != STDOUT:
            try:
                make_folder(path.parent)
                self._file = path.open("w", encoding="utf-8")
            except OSError as error:
                raise DataError(f"--json {path}: {error.strerror or error}") from None

    def write(self, item: dict[str, Any]) -> None:
        """Appends an object."""
        self._file.write(json_text(item) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not sys.stdout:
            self._file.close()


def _lane(lane: Lane) -> dict[str, Any]:
    item: dict[str, Any] = {
        "slot": lane.slot,
        "name": lane.name,
        "score": number(lane.score),
        "points": [[number(x), number(y)] for x, y in lane.points.tolist()],
    }
    if lane.track is not None:
        item |= {"track": lane.track, "seen": lane.seen, "age": number(lane.age)}
    return item


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
