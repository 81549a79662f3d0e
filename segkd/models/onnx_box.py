"""Any ONNX file as a black box."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segkd.config.schema import Normalize
from segkd.errors import ConfigError, SegKDError
from segkd.models.normalization import statistics
from segkd.models.onnx_metadata import has_metadata
from segkd.models.onnx_network import OnnxNetwork, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_onnx(
    path: Path, normalize: Normalize, returns: str, key: str
) -> tuple[Callable[[Tensor], Any], tuple[str, ...]]:
    """How to query a file, and the names of its classes, if it says so.

    A file of `segkd export` says everything. Of others the input is (B, 3, H, W) or (B, H, W, 3):
    bytes are given as they are, floats are normalised by ``normalize``. The first output is taken.

    Args:
        path: the file.
        normalize: of floats; ``auto`` for bytes and for files of segkd.
        returns: what the outputs are, see ``BlackBoxConfig``.
        key: of the config, for messages.

    Raises:
        SegKDError: it cannot be opened, or its input is no batch of images.
    """
    session = open_session(path)
    if has_metadata(session.get_modelmeta().custom_metadata_map):
        if normalize != "auto" or returns != "auto":
            raise ConfigError(
                f"{key}: {path} was written by segkd export and says how it is used: remove "
                "`normalize` and `returns`"
            )
        network = OnnxNetwork(path)
        return _of_network(network), network.classes
    return _Asked(session, path, normalize, key), ()


def _of_network(network: OnnxNetwork) -> Callable[[Tensor], Tensor]:
    """How to query a file of segkd."""

    def query(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        _require_size(str(network.path), network.fixed_size, (height, width))
        logits = network(images).logits
        return logits.argmax(1) if network.returns_labels else logits.softmax(1)

    return query


class _Asked:
    """A session of another program's file."""

    def __init__(
        self, session: "InferenceSession", path: Path, normalize: Normalize, key: str
    ) -> None:
        self.session, self.path = session, path
        inputs = session.get_inputs()
        first, shape = inputs[0], list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or first.type not in _TYPES:
            got = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise SegKDError(
                f"{key}: {path} takes {got}; expected one batch of images, (B, 3, H, W) or "
                "(B, H, W, 3), uint8 or float"
            )
        self.last = shape[1] != 3 and shape[3] == 3
        if not self.last and shape[1] not in (3, None) and not isinstance(shape[1], str):
            raise SegKDError(f"{key}: {path} takes images of shape {shape}; expected 3 channels")
        self.name, self.dtype = first.name, _TYPES[first.type]
        sides = shape[1:3] if self.last else shape[2:]
        self.size = [side if isinstance(side, int) else None for side in sides]
        self.batch = shape[0] if isinstance(shape[0], int) else None
        self.mean = self.scale = torch.zeros(1)
        if self.dtype is np.uint8:
            if normalize != "auto":
                raise ConfigError(f"{key}: {path} takes bytes: remove `normalize`")
            return
        if normalize == "auto":
            raise ConfigError(
                f"{key}: {path} takes floats, and does not say how images are normalised. Set "
                "`normalize` of the teacher: imagenet, none (0..1), or [mean, std] on the scale "
                "0..1"
            )
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in statistics(normalize))
        self.mean, self.scale = mean, std

    def __call__(self, images: Tensor) -> np.ndarray:
        height, width = images.shape[2:]
        for want, side in zip(self.size, (height, width), strict=True):
            if want is not None and want != side:
                wanted = (self.size[0] or height, self.size[1] or width)
                _require_size(str(self.path), wanted, (height, width))
        values = images.cpu()
        if self.dtype is not np.uint8:
            values = (values.float() / 255 - self.mean) / self.scale
        array = values.numpy().astype(self.dtype, copy=False)
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1) if self.last else array)
        step = self.batch or len(array)
        if len(array) % step:
            raise SegKDError(f"{self.path} takes batches of {step} images, got {len(array)}")
        parts = (array[start : start + step] for start in range(0, len(array), step))
        return np.concatenate([self._run(part) for part in parts])

    def _run(self, array: np.ndarray) -> np.ndarray:
        found = np.asarray(self.session.run(None, {self.name: array})[0])
        # Label maps often keep an axis of one channel.
        labels = found.ndim == 4 and found.shape[1] == 1 and found.dtype.kind in "iu"
        return found[:, 0] if labels else found


def _require_size(path: str, wanted: tuple[int, int] | None, size: tuple[int, int]) -> None:
    if wanted is not None and wanted != size:
        raise SegKDError(
            f"{path} takes images of {wanted[0]}x{wanted[1]} only, got {size[0]}x{size[1]}. Set "
            f"data.crop=[{wanted[0]},{wanted[1]}]"
        )
