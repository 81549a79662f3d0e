"""From images, arrays or files of any size, to the scores of a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from segkd.errors import DataError
from segkd.inference.scores import View
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
    """Scores of images, from which label maps and probabilities are computed.

    Args:
        network: run in eval mode, without gradient.
        images: (H, W, 3) uint8 RGB, all of one size.
        config: scales, flip and sliding windows; None: the whole image once.
        resize: (h, w) to which images are resized first, as in training.
    """
    from segkd.data.transforms import resize_image

    height, width = resize or images[0].shape[:2]
    resized = [resize_image(image, (height, width)) for image in images]
    stacked = np.stack([image.transpose(2, 0, 1) for image in resized])
    batch = torch.from_numpy(stacked).to(network.device)
    with eval_mode(network), torch.no_grad():
        return views(network, batch, config)


def as_array(image: Image) -> np.ndarray:
    """An image, given as array or path, as (H, W, 3) uint8 RGB.

    Raises:
        DataError: not an image, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        from segkd.data.reading import SampleError, read_image

        try:
            return read_image(Path(image))
        except SampleError as error:
            raise DataError(f"{error.reason}. Fetch it again, or give another image") from None
    shape = tuple(getattr(image, "shape", ()))
    kind = getattr(image, "dtype", type(image).__name__)
    empty = 0 in shape
    if not isinstance(image, np.ndarray) or kind != np.uint8 or shape[2:] != (3,) or empty:
        raise DataError(
            f"got an image of shape {shape} and type {kind}, expected an array (H, W, 3) uint8 "
            "RGB, or the path of a file. Batches are tensors (B, 3, H, W)"
        )
    return image
