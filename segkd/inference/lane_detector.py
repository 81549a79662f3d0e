"""Lanes of any image by a trained student: ``LaneDetector(checkpoint)(image)``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from segkd import registry
from segkd.config.load import require_as_exported, stored_evaluation
from segkd.config.schema import LaneRules
from segkd.data.transforms import resize_image
from segkd.errors import CheckpointError, ConfigError, did_you_mean
from segkd.inference.foreign_student import network_and_rest
from segkd.inference.images import Image, as_array
from segkd.inference.lane_decode import Lanes, Size
from segkd.inference.lane_fit import fit_points
from segkd.inference.lane_maps import LaneMaps, lane_maps, lane_pixels
from segkd.inference.lane_output import (
    as_batch,
    baked_rules,
    check_rules,
    exported_lanes,
    is_whole_image,
    lane_output,
)
from segkd.inference.lane_pixels import lanes_of_pixels
from segkd.inference.lane_types import Detection, Lane
from segkd.inference.lane_view import LaneView, lane_view, trained_size
from segkd.inference.row_decode import decode_lanes
from segkd.models.onnx_network import OnnxNetwork
from segkd.models.payload import stored_config
from segkd.ops.attention import attention_map
from segkd.runtime import Runtime

READ = (  # keys of the configuration; `iou` is of scores
    *(f"eval.lanes.{key}" for key in LaneRules.model_fields if key != "iou"),
    "runtime.device",
    "runtime.threads",
)


class LaneDetector:
    """Detects lanes in images of any size, with a student that was trained on a lane set.

    An image with a taller aspect ratio than the training images (times ``data.squeeze``) is cropped
    at the top, and the rest is resized to the size of the training images, so that the road looks
    as in training.

    Args:
        checkpoint: run folder, ``best.pt``, exported ``.onnx``, or ``pretrained:NAME``.
        device: auto, cpu, cuda, cuda:1.
        rules: thresholds and variant; None: those of the checkpoint's configuration.
        overrides: keys of the configuration as on the command line, e.g.
            ``["eval.lanes.threshold=0.4"]``, instead of ``rules``; ``student.…`` and
            ``data.name=…`` for a weights file of another program.
        smoothing: weight of earlier frames in the maps, for videos; 0: no smoothing.
        stages: taps whose attention maps to compute, or ``("all",)``.
        top: rows to crop at the top of images; None: as described above.

    Attributes:
        network: the student.
        names: of the slots.
        palette: (L, 3) uint8 RGB.

    Raises:
        CheckpointError: no checkpoint, or not one of a lane set.
        ConfigError: a stage that the network does not have, a value out of range, ``rules`` beside
            ``overrides``, or an override that is not of ``eval.lanes``, ``runtime.device`` or
            ``runtime.threads``.
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
        if rules is not None and overrides:
            raise ConfigError("rules: overrides replace them. Write them as eval.lanes.KEY=VALUE")
        if overrides and device != "auto":
            overrides = [f"runtime.device={device}", *overrides]
        network, payload, rest = network_and_rest(checkpoint, overrides, READ, "lane detection")
        facts = lane_facts(payload, checkpoint)
        require_as_exported(payload, overrides or [f"runtime.device={device}"])
        if overrides:
            config = stored_evaluation(payload, rest)
            rules, device = config.eval.lanes, config.runtime.device
        self.network = network.to(Runtime.start(device).device)
        self.metric, self.names = facts["metric"], network.classes[1:]
        self.palette = network.palette[1:]
        self.rules, self.smoothing, self.top = rules or stored_rules(payload), smoothing, top
        self.stages = _stages(network.named_taps().stages, stages)
        self._facts = facts
        height, width = trained_size(facts)
        self._size: Size = (height - facts["cut_top"], width)
        self._output = lane_output(network)
        if self._output is not None:
            self.rules = self._checked_rules()
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
        view = self._view(image)
        top, cut = view.top, view.cut
        seen = image[top + cut :]
        if self._output is not None:
            return self._decoded(image, seen, view)
        size = self.network.fixed_size or self.network.info.resize or self._size
        batch = as_batch(resize_image(seen, size))
        maps = lane_maps(self.network, batch.to(self.network.device), self.stages)
        maps = self._smoothed(maps, image.shape)
        attention = {stage: _attention(maps.features[stage]) for stage in self.stages}
        if self.metric == "bdd100k":
            pixels = lane_pixels(maps, (seen.shape[0], seen.shape[1]), top + cut)[0]
            points = self._fitted(lanes_of_pixels(pixels), image.shape[1])
            lanes = [Lane(0, self.names[0], lane, 1.0) for lane in points]
            return Detection(lanes, pixels, attention, top + cut)
        decoded = decode_lanes(
            maps, [view.road], self.rules, cut_top=cut, rows=_only(view.rows(self.metric))
        )
        return Detection(self._named(decoded[0], top), None, attention, top + cut)

    def forget(self) -> None:
        """Begins a new video: earlier frames no longer influence the next."""
        self._earlier = None

    def _decoded(self, image: np.ndarray, seen: np.ndarray, view: LaneView) -> Detection:
        """The lanes of a file that decodes them itself."""
        assert isinstance(self.network, OnnxNetwork) and self._output is not None
        whole = is_whole_image(self._output)
        size = self.network.fixed_size
        assert size is not None
        if whole and view.top + view.cut != round(
            (self._output["top"] + self._output["cut"]) * view.camera[0] / size[0]
        ):
            raise ConfigError(
                f"got an image of {image.shape[0]}x{image.shape[1]}, but this file takes images of "
                f"a camera of {size[0]}x{size[1]}. Export it for yours: "
                f"--camera {image.shape[0]} {image.shape[1]}"
            )
        batch = as_batch(resize_image(image if whole else seen, size))
        (found,) = exported_lanes(self.network, batch, self.rules, [view])
        return Detection(self._named(found, 0), None, {}, view.top + view.cut)

    def _named(self, found: Lanes, top: int) -> list[Lane]:
        """The lanes that exist, in images with ``top`` more rows."""
        scores = found.scores.tolist()
        return [
            Lane(slot, self.names[slot], points + np.array([0, top]), scores[slot])
            for slot, points in enumerate(found.points)
            if points is not None
        ]

    def _checked_rules(self) -> LaneRules:
        """The rules of a file that decodes lanes itself. Raises ConfigError for others."""
        assert self._output is not None
        check_rules(self._output, self.rules)
        if self.smoothing or self.stages:
            raise ConfigError(
                "--smooth and --attention need the maps of a network, and this file answers lanes "
                "alone. Leave them out, or give the checkpoint"
            )
        return baked_rules(self._output, self.rules)

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

    def _view(self, image: np.ndarray) -> LaneView:
        """What of an image is seen."""
        height, width = image.shape[:2]
        if self.top is not None and self.top >= height:
            raise ConfigError(f"top: {self.top} rows leave nothing of an image of {height} rows")
        return lane_view(self._facts, (height, width), self.top)

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


def stored_rules(payload: Mapping[str, Any]) -> LaneRules:
    """The rules of the training's evaluations. Raises CheckpointError if they are damaged."""
    stored = stored_config(payload)
    try:
        return LaneRules.model_validate((stored.get("eval") or {}).get("lanes") or {})
    except ValidationError as error:
        raise CheckpointError(f"eval.lanes in the student's file: {error}") from None


def _only(rows: np.ndarray | None) -> list[np.ndarray] | None:
    """The rows of a batch of one image."""
    return None if rows is None else [rows]


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
