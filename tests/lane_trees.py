"""Tiny lane sets on disk."""

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (60, 160)
CENTRES = (-20, 50, 110, 180)  # where the four lanes meet the lowest row
VANISHING = (80, 10)


def lane(foot: float, *, top: float = 20.0, bottom: float = 59.0, points: int = 6) -> np.ndarray:
    """(n, 2) points from bottom to top on the line from (foot, 59) to the vanishing point."""
    y = np.linspace(bottom, top, points)
    x = foot + (VANISHING[0] - foot) * (59 - y) / (59 - VANISHING[1])
    return np.stack([x, y], axis=1).round(2)


def put_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))


def put_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)


def put_lines(path: Path, lanes: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(f"{v:g}" for v in one.ravel()) + " \n" for one in lanes))


def put_frame(root: Path, entry: str, feet: tuple[float, ...] = CENTRES) -> None:
    """An image of a CULane tree and its lane file."""
    put_image(root / entry)
    put_lines((root / entry).with_suffix(".lines.txt"), [lane(foot) for foot in feet])


def put_list(root: Path, name: str, lines: list[str]) -> None:
    (root / "list").mkdir(parents=True, exist_ok=True)
    (root / "list" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "list" / name).write_text("\n".join(lines) + "\n")


def tusimple_item(raw_file: str, lanes: list[np.ndarray], rows: range) -> dict:
    """A line of a label file: x at each row, -2 where a lane is not."""
    xs = []
    for one in lanes:
        order = np.argsort(one[:, 1])
        x = np.interp(rows, one[order, 1], one[order, 0], left=-2, right=-2)
        x[(x < 0) | (x > SIZE[1] - 1)] = -2
        xs.append([round(value) for value in x.tolist()])
    return {"lanes": xs, "h_samples": list(rows), "raw_file": raw_file}


def put_labels(path: Path, items: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
