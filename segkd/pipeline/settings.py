"""Sizes, batches and lengths of a training, from the images and the machine."""

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

Size = tuple[int, int]
_UNIT = 32  # sides are multiples of it, as most encoders need
_CPU_AREA = 192 * 256  # pixels, as in our recipes on CamVid
_GPU_AREA = 1024 * 2048
_GPU_CROP = 512
_CPU_BATCH, _GPU_BATCH = 8, 16
_CPU_STEPS, _GPU_STEPS = (600, 2000), (2000, 40000)  # least and most
_CPU_PASSES, _GPU_PASSES = 30, 100  # over the training images
_TOLERANCE = 1.5  # of the area, before images are resized


@dataclass
class Settings:
    """Keys of a run that depend on images and machine.

    Attributes:
        data: keys of ``data:``.
        keys: other keys of the run.
        notes: why, by dotted key.
    """

    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def choose(
    sizes: Counter[Size], images: int, *, steps: int | None = None, fixed: Size | None = None
) -> Settings:
    """Settings for a set of images on this machine.

    Args:
        sizes: number of images by (height, width).
        images: of training.
        steps: given by the user; None: by the number of images.
        fixed: the only size that the teacher takes.
    """
    gpu = torch.cuda.is_available()
    found = Settings()
    _choose_sizes(found, sizes, gpu, fixed)
    batch = max(1, min(_GPU_BATCH if gpu else _CPU_BATCH, images))
    device = "this GPU" if gpu else "a CPU"
    found.data["batch_size"] = batch
    found.notes["data.batch_size"] = f"for {device}"
    found.data["workers"] = min(8, os.cpu_count() or 1) if gpu else 0
    if not gpu:
        found.data["cache"] = 1024
        found.notes["data.cache"] = "MiB of decoded images that are kept"
    found.data |= {"scale": [0.75, 2.0] if found.data.get("resize") else [0.5, 2.0]}
    found.data["color_jitter"] = 0.3
    _choose_steps(found, images, batch, gpu, steps)
    found.keys["optim"] = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2}
    warmup = min(100, found.keys["steps"] // 10)
    found.keys["schedule"] = {"name": "poly", "power": 0.9, "warmup": warmup}
    found.notes["optim"] = "as in our recipes on CamVid (camvid/drives)"
    if gpu and torch.cuda.is_bf16_supported():
        found.keys["runtime"] = {"precision": "bf16"}
    return found


def _choose_steps(found: Settings, images: int, batch: int, gpu: bool, steps: int | None) -> None:
    least, most = _GPU_STEPS if gpu else _CPU_STEPS
    passes = _GPU_PASSES if gpu else _CPU_PASSES
    wanted = -(-images * passes // batch)
    found.keys["steps"] = steps or max(least, min(most, wanted))
    if not steps:
        found.notes["steps"] = (
            f"{passes} passes over {images} images, at least {least}, at most {most}"
        )
    number = found.keys["steps"]
    found.keys["eval"] = {"every": 0 if number < 1000 else -(-number // 4)}
    found.keys["save_every"] = max(1, min(250, number // 4))
    found.notes["save_every"] = "what is lost at most if the machine stops"


def _choose_sizes(found: Settings, sizes: Counter[Size], gpu: bool, fixed: Size | None) -> None:
    if fixed is not None:
        found.data |= {"resize": list(fixed), "crop": list(fixed)}
        found.notes["data.resize"] = "the only size that the teacher takes"
        return
    height, width = sizes.most_common(1)[0][0]
    area, most = height * width, _GPU_AREA if gpu else _CPU_AREA
    seen = f"images are {height}x{width}" + (" and others" if len(sizes) > 1 else "")
    if area > _TOLERANCE * most:
        factor = math.sqrt(most / area)
        height, width = (multiple(side * factor) for side in (height, width))
        found.data["resize"] = [height, width]
        device = "a GPU" if gpu else "a CPU"
        found.notes["data.resize"] = (
            f"{seen}, too large for {device}; scores are at the size of the masks"
        )
    else:
        found.notes["data.crop"] = seen
    if gpu:
        crop = [min(_GPU_CROP, multiple(side)) for side in (height, width)]
    else:
        crop = [multiple(side * 5 / 6) for side in (height, width)]
    found.data["crop"] = crop


def multiple(side: float) -> int:
    """The nearest multiple of 32, at least 32."""
    return max(_UNIT, int(side / _UNIT + 0.5) * _UNIT)


def export_size(data: dict[str, Any], sizes: Counter[Size]) -> Size:
    """The (height, width) at which networks are timed and exported: resized, or the images'."""
    height, width = data.get("resize") or sizes.most_common(1)[0][0]
    return multiple(height), multiple(width)
