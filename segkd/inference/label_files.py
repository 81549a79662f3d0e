"""Label maps as PNG files: class ids, with a palette, or in the format of benchmark servers."""

import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from segkd.errors import ConfigError

Format = Literal["labels", "palette", "cityscapes", "voc", "ade20k"]
FORMATS = ("labels", "palette", "cityscapes", "voc", "ade20k")

Encoder = Callable[[np.ndarray], bytes]
_VOC_CLASSES, _ADE20K_CLASSES = 21, 150


def label_encoder(kind: Format, classes: Sequence[str], palette: np.ndarray) -> Encoder:
    """A function from a label map (H, W) of class ids to the bytes of a PNG.

    Args:
        kind: ``labels``: grey ids (16 bit for more than 256 classes); ``palette``: the same ids,
            indexed with the class colours; ``cityscapes``: the official label ids, by class name;
            ``voc``: ids indexed with VOC's colours; ``ade20k``: ids plus one, 0 is "other".
        classes: K names.
        palette: (K, 3) uint8 RGB.

    Raises:
        ConfigError: the classes are not those of the benchmark.
    """
    count = len(classes)
    if kind == "labels":
        return lambda label: _grey(label.astype(np.uint8 if count <= 256 else np.uint16))
    if kind == "palette":
        if count > 256:
            raise _unfit(kind, "at most 256 classes", classes)
        return lambda label: _indexed(label, palette)
    if kind == "cityscapes":
        table = _cityscapes_ids(classes)
        return lambda label: _grey(table[label])
    if kind == "voc":
        if count != _VOC_CLASSES:
            raise _unfit(kind, f"{_VOC_CLASSES} classes, background first", classes)
        return lambda label: _indexed(label, voc_colors())
    if kind == "ade20k":
        if count != _ADE20K_CLASSES:
            raise _unfit(kind, f"the {_ADE20K_CLASSES} classes of ADE20K", classes)
        return lambda label: _grey(label + np.uint8(1))
    raise ConfigError(f"unknown format '{kind}'. Known: {', '.join(FORMATS)}")


def voc_colors() -> np.ndarray:
    """VOC's colours, (256, 3) uint8 RGB: per channel every third bit of the id, reversed."""
    ids = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for part in range(3):
            colors[:, part] |= ((ids >> (3 * bit + part) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def _cityscapes_ids(classes: Sequence[str]) -> np.ndarray:
    """Official label id by class id. Raises ConfigError for names of other classes."""
    from segkd.data.cityscapes import CLASSES, LABEL_IDS

    known = dict(zip(CLASSES, LABEL_IDS, strict=True))
    names = [name.lower().replace("_", " ").replace("-", " ") for name in classes]
    foreign = [name for name in names if name not in known]
    if foreign:
        raise _unfit("cityscapes", f"classes of Cityscapes, not '{foreign[0]}'", classes)
    return np.array([known[name] for name in names], np.uint8)


def _unfit(kind: str, wanted: str, classes: Sequence[str]) -> ConfigError:
    first = ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
    return ConfigError(
        f"--format {kind} needs {wanted}; this student has {len(classes)} classes ({first}). Use "
        "--format labels or palette"
    )


def _grey(label: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", label)[1].tobytes()


def _indexed(label: np.ndarray, colors: np.ndarray) -> bytes:
    from PIL import Image  # OpenCV cannot write indexed PNG

    image = Image.fromarray(label.astype(np.uint8))
    image.putpalette(np.asarray(colors, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
