"""Backbones as teachers of features: networks without classes, such as DINOv2."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, SegKDError, did_you_mean
from segkd.models.network import Network
from segkd.models.taps import Record

LAST = 5  # most taps of a backbone: stage1 to stage5
_QUARTERS = 4


class FeatureNetwork(Network):
    """A backbone without classes: its taps are stages, and ``head``, the last of them.

    Images are resized to the nearest multiple of the patch, bilinearly, before they enter the
    backbone: every map covers exactly the whole image, as the student's maps do. (Padding would
    add positions that the student does not have.) ``Outputs.logits`` has no classes: (B, 0, 1, 1).

    Args:
        config: with ``arch`` for messages, and ``normalize``.
        patch: heights and widths become multiples of it.
        stages: names of the taps that ``features`` returns, from shallow to deep.
    """

    has_classes: ClassVar[bool] = False
    any_size: ClassVar[str] = "take a backbone whose positions are interpolated, such as DINOv2"

    def __init__(self, config: ModelConfig, patch: int, stages: Sequence[str]) -> None:
        super().__init__(config, 0)
        self.patch, self.stages = patch, tuple(stages)

    def features(self, images: Tensor) -> list[Tensor]:
        """A map (B, C, h, w) per stage.

        Args:
            images: normalised images (B, 3, H, W), H and W multiples of ``patch``.
        """
        raise NotImplementedError

    def compute(self, images: Tensor, record: Record) -> Tensor:
        values = self.features(self.resized(images))
        for name, value in zip(self.stages, values, strict=True):
            record(name, value)
        record("head", values[-1])
        return images.new_zeros(len(images), 0, 1, 1)

    def tap_names(self) -> list[str]:
        return [*self.stages, "head"]

    def resized(self, images: Tensor) -> Tensor:
        """Images at the nearest size of whole patches; of two equally near ones, the larger.

        Raises:
            SegKDError: a side is shorter than a patch.
        """
        height, width = images.shape[-2:]
        if self.fixed_size == (height, width):
            return images
        if min(height, width) < self.patch:
            raise SegKDError(
                f"{self.title} divides images into patches of {self.patch}x{self.patch} pixels, "
                f"got images of {height}x{width}. Set data.crop or data.resize to a multiple of "
                f"{self.patch}, or take a teacher with smaller patches"
            )
        size = [
            (2 * side + self.patch) // (2 * self.patch) * self.patch for side in images.shape[2:]
        ]
        if size == [height, width]:
            return images
        return F.interpolate(images, size, mode="bilinear", align_corners=False)

    def tap_root(self, path: str) -> str:
        return "model"


def chosen_blocks(number: int, options: Mapping[str, object], where: str) -> list[int]:
    """Indices of the blocks whose outputs are the stages: by default after each quarter.

    Args:
        number: of blocks.
        options: ``blocks``: how many of the last ones, or their indices from 0.
        where: of the config, for messages.

    Raises:
        ConfigError: other options, or no such blocks.
    """
    for key in options:
        if key != "blocks":
            raise ConfigError(
                f"{where}.options.{key}: a backbone has no such option."
                f"{did_you_mean(key, ['blocks'])}"
            )
    wanted = options.get("blocks")
    if wanted is None:
        taken = min(number, _QUARTERS)
        return [round((index + 1) * number / taken) - 1 for index in range(taken)]
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        found = list(range(number - wanted, number))
    else:
        found = [i for i in wanted if type(i) is int] if isinstance(wanted, list) else []
        found = found if found == wanted == sorted(set(found)) else []
    if not 0 < len(found) <= LAST or found[0] < 0 or found[-1] >= number:
        raise ConfigError(
            f"{where}.options.blocks: got {wanted!r}, expected how many of the last blocks are "
            f"tapped (1 to {min(LAST, number)}), or up to {LAST} of their indices in order, from 0 "
            f"to {number - 1}"
        )
    return found


def stage_names(number: int) -> list[str]:
    """Names of the last ``number`` stages: ``stage5`` is the deepest."""
    return [f"stage{level}" for level in range(LAST - number + 1, LAST + 1)]


def as_map(tokens: Tensor, size: Collection[int], patch: int, title: str) -> Tensor:
    """The patches among tokens (B, T, C) as a map (B, C, h, w): class and register tokens go first.

    Args:
        tokens: of the whole image.
        size: (H, W) of the image.
        patch: pixels per position.
        title: of the network, for messages.

    Raises:
        SegKDError: there are fewer tokens than patches.
    """
    height, width = (side // patch for side in size)
    if tokens.shape[1] < height * width:
        raise SegKDError(
            f"{title} returned {tokens.shape[1]} tokens for {height}x{width} patches of {patch} "
            "pixels, so they are no map of the image. Take another backbone"
        )
    patches = tokens[:, -height * width :].transpose(1, 2)
    return patches.reshape(len(tokens), -1, height, width)
