"""Stores what a teacher says about images, as files that a ``black_box`` of a config reads."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkd.data.paired import images_below
from segkd.data.predictions import Prediction, classes_json, top_of, write_prediction
from segkd.data.transforms import resize_image
from segkd.errors import ConfigError
from segkd.files import write_text
from segkd.inference.media import Source
from segkd.inference.output_names import ambiguous_stems, stem_of
from segkd.inference.scores import View, cell_means, upsample_rows
from segkd.inference.views import padded_outputs
from segkd.models.query_error import QueryError
from segkd.texts import parse_json, read_text

_RECORD = "source.json"
_DIGESTS = "digests"  # its key of the teacher's files
_ROUNDING = 1e-6  # of a difference of probabilities


@dataclass
class PredictionStore:
    """A folder of predictions of one teacher; images that are in it are not predicted again.

    Attributes:
        folder: of ``classes.json`` and ``probabilities/``.
        classes: K names.
        source: what identifies the teacher, compared with that of an existing folder.
        stride: one prediction per N x N pixels of an image; coarser ones stay as they are.
        top_k: number of classes that are kept; None: all.
        resize: (h, w) of the images that the teacher sees; None: as they are.
        device: of the teacher.
        unknown: ids of the classes that the teacher cannot know, see ``class_map``.
        broken: after a run, why images could not be read, by name.
        ambiguous: names without ending of several images, whose files keep it.
        digests: of the teacher's files by key: another one is another teacher at the same path.
    """

    folder: Path
    classes: tuple[str, ...]
    source: Mapping[str, Any]
    stride: int = 4
    top_k: int | None = None
    resize: tuple[int, int] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    unknown: tuple[int, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    ambiguous: frozenset[str] = frozenset()
    digests: Mapping[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Writes the names of the classes, and which of them the teacher cannot know.

        Raises:
            ConfigError: the folder holds predictions of another teacher, or of this one before
                its file was changed.
        """
        facts = dict(self.source) | {"stride": self.stride, "top_k": self.top_k}
        facts |= {"resize": None if self.resize is None else list(self.resize)}
        path = self.folder / _RECORD
        if path.is_file():
            found = self._recorded()
            images, digests = found.pop("images", None), found.pop(_DIGESTS, None)
            if found != json.loads(json.dumps(facts)):
                raise ConfigError(
                    f"{self.folder} holds predictions of another teacher, or with other options "
                    f"(see {path}). Give another folder: --out FOLDER"
                )
            self._require_unchanged(digests if isinstance(digests, dict) else {})
            facts |= {"images": images} if images else {}
        facts |= {_DIGESTS: dict(self.digests)} if self.digests else {}
        write_text(self.folder / "classes.json", classes_json(self.classes, self.unknown))
        write_text(path, json.dumps(facts, indent=2) + "\n")

    def _require_unchanged(self, stored: Mapping[str, str]) -> None:
        """Refuses a teacher whose file has become another; folders of earlier versions say none."""
        for key, digest in self.digests.items():
            if stored.get(key, digest) != digest:
                raise ConfigError(
                    f"{self.folder} holds predictions of {key} as it was before that file was "
                    "changed, e.g. by another training. Put it back, give another folder: --out "
                    f"FOLDER, or remove {self.folder} to predict all images anew"
                )

    def _recorded(self) -> dict[str, Any]:
        path = self.folder / _RECORD
        found = parse_json(read_text(path), str(path))
        return dict(found) if isinstance(found, dict) else {"": found}

    def _begin_source(self, frames: Source) -> None:
        """Notes the folder of the images, of which each has a prediction by its name.

        Raises:
            ConfigError: there are predictions of images of these names from another folder.
        """
        folder = frames.path if frames.kind == "folder" else frames.path.parent
        record, own = self._recorded(), str(folder.expanduser().resolve())
        known = record.get("images", [])
        for other in (one for one in known if one != own):
            taken = None if own not in known else _stems_below(Path(other))
            for name in frames.names:
                mixed = taken is None or self._stem(name) in taken
                if mixed and self.file(name).is_file():
                    raise self._mixed(name, other, own)
        if own in known:
            return
        text = json.dumps(record | {"images": [*known, own]}, indent=2) + "\n"
        write_text(self.folder / _RECORD, text)

    def _mixed(self, name: str, other: str, own: str) -> ConfigError:
        return ConfigError(
            f"{self.folder} holds the prediction of another {name}, of {other}: images of "
            f"{own} would get it. Give another folder: --out FOLDER; or predict the folder "
            "that has both below it. If these were only moved, write the new place into "
            f"{self.folder / _RECORD}"
        )

    def file(self, name: str) -> Path:
        """The file of an image by its path below the source."""
        return self.folder / "probabilities" / f"{self._stem(name)}.npz"

    def _stem(self, name: str) -> str:
        return name if stem_of(name) in self.ambiguous else stem_of(name)

    def add(self, teacher: nn.Module, name: str, image: np.ndarray) -> None:
        """Predicts an image (H, W, 3) uint8 and writes the prediction. Raises SegKDError."""
        try:
            found = predicted(teacher, image, self.stride, self.top_k, self.resize, self.device)
        except QueryError as error:
            raise QueryError(f"{error}. Image: {name}") from error
        write_prediction(self.file(name), found)

    def fill(
        self,
        teacher: nn.Module,
        frames: Source,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Predicts all images that have no prediction yet.

        Args:
            teacher: returns ``Outputs`` for uint8 images (B, 3, H, W).
            frames: the images.
            progress: called with (done, total) images.

        Returns:
            The number of new predictions.

        Raises:
            SegKDError: the teacher fails, e.g. because its budget is spent; what was written stays.
        """
        self.begin()
        self.ambiguous = ambiguous_stems(frames.names)
        self._begin_source(frames)
        new = 0
        for done, frame in enumerate(frames.frames(), start=1):
            if frame.image is None:
                self.broken[frame.name] = frame.error
            elif not self.file(frame.name).is_file():
                self.add(teacher, frame.name, frame.image)
                new += 1
            progress(done, max(done, frames.count))
        return new


def _stems_below(folder: Path) -> set[str]:
    """What files of predictions of a folder's images are named; empty if it is gone."""
    names = [file.relative_to(folder).as_posix() for file in images_below(folder)]
    return {*names, *map(stem_of, names)}


@torch.no_grad()
def predicted(
    teacher: nn.Module,
    image: np.ndarray,
    stride: int,
    top_k: int | None = None,
    resize: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Prediction:
    """What a teacher says about a whole image.

    Args:
        teacher: returns ``Outputs`` for uint8 images (B, 3, H, W).
        image: (H, W, 3) uint8 RGB.
        stride: one prediction per N x N pixels of the image; coarser ones stay as they are.
        top_k: number of classes that are kept; None: all.
        resize: (h, w) of the image that the teacher sees; None: as it is.
        device: of the teacher; None: the CPU.

    Raises:
        SegKDError: the teacher fails.
    """
    height, width = image.shape[:2]
    seen = image if resize is None else resize_image(image, resize)
    pixels = torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))[None].to(device)
    outputs, extent = padded_outputs(teacher, pixels)
    shares = outputs.logits.float().softmax(1)
    known = torch.ones_like(shares[:, :1])
    if outputs.known is not None:
        known = outputs.known[:, None].to(shares)
    listed = shares if outputs.tail is None else shares - outputs.tail.to(shares)
    padded = extent != tuple(shares.shape[2:])
    parts = torch.cat([listed * known, known], 1)
    if padded or resize is not None:
        parts = upsample_rows(View(parts, extent), (height, width), range(height))
    parts = cell_means(parts, (height, width), stride)[0].cpu()
    return _kept(parts[:-1], parts[-1:], outputs.tail is not None, top_k)


def _kept(listed: Tensor, known: Tensor, has_tail: bool, top_k: int | None) -> Prediction:
    """The named probabilities (K, h, w) of the positions that are mostly known (1, h, w)."""
    values = torch.where(known >= 0.5, listed / known.clamp_min(1e-6), 0).clamp_min(0).numpy()
    if has_tail:  # the rest is of no class in particular, and stays so
        values[values < _ROUNDING] = 0
        named = int((values > 0).sum(0).max(initial=1))
        top_k = named if top_k is None else min(top_k, named)
        found = top_of(values, min(top_k, len(values) - 1))
        return Prediction(found.values, found.ids)
    return top_of(values, top_k)
