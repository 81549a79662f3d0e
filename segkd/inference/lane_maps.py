"""Lane outputs of a network: probability maps at the size of its input, or rows; and existence."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.inference.scores import View, label_map, score_chunks
from segkd.inference.views import padded_outputs
from segkd.ops.row_cells import cell_shares


@dataclass(frozen=True)
class LaneMaps:
    """Outputs for a batch of images.

    Attributes:
        probabilities: (B, L+1, H, W) float32 or float64; class 0 is the background. With ``rows``
            (B, L+1, R, G): of lane l in row r, ``[:, l + 1, r]`` are the probabilities of the
            cells, which sum to that of its being there, and ``[:, 0]`` is 0.
        exist: (B, L) existence logits, or None.
        features: (B, C, h, w) by tap.
        rows: heights of the rows as shares, see ``Outputs``; empty: maps of the image.
    """

    probabilities: Tensor
    exist: Tensor | None
    features: dict[str, Tensor]
    rows: tuple[float, ...] = ()


@torch.no_grad()
def lane_maps(network: nn.Module, images: Tensor, taps: Collection[str] = ()) -> LaneMaps:
    """Runs a network on images; coarse logits are up-sampled before the softmax.

    Args:
        network: returns ``Outputs``; run in its present mode.
        images: (B, 3, H, W) uint8 RGB on its device, padded to the network's divisor.
        taps: names of features to return.
    """
    outputs, extent = padded_outputs(network, images, taps)
    if outputs.rows:
        shares = F.pad(cell_shares(outputs.logits), (0, 0, 0, 0, 1, 0))
        return LaneMaps(shares, outputs.exist, outputs.features, outputs.rows)
    height, width = images.shape[2:]
    chunks = score_chunks([View(outputs.logits, extent)], (height, width))
    return LaneMaps(torch.cat(list(chunks), 2).softmax(1), outputs.exist, outputs.features)


def lane_pixels(maps: LaneMaps, shown: tuple[int, int], cut_top: int) -> np.ndarray:
    """(B, H, W) uint8: 1 where a lane is most probable, at the stored size.

    Args:
        maps: of the images.
        shown: (height, width) of the stored images without the ``cut_top`` rows.
        cut_top: rows at the top of the stored images that the network does not see.
    """
    height, width = maps.probabilities.shape[2:]
    labels = label_map([View(maps.probabilities, (height, width), probabilities=True)], shown)
    return F.pad((labels != 0).to(torch.uint8), (0, 0, cut_top, 0)).cpu().numpy()
