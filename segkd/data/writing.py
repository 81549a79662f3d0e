"""Writes images to disk."""

from pathlib import Path

import numpy as np

from segkd.errors import ConfigError
from segkd.files import write_atomic

_JPEG = (".jpg", ".jpeg")


def require_writable(path: Path) -> None:
    """Raises ConfigError for an ending that OpenCV cannot write."""
    import cv2

    if not cv2.haveImageWriter(str(path)):
        raise _unwritable(path)


def write_image(path: Path, image: np.ndarray, *, quality: int = 92) -> None:
    """Writes an image atomically, in the format of the ending of ``path``.

    Args:
        path: e.g. ``….png``; its folder is made.
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16.
        quality: of JPEG, 0 to 100.

    Raises:
        ConfigError: an ending that OpenCV cannot write.
    """
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix.lower() in _JPEG else []
    stored = image[..., ::-1] if image.ndim == 3 else image
    try:
        data = cv2.imencode(path.suffix, stored, options)[1].tobytes()
    except cv2.error as error:
        raise _unwritable(path) from error
    write_atomic(path, lambda file: file.write(data))


def _unwritable(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}: cannot write an image with the ending '{path.suffix}'. Use .png or .jpg"
    )
