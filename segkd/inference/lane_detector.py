"""Lanes of any image by a trained student: ``LaneDetector(checkpoint)(image)``."""

from collections.abc import Sequence
from dataclasses import replace
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
from segkd.inference.lane_decode import Size
from segkd.inference.lane_fit import fit_points
from segkd.inference.lane_maps import LaneMaps, lane_maps, lane_pixels
from segkd.inference.lane_pixels import lanes_of_pixels
from segkd.inference.lane_types import Detection, Lane
from segkd.inference.row_decode import decode_lanes
from segkd.models.build import network_from_file
from segkd.models.payload import stored_config
from segkd.ops.attention import attention_map
from segkd.runtime import Runtime

_TUSIMPLE_ROWS = np.arange(160, 720, 10) / 720  # the benchmark's h_samples over the height
_SIZES = {
    "culane": (590, 1640),
    "tusimple": (720, 1280),
    "bdd100k": (720, 1280),
    "curvelanes": (1440, 2560),
    "llamas": (717, 1276),
}


class LaneDetector:
    """Detects lanes in images of any size, with a student that was trained on a lane set.

    An image with a taller aspect ratio than the training images is cropped at the top, and the
    rest is resized to the size of the training images, so that the road looks as in training.

    Args:
        checkpoint: run folder, ``best.pt``, exported ``.onnx``, or ``pretrained:NAME``.
        device: auto, cpu, cuda, cuda:1.
        rules: thresholds and variant; None: those of the checkpoint's configuration.
        overrides: keys of the configuration as on the command line, e.g.
            ``["eval.lanes.threshold=0.4"]``, instead of ``rules`` and ``device``.
        smoothing: weight of earlier frames in the maps, for videos; 0: no smoothing.
        stages: taps whose attention maps to compute, or ``("all",)``.
        top: rows to crop at the top of images; None: as described above.

    Attributes:
        network: the student.
        names: of the slots.
        palette: (L, 3) uint8 RGB.

    Raises:
        CheckpointError: no checkpoint, or not one of a lane set.
        ConfigError: a stage that the network does not have, or a value out of range.
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
        height, width = facts["size"] or _SIZES[self.metric]
        self._size: Size = (height, width)
        self._earlier: tuple[tuple[int, ...], Tensor, Tensor | None] | None = None

    def __call__(self, frame: Image) -> list[Lane]:
        """The lanes of an image: (H, W, 3) uint8 RGB, or the path of a file."""
        return self.detect(frame).lanes

    def detect(self, frame: Image) -> Detection:
        """The lanes of an image, lane pixels for BDD100K, and the requested attention maps.

        Args:
            frame: (H, W, 3) uint8 RGB, or the path of a file.

        Raises:
            DataError: not an image, or a file that cannot be read.
            ConfigError: ``top`` exceeds the height of the image.
        """
        image = as_array(frame)
        top = self._unseen_rows(image)
        road = image[top:]
        cut = round(self._cut_top * len(road) / self._size[0])
        size = self.network.fixed_size or self.network.info.resize
        size = size or (self._size[0] - self._cut_top, self._size[1])
        seen = road[cut:]
        batch = torch.from_numpy(resize_image(seen, size).transpose(2, 0, 1).copy())[None]
        maps = lane_maps(self.network, batch.to(self.network.device), self.stages)
        maps = self._smoothed(maps, image.shape)
        attention = {stage: _attention(maps.features[stage]) for stage in self.stages}
        if self.metric == "bdd100k":
            pixels = lane_pixels(maps, (seen.shape[0], seen.shape[1]), top + cut)[0]
            points = self._fitted(lanes_of_pixels(pixels), image.shape[1])
            lanes = [Lane(0, self.names[0], lane, 1.0) for lane in points]
            return Detection(lanes, pixels, attention, top + cut)
        return Detection(self._lanes(maps, road, cut, top), None, attention, top + cut)

    def forget(self) -> None:
        """Begins a new video: earlier frames no longer influence the next."""
        self._earlier = None

    def _lanes(self, maps: LaneMaps, road: np.ndarray, cut: int, top: int) -> list[Lane]:
        rows = [_TUSIMPLE_ROWS * len(road)] if self.metric == "tusimple" else None
        size = (road.shape[0], road.shape[1])
        (found,) = decode_lanes(maps, [size], self.rules, cut_top=cut, rows=rows)
        scores = found.scores.tolist()
        return [
            Lane(slot, self.names[slot], points + np.array([0, top]), scores[slot])
            for slot, points in enumerate(found.points)
            if points is not None
        ]

    def _fitted(self, lanes: list[np.ndarray], width: int) -> list[np.ndarray]:
        """Points (n, 2) of lanes without rows, as curves if the rules say so."""
        rules = self.rules
        if rules.fit is None:
            return lanes
        curves = (
            fit_points(
                lane,
                width,
                rules.fit,
                tolerance=rules.fit_tolerance,
                largest_step=rules.largest_step,
            )
            for lane in lanes
        )
        return [curve for curve in curves if curve is not None]

    def _unseen_rows(self, image: np.ndarray) -> int:
        """Rows to crop at the top, before ``cut_top``."""
        height, width = image.shape[:2]
        if self.top is None:
            return max(0, height - max(1, round(width * self._size[0] / self._size[1])))
        if self.top >= height:
            raise ConfigError(f"top: {self.top} rows leave nothing of an image of {height} rows")
        return self.top

    def _smoothed(self, maps: LaneMaps, shape: tuple[int, ...]) -> LaneMaps:
        """Maps and existence averaged with those of earlier frames of the same shape."""
        if not self.smoothing:
            return maps
        probabilities, exist = maps.probabilities, maps.exist
        if self._earlier is not None and self._earlier[0] == shape:
            _, old, known = self._earlier
            probabilities = torch.lerp(probabilities, old, self.smoothing)
            if exist is not None and known is not None:
                exist = torch.lerp(exist, known, self.smoothing)
        self._earlier = shape, probabilities, exist
        return replace(maps, probabilities=probabilities, exist=exist)


def lane_facts(payload: dict[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """Metric, ``cut_top`` and size of the training images of a student.

    Args:
        payload: of the student's file.
        checkpoint: the file, for messages.

    Raises:
        CheckpointError: the student was not trained on a lane set.
    """
    if "lanes" not in payload:
        what = f" of '{payload['dataset']}'" if payload.get("dataset") else ""
        sets = ", ".join(entry.name for entry in registry.datasets if entry.task == "lanes")
        raise CheckpointError(
            f"{checkpoint} is a student{what}, which labels pixels and does not detect lanes. Use "
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
    """(h, w) float32 in [0, 1] of (1, C, h, w): the sum of squares over channels, as in SAD."""
    levels = attention_map(features, "sum", 2.0)[0, 0]
    # Clip the maximum: a single outlier, often in a corner, would leave the rest dark.
    low, high = levels.min(), levels.flatten().quantile(0.995)
    return ((levels - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).cpu().numpy()
