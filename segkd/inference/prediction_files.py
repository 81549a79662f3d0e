"""What `segkd predict` writes: overlays, label maps, probabilities, a legend and the classes."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segkd.data.palette import distinct
from segkd.errors import ConfigError
from segkd.files import write_atomic, write_text
from segkd.inference.label_files import Format, label_encoder
from segkd.inference.prediction_record import RECORD, record
from segkd.viz.legend import legend_strip, with_legend
from segkd.viz.overlay import blend

_LEGEND_WIDTH = 720
_ROOM = 40  # classes that legends of several pictures have room for, so that all are of one height
_JPEG = (".jpg", ".jpeg")
_QUALITY = 92


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        overlays, labels: whether pictures of them are.
        probabilities: ``npz``: an array (K, H, W) float16; ``png``: a grey picture per class.
        format: of label maps.
        legend: below overlays.
        strength: share of the class colours in overlays.
    """

    overlays: bool = True
    labels: bool = True
    probabilities: Literal["npz", "png"] | None = None
    format: Format = "labels"
    legend: bool = True
    strength: float = 0.6


class PredictionFiles:
    """Writes what was predicted, each file in whole or not at all.

    ``overlays/``, ``labels/`` and ``probabilities/`` keep the sub-folders of the source;
    ``classes.json``, ``format.json`` (what label maps hold) and ``legend.png`` stand beside them.

    Args:
        folder: of the files.
        classes: K names.
        palette: (K, 3) uint8 RGB.
        names: of all pictures, if they are known: where two differ by their ending only, files
            keep it.

    Raises:
        ConfigError: the classes do not fit the format.
    """

    def __init__(
        self,
        folder: Path,
        wanted: Wanted,
        classes: Sequence[str],
        palette: np.ndarray,
        names: Sequence[str] = (),
    ) -> None:
        self.folder, self.wanted = folder, wanted
        self.classes, self.palette = tuple(classes), palette
        self._encode = label_encoder(wanted.format, classes, palette)
        self._seen = distinct(palette)  # in overlays; label maps have the official colours
        self._alone = len(names) == 1
        stems = [_stem(name) for name in names]
        self._ambiguous = {stem for stem in stems if stems.count(stem) > 1} if names else set()

    def write_facts(self) -> None:
        """The classes with ids and colours, as JSON and as a picture."""
        rows = [
            {"id": number, "name": name, "color": self.palette[number].tolist()}
            for number, name in enumerate(self.classes)
        ]
        write_text(self.folder / "classes.json", json.dumps(rows, indent=2) + "\n")
        if self.wanted.labels:
            write_text(self.folder / RECORD, record(self.wanted.format, self.classes))
        entries = tuple(zip(self.classes, map(tuple, self._seen.tolist()), strict=True))
        write_picture(self.folder / "legend.png", legend_strip(entries, _LEGEND_WIDTH))

    def write(
        self, name: str, image: np.ndarray, label: np.ndarray, scores: np.ndarray | None = None
    ) -> None:
        """The files of one picture.

        Args:
            name: its path below the source.
            image: (H, W, 3) uint8 RGB.
            label: (H, W) class ids.
            scores: (K, H, W) probabilities, if they are wanted.
        """
        stem = name if _stem(name) in self._ambiguous else _stem(name)
        if self.wanted.overlays:
            write_picture(self.folder / "overlays" / f"{stem}.jpg", self.overlay(image, label))
        if self.wanted.labels:
            data = self._encode(label)
            write_atomic(self.folder / "labels" / f"{stem}.png", lambda file: file.write(data))
        if scores is not None:
            self._write_scores(self.folder / "probabilities" / stem, scores)

    def overlay(
        self, image: np.ndarray, label: np.ndarray, ids: Sequence[int] | None = None
    ) -> np.ndarray:
        """Class colours over the picture, above their legend.

        Args:
            ids: classes of the legend; None: those that occur.
        """
        mixed = blend(image, label, self._seen, self.wanted.strength)
        if not self.wanted.legend:
            return mixed
        shown = np.unique(label).tolist() if ids is None else ids
        room = 0 if self._alone else min(len(self.classes), _ROOM)
        return with_legend(mixed, shown, self.classes, self._seen, room)

    def _write_scores(self, path: Path, scores: np.ndarray) -> None:
        if self.wanted.probabilities == "npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, probabilities=scores.astype(np.float16))
            target = path.with_name(path.name + ".npz")
            write_atomic(target, lambda file: file.write(buffer.getvalue()))
            return
        for number, plane in enumerate(scores):
            word = re.sub(r"\W+", "_", self.classes[number])
            write_picture(path / f"{number:03d}_{word}.png", (255 * plane).round().astype(np.uint8))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB or (H, W) grey, by the ending of ``path``, atomically.

    Raises ConfigError for an ending that OpenCV cannot write.
    """
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if path.suffix.lower() in _JPEG else []
    turned = picture[..., ::-1] if picture.ndim == 3 else picture
    try:
        data = cv2.imencode(path.suffix, turned, options)[1].tobytes()
    except cv2.error as error:
        raise ConfigError(
            f"{path}: no picture can be written with the ending '{path.suffix}'. Use .png or .jpg"
        ) from error
    write_atomic(path, lambda file: file.write(data))


def _stem(name: str) -> str:
    """``sub/a.jpg`` to ``sub/a``; the number of a video frame stays as it is."""
    return name.removesuffix(Path(name).suffix)
