"""From images as they come, arrays or files of any size, to a network's scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from segkd.errors import DataError
from segkd.inference.scores import View, score_chunks
from segkd.inference.views import views
from segkd.ops.mode import eval_mode

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.models.network import Network

Image = np.ndarray | str | Path


def image_views(
    network: "Network",
    images: Sequence[np.ndarray],
    config: "EvalConfig | None" = None,
    resize: tuple[int, int] | None = None,
) -> list[View]:
    """The scores from which label maps and probabilities are made.

    Args:
        images: (H, W, 3) uint8 RGB of one size each.
        config: scales, flip and sliding windows; None: the whole image once.
        resize: (h, w) to which they are brought first, as in training.
    """
    from segkd.data.transforms import resize_image

    size = resize or images[0].shape[:2]
    stacked = np.stack([resize_image(image, size).transpose(2, 0, 1) for image in images])
    batch = torch.from_numpy(stacked).to(network.device)
    with eval_mode(network), torch.no_grad():
        return views(network, batch, config)


def probabilities(passes: list[View], size: tuple[int, int]) -> np.ndarray:
    """Class probabilities (B, K, *size) float32 of ``image_views``."""
    scores = torch.cat(list(score_chunks(passes, size)), 2).float()
    known = len(passes) > 1 or passes[0].probabilities
    return (scores if known else scores.softmax(1)).cpu().numpy()


def as_array(image: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises DataError for what is not an image."""
    if isinstance(image, str | Path):
        from segkd.data.reading import read_image

        return read_image(Path(image))
    shape = tuple(getattr(image, "shape", ()))
    kind = getattr(image, "dtype", type(image).__name__)
    if not isinstance(image, np.ndarray) or kind != np.uint8 or shape[2:] != (3,):
        raise DataError(
            f"got an image of shape {shape} and type {kind}, expected an array (H, W, 3) uint8 "
            "RGB, or the path of a file. Batches are tensors (B, 3, H, W)"
        )
    return image
