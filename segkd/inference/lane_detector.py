"""Lanes of any picture, by a trained student: ``LaneDetector(checkpoint)(frame)``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from segkd import registry
from segkd.config.load import load_evaluation
from segkd.config.schema import LaneRules
from segkd.data.transforms import resize_image
from segkd.errors import CheckpointError, ConfigError, did_you_mean
from segkd.inference.images import Image, as_array
from segkd.inference.lane_decode import Lanes, decode
from segkd.inference.lane_maps import LaneMaps, lane_maps, lane_pixels
from segkd.inference.lane_pixels import lanes_of_pixels
from segkd.models.build import network_from_file
from segkd.models.payload import stored_config
from segkd.ops.masked import attention_map
from segkd.runtime import Runtime

_TUSIMPLE_ROWS = np.arange(160, 720, 10) / 720  # of the height, the benchmark's h_samples
_SIZES = {"culane": (590, 1640), "tusimple": (720, 1280), "bdd100k": (720, 1280)}


@dataclass(frozen=True)
class Lane:
    """One lane of a picture.

    Attributes:
        slot: its identity, from left to right; class id minus 1.
        name: of the slot.
        points: (n, 2) float64 as x, y in pixels of the picture, from bottom to top.
        score: how probably it exists, in [0, 1].
    """

    slot: int
    name: str
    points: np.ndarray
    score: float


@dataclass(frozen=True)
class Detection:
    """All that is known of a picture.

    Attributes:
        lanes: those that were found.
        pixels: (H, W) uint8, 1 on lanes, of students that tell no lanes apart (BDD100K), or None.
        attention: (h, w) float32 in [0, 1] by stage, if asked for.
        top: rows of the picture that the network did not see.
    """

    lanes: list[Lane]
    pixels: np.ndarray | None = None
    attention: dict[str, np.ndarray] = field(default_factory=dict)
    top: int = 0


class LaneDetector:
    """Finds lanes in pictures of any size, with a student that was trained on a lane set.

    A picture that is higher than those of the training, for its width, loses rows at its top, and
    the rest is brought to the size of the training's: so the road looks as the student knows it.

    Args:
        checkpoint: run folder, ``best.pt``, exported ``.onnx``, or ``pretrained:NAME``.
        device: auto, cpu, cuda, cuda:1.
        rules: thresholds and the like; None: those of the checkpoint's configuration.
        overrides: keys of the configuration as on the command line, e.g.
            ``["eval.lanes.threshold=0.4"]``, in the place of ``rules`` and ``device``.
        smoothing: share of the earlier frames in the maps, for videos; 0: each on its own.
        stages: taps whose attention is wanted, or ``("all",)``.
        top: rows at the top of pictures that are left out; None: as said above.

    Attributes:
        network: the student.
        names: of the slots.
        palette: (L, 3) uint8 RGB.

    Raises:
        CheckpointError: no checkpoint, or one that does not find lanes.
        ConfigError: a stage that the network does not have.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "auto",
        *,
        rules: LaneRules | None = None,
        overrides: Sequence[str] = (),
        smoothing: float = 0.0,
        stages: Sequence[str] = (),
        top: int | None = None,
    ) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing: got {smoothing}, expected 0 (off) to below 1, e.g. 0.6")
        if top is not None and top < 0:
            raise ConfigError(f"top: got {top}, expected a number of rows, 0 or more")
        network, payload = network_from_file(checkpoint)
        facts = lane_facts(payload, checkpoint)
        if overrides:
            config = load_evaluation(payload.get("config") or "", overrides)
            rules, device = config.eval.lanes, config.runtime.device
        self.network = network.to(Runtime.start(device).device)
        self.metric, self.names = facts["metric"], network.classes[1:]
        self.palette = network.palette[1:]
        self.rules, self.smoothing, self.top = rules or _stored_rules(payload), smoothing, top
        self.stages = _stages(network.named_taps().stages, stages)
        self._cut_top = facts["cut_top"]
        self._size = tuple(facts["size"] or _SIZES[self.metric])
        self._earlier: tuple[tuple, Tensor, Tensor | None] | None = None

    def __call__(self, frame: Image) -> list[Lane]:
        """The lanes of a picture: (H, W, 3) uint8 RGB, or the path of a file."""
        return self.detect(frame).lanes

    def detect(self, frame: Image) -> Detection:
        """Lanes, and lane pixels and attention where there are any."""
        image = as_array(frame)
        top = self._unseen_rows(image)
        road = image[top:]
        cut = round(self._cut_top * len(road) / self._size[0])
        size = self.network.info.resize or (self._size[0] - self._cut_top, self._size[1])
        batch = torch.from_numpy(resize_image(road[cut:], size).transpose(2, 0, 1).copy())[None]
        maps = lane_maps(self.network, batch.to(self.network.device), self.stages)
        maps = self._smoothed(maps, image.shape)
        attention = {stage: _attention(maps.features[stage]) for stage in self.stages}
        if self.metric == "bdd100k":
            pixels = lane_pixels(maps, road[cut:].shape[:2], top + cut)[0]
            points = lanes_of_pixels(pixels)
            lanes = [Lane(0, self.names[0], lane, 1.0) for lane in points]
            return Detection(lanes, pixels, attention, top + cut)
        return Detection(self._lanes(maps, road, cut, top), None, attention, top + cut)

    def forget(self) -> None:
        """Begins a new video: earlier frames have no share in the next."""
        self._earlier = None

    def _lanes(self, maps: LaneMaps, road: np.ndarray, cut: int, top: int) -> list[Lane]:
        rows = [_TUSIMPLE_ROWS * len(road)] if self.metric == "tusimple" else None
        probabilities, sizes = maps.probabilities, [road.shape[:2]]
        found: Lanes = decode(probabilities, maps.exist, sizes, self.rules, cut_top=cut, rows=rows)[
            0
        ]
        scores = found.scores.tolist()
        return [
            Lane(slot, self.names[slot], points + np.array([0, top]), scores[slot])
            for slot, points in enumerate(found.points)
            if points is not None
        ]

    def _unseen_rows(self, image: np.ndarray) -> int:
        """Rows at the top that are left out before ``cut_top``."""
        height, width = image.shape[:2]
        if self.top is None:
            return max(0, height - max(1, round(width * self._size[0] / self._size[1])))
        if self.top >= height:
            raise ConfigError(f"top: {self.top} rows leave nothing of a picture of {height} rows")
        return self.top

    def _smoothed(self, maps: LaneMaps, shape: tuple) -> LaneMaps:
        """Maps and existence averaged with those of earlier frames of the same shape."""
        if not self.smoothing:
            return maps
        probabilities, exist = maps.probabilities, maps.exist
        if self._earlier is not None and self._earlier[0] == shape:
            _, old, known = self._earlier
            probabilities = torch.lerp(probabilities, old, self.smoothing)
            if exist is not None:
                exist = torch.lerp(exist, known, self.smoothing)
        self._earlier = shape, probabilities, exist
        return LaneMaps(probabilities, exist, maps.features)


