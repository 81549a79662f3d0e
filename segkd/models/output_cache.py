"""A teacher whose outputs are kept on disk: it is run only for what is not there."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.data.cached_outputs import EXIST, FOUND, IMAGE, KNOWN, LOGITS, VIEW, CacheFolder
from segkd.data.output_files import Stored
from segkd.data.prediction_crops import extra_key
from segkd.models.frozen import Teacher
from segkd.structures import Batch, Outputs

_log = logging.getLogger(__name__)
_MOST = torch.finfo(torch.float16).max


@dataclass
class _Part:
    """What is known of one image: logits (K, h, w) float16, existence (L,) float32 or None.

    Logits are NaN where a teacher of other classes has no prediction.
    """

    logits: Tensor
    exist: Tensor | None


class OutputCache:
    """The stored outputs of one teacher, and the teacher for what is missing.

    Outputs are rounded to 16 bits also when they are new, so that a run that is resumed has the
    same numbers as one that was not.

    Args:
        name: of the teacher.
        teacher: the frozen network.
        source: where the outputs are.

    Attributes:
        writes: whether new outputs are stored; not in checks and measurements.
        about: lines for the log.
        facts: what the outputs depend on.
        read: number of outputs that came from the disk.
        computed: number of outputs of the network.
    """

    def __init__(self, name: str, teacher: Teacher, source: CacheFolder) -> None:
        self.name, self.teacher, self.source = name, teacher, source
        self.writes, self.about = False, list[str]()
        self.facts: Mapping[str, Any] = {}
        self.read = self.computed = 0
        self._warned: set[str] = set()

    @torch.no_grad()
    def outputs(self, images: Tensor, batch: Batch) -> Outputs:
        """The teacher's outputs, without features.

        Args:
            images: (B, 3, H, W) uint8.
            batch: with what the loader found on disk.
        """
        logits, exist, known, found = (
            batch.extra.get(extra_key(self.name, part)) for part in (LOGITS, EXIST, KNOWN, FOUND)
        )
        if logits is None and found is None:  # not from a loader with this cache
            return self.teacher(images)
        if found is not None:
            there = found.tolist()
            missing = [place for place, one in enumerate(there) if not one]
            parts = self._missing(images, batch, missing)
            every: list[_Part | None] = [None] * len(there)
            if logits is not None:
                own = exist if exist is not None else [None] * len(there)
                every = [_Part(*pair) for pair in zip(logits, own, strict=True)]
            for place, part in zip(missing, parts, strict=True):
                every[place] = part
            logits, exist = _stacked([part for part in every if part is not None])
            self.read -= len(missing)
        assert logits is not None  # of at least one image
        self.read += len(logits)
        logits = logits.float()
        if self.teacher.left_over is not None:
            counts = ~logits[:, 0].isnan()
            logits = torch.where(counts[:, None], logits, -math.log(logits.shape[1]))
            known = counts if known is None else known & counts
        unknown = self.teacher.unknown
        return Outputs(logits, exist=exist, kind=self.teacher.kind, known=known, unknown=unknown)

    def keep(self, index: int, view: int, image: int, stored: Stored) -> None:
        """Stores an output; if that fails, a warning is logged, and no more is stored."""
        if not self.writes:
            return
        try:
            self.source.outputs.write(index, view, image, stored)
        except OSError as error:
            self.writes = False
            self._warn(
                f"outputs cannot be stored any more: {error}. This run goes on with the teacher "
                "itself where there are none"
            )

    def _missing(self, images: Tensor, batch: Batch, places: list[int]) -> list[_Part]:
        """The parts of the images at ``places``, stored if they can be used again."""
        if self.source.kind == "images" or not self.writes:
            if self.writes:
                self._warn("some images have no stored outputs: the teacher sees their crops")
            return self._live(images, places)
        keys = [(int(batch.index[p]), int(batch.extra[VIEW][p])) for p in places]
        marks = [int(batch.extra[IMAGE][place]) for place in places]
        files, before = self.source.outputs, self.source.outputs.unfit
        with files.claimed(keys):
            # Another process may have stored them since the loader looked.
            stored = [files.read(*key, mark) for key, mark in zip(keys, marks, strict=True)]
            absent = [number for number, one in enumerate(stored) if one is None]
            fresh = dict(zip(absent, self._live(images, [places[n] for n in absent]), strict=True))
            for number, part in fresh.items():
                self.keep(*keys[number], marks[number], _to_store(part))
        if files.unfit > before:
            self._warn(
                "some stored outputs are damaged or belong to other pixels than those of this run, "
                "though files, sizes and times are the same: they are computed again. Images that "
                "differ each time that they are read cannot be cached"
            )
        self.read += len(stored) - len(absent)
        return [
            fresh[number] if one is None else _from_disk(one, images.device)
            for number, one in enumerate(stored)
        ]

    def _live(self, images: Tensor, places: Sequence[int]) -> list[_Part]:
        """The teacher's own outputs, in 16 bits."""
        if not places:
            return []
        whole = len(places) == len(images)
        outputs = self.teacher(images if whole else images[list(places)])
        self.computed += len(places)
        logits = in_halves(outputs)
        exist = [None] * len(places) if outputs.exist is None else outputs.exist.float()
        return [_Part(*pair) for pair in zip(logits, exist, strict=True)]

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _log.warning("teacher %s: cache: %s", self.name, text)


def in_halves(outputs: Outputs) -> Tensor:
    """Logits (B, K, h, w) float16 to store; NaN where a class map leaves nothing known.

    NaN stays NaN where crops of whole images mix positions.
    """
    logits = outputs.logits.clamp(-_MOST, _MOST).half()
    if outputs.known is None:
        return logits
    return torch.where(outputs.known[:, None], logits, math.nan)


def _stacked(parts: Sequence[_Part]) -> tuple[Tensor, Tensor | None]:
    size = parts[0].logits.shape[1:]
    # Crops of whole-image outputs may differ by a row from the network's own.
    logits = [
        part.logits
        if part.logits.shape[1:] == size
        else F.interpolate(part.logits[None].float(), size, mode="bilinear")[0].half()
        for part in parts
    ]
    exist = [part.exist for part in parts if part.exist is not None]
    return torch.stack(logits), torch.stack(exist) if len(exist) == len(parts) else None


def _to_store(part: _Part) -> Stored:
    exist = None if part.exist is None else part.exist.cpu().numpy()
    height, width = part.logits.shape[1:]
    return Stored(part.logits.cpu().numpy(), exist, (float(height), float(width)))


def _from_disk(stored: Stored, device: torch.device) -> _Part:
    exist = None if stored.exist is None else torch.from_numpy(stored.exist).to(device)
    return _Part(torch.from_numpy(stored.logits).to(device), exist)
