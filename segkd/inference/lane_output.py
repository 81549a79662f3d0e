"""Lanes of an exported file that decodes them itself (``segkd export --bake lanes``)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from segkd.config.schema import LaneRules
from segkd.errors import ConfigError
from segkd.inference.lane_decode import Lanes, fitted
from segkd.inference.lane_view import LaneView

if TYPE_CHECKING:
    from segkd.models.onnx_network import OnnxNetwork

ABSENT = -2.0  # x of a row without a point, as in TuSimple's files
BAKED = ("variant", "threshold", "existence", "smoothing", "sub_pixel")  # rules inside a file


def lane_output(network: nn.Module) -> Mapping[str, Any] | None:
    """What a file says of the lanes that it decodes; None: the network returns maps or rows."""
    exported: Mapping[str, Any] = getattr(network, "exported", {})
    return exported.get("lane_points")


def view_of(facts: Mapping[str, Any]) -> LaneView:
    """The view for which a file decodes lanes, from ``lane_output``."""
    (height, width), (of_height, of_width) = facts["camera"], facts["trained"]
    return LaneView((height, width), facts["top"], facts["cut"], (of_height, of_width))


def check_rules(facts: Mapping[str, Any], rules: LaneRules) -> None:
    """Raises ConfigError if rules that were given differ from those inside the file.

    Args:
        facts: of ``lane_output``.
        rules: those that are left at their defaults were not given, and are not compared.
    """
    for key in (key for key in BAKED if key in rules.model_fields_set):
        inside, wanted = facts["rules"][key], getattr(rules, key)
        if inside != wanted:
            raise ConfigError(
                f"eval.lanes.{key}: this file decodes lanes itself, with {inside}; got {wanted}. "
                f"Give eval.lanes.{key}={inside}, or export again with eval.lanes.{key}={wanted}"
            )


def baked_rules(facts: Mapping[str, Any], rules: LaneRules) -> LaneRules:
    """``rules`` with those inside the file."""
    return rules.model_copy(update=dict(facts["rules"]))


def exported_lanes(
    network: "OnnxNetwork", images: Tensor, rules: LaneRules, views: Sequence[LaneView]
) -> list[Lanes]:
    """Lanes of each image of a batch, in pixels of its own view.

    Args:
        network: a file with ``lane_output``.
        images: (B, 3, H, W) uint8, as the file takes them.
        rules: of the curves alone; other rules are inside the file.
        views: of each image.
    """
    facts = network.exported["lane_points"]
    found, existence = network.lanes(images)
    own = view_of(facts)
    lanes = []
    for points, scores, view in zip(found.double(), existence, views, strict=True):
        moved = own.points_in(points.numpy(), view)
        absent = (points[..., 0] == ABSENT).numpy()
        x = np.where(absent, np.nan, moved[..., 0])
        one = Lanes(x, moved[0, :, 1], scores.numpy())
        lanes.append(fitted(one, view.camera[1], rules))
    return lanes


def is_whole_image(facts: Mapping[str, Any]) -> bool:
    """Whether the file takes whole images of its camera, and cuts and resizes them itself."""
    return bool(facts["whole"])


def as_batch(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as a batch (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
