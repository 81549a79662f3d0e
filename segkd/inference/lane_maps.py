"""What a network says about lanes: probability maps at the size of its input, and existence."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.inference.scores import View, label_map, score_chunks
from segkd.inference.views import padded_outputs


@dataclass(frozen=True)
class LaneMaps:
    """Attributes:
    probabilities: (B, L+1, H, W) float32 or float64; class 0 is the background.
    exist: (B, L) existence logits, or None.
    features: tapped values by name.
    """

    probabilities: Tensor
    exist: Tensor | None
    features: dict[str, Tensor]


@torch.no_grad()
def lane_maps(network: nn.Module, images: Tensor, taps: Collection[str] = ()) -> LaneMaps:
    """Asks a network, in the mode that it is in, about uint8 RGB images (B, 3, H, W).

    Coarse logits are up-sampled before the softmax; sides need not fit the network's divisor.
    """
    outputs, extent = padded_outputs(network, images, taps)
    chunks = score_chunks([View(outputs.logits, extent)], tuple(images.shape[2:]))
    return LaneMaps(torch.cat(list(chunks), 2).softmax(1), outputs.exist, outputs.features)


def lane_pixels(maps: LaneMaps, shown: tuple[int, int], cut_top: int) -> np.ndarray:
    """(B, H, W) uint8: 1 where a lane is most probable, at the stored size.

    Args:
        shown: height and width of the stored images without the ``cut_top`` rows.
    """
    extent = tuple(maps.probabilities.shape[2:])
    labels = label_map([View(maps.probabilities, extent, probabilities=True)], shown)
    return F.pad((labels != 0).to(torch.uint8), (0, 0, cut_top, 0)).cpu().numpy()
