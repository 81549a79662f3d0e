"""The files of `segkd predict`: overlays, label maps, probabilities, a legend and the classes."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from segkd.data.files import files_below
from segkd.data.palette import distinct
from segkd.data.predictions import top_of, write_prediction
from segkd.data.writing import write_image
from segkd.errors import ConfigError
from segkd.files import write_atomic, write_text
from segkd.inference.label_files import Format, label_encoder
from segkd.inference.output_names import ambiguous_stems, stem_of
from segkd.inference.prediction_record import RECORD, record
from segkd.inference.scores import cell_means
from segkd.texts import parse_json, read_text
from segkd.viz.legend import legend_entries, legend_strip, with_legend
from segkd.viz.overlay import blend

_CLASSES = "classes.json"
_LEGEND, _LEGEND_WIDTH = "legend.png", 720
_ROOM = 40  # largest number of classes for which all legends get one height


@dataclass(frozen=True)
class Wanted:
    """Which files to write.

    Attributes:
        overlays: whether to write overlays.
        labels: whether to write label maps.
        probabilities: ``npz``: an array (K, H, W) float16; ``png``: a grey image per class.
        format: of label maps.
        legend: whether overlays have a legend.
        strength: opacity of the class colours in overlays, 0 to 1.
        stride: npz: one prediction per N x N pixels, see ``cell_means``.
        top_k: npz: number of classes that are kept; None: all.
    """

    overlays: bool = True
    labels: bool = True
    probabilities: Literal["npz", "png"] | None = None
    format: Format = "labels"
    legend: bool = True
    strength: float = 0.6
    stride: int = 1
    top_k: int | None = None


class PredictionFiles:
    """Writes predictions, each file atomically.

    ``overlays/``, ``labels/`` and ``probabilities/`` have the subfolders of the source; next to
    them are ``classes.json``, ``format.json`` (the format of label maps) and ``legend.png``.

    Args:
        folder: of the files.
        wanted: which files to write.
        classes: K names.
        palette: (K, 3) uint8 RGB.
        names: of all images, if known: files keep the ending if two names differ only in it.

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
        self._seen = distinct(palette)  # for overlays; label maps have the official colours
        self._alone = len(names) == 1
        self._ambiguous = ambiguous_stems(names)
        self._written: set[Path] = set()  # label maps and probabilities

    def earlier(self) -> list[Path]:
        """Label maps and probabilities in the folder that another prediction has written."""
        folders = (self.folder / kind for kind in ("labels", "probabilities"))
        return [
            path
            for folder in folders
            if folder.is_dir()
            for path in files_below(folder, (".png", ".npz"))
            if path not in self._written
        ]

    def write_facts(self) -> None:
        """Writes the classes with ids and colours, as JSON and as an image.

        Raises:
            ConfigError: there are predictions of other classes, or older probabilities, which a
                ``black_box`` would read instead, or label maps that are no predictions.
        """
        older = self.folder / "probabilities"
        if not self.wanted.probabilities and older.is_dir() and any(older.iterdir()):
            raise ConfigError(
                f"{older} is of an earlier prediction, and would be taken for this student's: "
                "remove it, add --probabilities, or give another folder: --out FOLDER"
            )
        self._require_no_annotations()
        self._require_same_classes()
        rows = [
            {"id": number, "name": name, "color": self.palette[number].tolist()}
            for number, name in enumerate(self.classes)
        ]
        write_text(self.folder / _CLASSES, json.dumps(rows, indent=2) + "\n")
        if self.wanted.labels:
            write_text(self.folder / RECORD, record(self.wanted.format, self.classes))
        entries = legend_entries(range(len(self.classes)), self.classes, self._seen)
        write_image(self.folder / _LEGEND, legend_strip(entries, _LEGEND_WIDTH))

    def _require_no_annotations(self) -> None:
        """Refuses a folder whose ``labels`` are not of `segkd predict`, so perhaps of a dataset."""
        labels = self.folder / "labels"
        if not self.wanted.labels or (self.folder / _CLASSES).is_file() or not labels.is_dir():
            return
        if any(labels.iterdir()):
            raise ConfigError(
                f"{labels} holds files that `segkd predict` did not write, as {_CLASSES} is not "
                "beside it: predictions would replace annotations. Give another --out"
            )

    def _require_same_classes(self) -> None:
        """Refuses a folder with predictions of other classes, whose names would be replaced."""
        path = self.folder / _CLASSES
        maps = (self.folder / "labels", self.folder / "probabilities")
        if not path.is_file() or not any(one.is_dir() and any(one.iterdir()) for one in maps):
            return
        found = parse_json(read_text(path), str(path))
        rows = found if isinstance(found, list) else []
        if [row.get("name") for row in rows if isinstance(row, dict)] != list(self.classes):
            raise ConfigError(
                f"{self.folder} holds predictions of other classes, or in another order (see "
                f"{path}): remove them, or give another folder: --out FOLDER"
            )

    def write(
        self, name: str, image: np.ndarray, label: np.ndarray, scores: np.ndarray | None = None
    ) -> None:
        """Writes the files of one image.

        Args:
            name: its path below the source.
            image: (H, W, 3) uint8 RGB.
            label: (H, W) class ids.
            scores: (K, H, W) class probabilities, or None.
        """
        if self.wanted.overlays:
            write_image(self._file("overlays", name, ".jpg"), self.overlay(image, label))
        if self.wanted.labels:
            data, path = self._encode(label), self._file("labels", name, ".png")
            write_atomic(path, lambda file: file.write(data))
            self._written.add(path)
        if scores is not None:
            self._write_scores(name, scores)

    def outputs(self, names: Iterable[str]) -> Iterator[Path]:
        """All images that are written: the legend, and those of the images of these names."""
        yield self.folder / _LEGEND
        for name in names:
            if self.wanted.overlays:
                yield self._file("overlays", name, ".jpg")
            if self.wanted.labels:
                yield self._file("labels", name, ".png")
            if self.wanted.probabilities == "png":
                yield from self._planes(name)

    def overlay(
        self, image: np.ndarray, label: np.ndarray, ids: Sequence[int] | None = None
    ) -> np.ndarray:
        """Class colours over the image, above their legend.

        Args:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) class ids.
            ids: classes of the legend; None: those that occur.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        mixed = blend(image, label, self._seen, self.wanted.strength)
        if not self.wanted.legend:
            return mixed
        shown = np.unique(label).tolist() if ids is None else ids
        room = 0 if self._alone else min(len(self.classes), _ROOM)
        return with_legend(mixed, shown, self.classes, self._seen, room)

    def _file(self, kind: str, name: str, ending: str) -> Path:
        stem = name if stem_of(name) in self._ambiguous else stem_of(name)
        return self.folder / kind / f"{stem}{ending}"

    def _planes(self, name: str) -> Iterator[Path]:
        """The grey image of each class."""
        folder = self._file("probabilities", name, "")
        for number, title in enumerate(self.classes):
            word = re.sub(r"\W+", "_", title)
            yield folder / f"{number:03d}_{word}.png"

    def _write_scores(self, name: str, scores: np.ndarray) -> None:
        if self.wanted.probabilities == "npz":
            means = cell_means(torch.from_numpy(scores), scores.shape[1:], self.wanted.stride)
            kept = top_of(means.numpy(), self.wanted.top_k)
            path = self._file("probabilities", name, ".npz")
            write_prediction(path, kept)
            self._written.add(path)
            return
        for path, plane in zip(self._planes(name), scores, strict=True):
            write_image(path, (255 * plane).round().astype(np.uint8))
            self._written.add(path)
