"""Answers for pictures as they come: arrays or files of any size, one network, label maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from segkd.errors import DataError
from segkd.inference.scores import View, label_map, score_chunks
from segkd.inference.views import views
from segkd.ops.mode import eval_mode

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.models.network import Network

Picture = np.ndarray | str | Path


def predict_picture(
    network: "Network", picture: Picture, config: "EvalConfig | None" = None
) -> np.ndarray:
    """Class ids of one picture.

    Args:
        picture: (H, W, 3) uint8 RGB, or the path of a file.

    Returns:
        (H, W) uint8, or int64 for more than 256 classes.

    Raises:
        DataError: the file cannot be read, or the array is no picture.
    """
    image = as_array(picture)
    passes = picture_views(network, [image], config, network.facts.resize)
    return label_map(passes, image.shape[:2])[0].cpu().numpy()


def picture_views(
    network: "Network",
    pictures: Sequence[np.ndarray],
    config: "EvalConfig | None" = None,
    resize: tuple[int, int] | None = None,
) -> list[View]:
    """The scores from which label maps and probabilities are made.

    Args:
        pictures: (H, W, 3) uint8 RGB of one size each.
        config: scales, flip and sliding windows; None: the whole picture once.
        resize: (h, w) to which they are brought first, as in training.
    """
    from segkd.data.transforms import resize_image

    size = resize or pictures[0].shape[:2]
    stacked = np.stack([resize_image(picture, size).transpose(2, 0, 1) for picture in pictures])
    images = torch.from_numpy(stacked).to(network.device)
    with eval_mode(network), torch.no_grad():
        return views(network, images, config)


def probabilities(passes: list[View], size: tuple[int, int]) -> np.ndarray:
    """Class probabilities (B, K, *size) float32 of ``picture_views``."""
    scores = torch.cat(list(score_chunks(passes, size)), 2).float()
    known = len(passes) > 1 or passes[0].probabilities
    return (scores if known else scores.softmax(1)).cpu().numpy()


def as_array(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises DataError for what is no picture."""
    if isinstance(picture, str | Path):
        from segkd.data.reading import read_image

        return read_image(Path(picture))
    shape = tuple(getattr(picture, "shape", ()))
    kind = getattr(picture, "dtype", type(picture).__name__)
    if not isinstance(picture, np.ndarray) or kind != np.uint8 or shape[2:] != (3,):
        raise DataError(
            f"got a picture of shape {shape} and type {kind}, expected an array (H, W, 3) uint8 "
            "RGB, or the path of a file. Batches are tensors (B, 3, H, W)"
        )
    return picture