def lane_facts(payload: dict[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """Metric, ``cut_top`` and size of the training images. Raises CheckpointError."""
    if "lanes" not in payload:
        what = f" of '{payload['dataset']}'" if payload.get("dataset") else ""
        sets = ", ".join(entry.name for entry in registry.datasets if entry.task == "lanes")
        raise CheckpointError(
            f"{checkpoint} is a student{what}, which labels every pixel and knows no lanes. Use "
            f"`segkd predict`, or give a student that was trained on a lane set ({sets})"
        )
    return payload["lanes"]


def _stored_rules(payload: dict[str, Any]) -> LaneRules:
    stored = stored_config(payload)
    try:
        return LaneRules.model_validate((stored.get("eval") or {}).get("lanes") or {})
    except ValidationError as error:
        raise CheckpointError(f"eval.lanes in the student's file: {error}") from None


def _stages(known: list[str], wanted: Sequence[str]) -> tuple[str, ...]:
    if tuple(wanted) == ("all",):
        return tuple(known)
    for stage in wanted:
        if stage not in known:
            raise ConfigError(f"the network has no stage '{stage}'.{did_you_mean(stage, known)}")
    return tuple(wanted)


def _attention(features: Tensor) -> np.ndarray:
    """(h, w) in [0, 1] of (1, C, h, w): the sum of squares over channels, as SAD takes it."""
    levels = attention_map(features, "sum", 2.0)[0, 0]
    # One outlier, often in a corner, would leave the rest dark.
    low, high = levels.min(), levels.flatten().quantile(0.995)
    return ((levels - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).cpu().numpy()
