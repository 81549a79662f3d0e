"""From the images of a camera to points of lanes: what surrounds a network in ``--bake lanes``."""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.config.schema import LaneRules
from segkd.errors import ConfigError, SegKDError
from segkd.export.lane_points import Size, lane_facts_of, points_module
from segkd.inference.lane_detector import lane_facts, stored_rules
from segkd.inference.lane_view import lane_view, trained_size
from segkd.models.network import Network


@dataclass(frozen=True)
class LaneDecoding:
    """How an exported file decodes lanes.

    Attributes:
        facts: the entry ``lanes`` of the student's file.
        rules: thresholds and variant; curves (``fit``) are not part of a file.
        camera: (H, W) of the images in whose pixels points are.
        resize: (h, w) of the training images, or None.
    """

    facts: dict[str, Any]
    rules: LaneRules
    camera: Size
    resize: Size | None

    @classmethod
    def of(
        cls, student: Network, rules: LaneRules | None = None, camera: Size | None = None
    ) -> Self:
        """That of a student.

        Args:
            student: opened from its file.
            rules: None: those of the training's evaluations.
            camera: None: the size of the training images.

        Raises:
            SegKDError: the student does not detect lanes, or lanes without identity.
            ConfigError: a camera of no pixels.
        """
        facts = lane_facts(dict(student.info.payload), student.title)
        if facts["metric"] == "bdd100k":
            raise SegKDError(
                "bake: lanes of BDD100K have no identity, so their points are found by connected "
                "components, which no exported file has. Use --bake labels"
            )
        camera = camera or trained_size(facts)
        if min(camera) < 2:
            raise ConfigError(f"--camera: got {camera[0]} {camera[1]}, expected height and width")
        rules = rules or stored_rules(student.info.payload)
        return cls(facts, rules, camera, student.info.resize)


class LaneDecoder(nn.Module):
    """Cuts and resizes images for a network, and decodes its logits.

    Args:
        network: the student.
        decoding: the camera, and the rules.
        resize: (h, w) to which whole images of the camera are resized inside the file; None: the
            file takes the part that the network sees, resized.

    Attributes:
        input_size: (H, W) of the images that the file takes.
    """

    def __init__(self, network: Network, decoding: LaneDecoding, resize: Size | None) -> None:
        super().__init__()
        self.view = view = lane_view(decoding.facts, decoding.camera)
        self.rules, self.resize = decoding.rules, resize
        height, width = trained_size(decoding.facts)
        usual = (height - decoding.facts["cut_top"], width)
        size = resize or network.fixed_size or decoding.resize or usual
        self.input_size: Size = view.camera if resize else size
        padded = tuple(-(-side // network.divisor) * network.divisor for side in size)
        if network.fixed_size not in (None, padded):
            raise SegKDError(f"resize: {network.title} takes {network.fixed_size} only, got {size}")
        self.padding = [padded[1] - size[1], padded[0] - size[0]]
        self.padded: Size = (padded[0], padded[1])
        with torch.no_grad():
            logits = network(torch.zeros(1, 3, *padded, dtype=torch.uint8)).logits.shape[2:]
        sizes = (size, self.padded, (logits[0], logits[1]))
        self.points = points_module(view, decoding.facts, decoding.rules, sizes, network.rows)

    def seen(self, images: Tensor) -> Tensor:
        """What the network takes (B, 3, h, w) of the images (B, 3, H, W) uint8 of the file."""
        if self.resize:
            shown = images[:, :, self.view.top + self.view.cut :].float()
            images = F.interpolate(shown, self.resize, mode="bilinear", antialias=True)
        if any(self.padding):
            rows, columns = (
                torch.arange(side + more, device=images.device).clamp(max=side - 1)
                for side, more in zip(images.shape[2:], self.padding[::-1], strict=True)
            )
            images = images.index_select(2, rows).index_select(3, columns)
        return images

    def forward(self, logits: Tensor, exist: Tensor | None) -> tuple[Tensor, ...]:
        """Points (B, L, R, 2) from bottom to top and existence (B, L) of a network's outputs."""
        points, existence = self.points(logits.float(), exist)
        return points, existence

    def facts(self) -> dict[str, Any]:
        """What the file says of its lanes."""
        return lane_facts_of(self.view, self.rules, whole=self.resize is not None)
