"""The student as a device runs it: normalisation, resize and argmax become part of the network."""

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd import __version__
from segkd.errors import SegKDError
from segkd.export.pooling import exportable_pools
from segkd.models.network import Network
from segkd.models.onnx_metadata import FORMAT

Bake = Literal["none", "normalize", "labels"]
Size = tuple[int, int]


class Bundle(nn.Module):
    """A student alone, with what a device would else have to do around it.

    Args:
        student: is copied; auxiliary heads stay behind.
        bake: ``none``: normalised floats in, logits out; ``normalize``: bytes (uint8 RGB) in,
            logits out; ``labels``: bytes in, class ids (B, H, W) out, at the size of the images.
        resize: (h, w) to which images are brought first; None: the network gets them as they are.

    Attributes:
        divisor: height and width of what comes in must be multiples of it.
        fixed_size: the only (H, W) that it takes, or None.
        output_names: of what ``forward`` answers.

    Raises:
        SegKDError: ``resize`` is no size for this network.
    """

    def __init__(self, student: Network, bake: Bake = "normalize", resize: Size | None = None):
        super().__init__()
        network = copy.deepcopy(student).cpu().float().eval().requires_grad_(False)
        network.aux_heads = nn.ModuleDict()
        if bake == "none":
            network._mean.zero_()
            network._scale.fill_(1.0)
        self.bake, self.resize = bake, resize
        self.divisor = 1 if resize else network.divisor
        self.fixed_size = None if resize else network.fixed_size
        if resize and network.fixed_size not in (None, resize):
            raise SegKDError(
                f"resize: {network.title} takes {network.fixed_size} only, got {resize}"
            )
        if resize and any(side % network.divisor for side in resize):
            raise SegKDError(
                f"resize: got {resize[0]}x{resize[1]}, but {network.title} takes multiples of "
                f"{network.divisor}, e.g. {' '.join(map(str, good_size(resize, network.divisor)))}"
            )
        self.network = exportable_pools(network)
        self.output_names = ["labels" if bake == "labels" else "logits"]
        with torch.no_grad():
            side = resize or network.probe_size()
            if network(torch.zeros(1, 3, *side)).exist is not None:
                self.output_names.append("exist")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), uint8 or with ``bake="none"`` float32, to the tensors of output_names."""
        size = images.shape[-2:]
        if self.resize:
            images = F.interpolate(images.float(), self.resize, mode="bilinear", antialias=True)
        outputs = self.network(images)
        answer = outputs.logits
        if self.bake == "labels":
            answer = F.interpolate(answer, size, mode="bilinear").argmax(1)
            answer = answer.to(torch.uint8 if self.network.num_classes <= 256 else torch.int64)
        return (answer,) if outputs.exist is None else (answer, outputs.exist)

    def example(self, batch: int, size: Size, seed: int = 0) -> Tensor:
        """Random images such as it takes: soft blobs rather than noise, as cameras see."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, *(max(2, side // 8) for side in size), generator=generator)
        noise = 0.1 * torch.rand(batch, 3, *size, generator=generator)
        images = 0.9 * F.interpolate(coarse, size, mode="bicubic").clamp(0, 1) + noise
        return images * 4 - 2 if self.bake == "none" else (255 * images).round().to(torch.uint8)


def good_size(size: Size, divisor: int) -> Size:
    """The nearest (H, W) whose sides are multiples of ``divisor``."""
    return tuple(max(1, round(side / divisor)) * divisor for side in size)


def describe(student: Network, bundle: Bundle) -> dict[str, Any]:
    """The facts of an exported student, as plain data.

    ``mean`` and ``std`` are on the scale 0..1, ``(x / 255 - mean) / std``; they are to be applied
    by the device only where ``bake`` is ``none``. Sides of images must be multiples of
    ``divisor``, or equal ``fixed_size``.
    """
    mean = (student._mean / 255).flatten().tolist()
    std = (1 / (255 * student._scale)).flatten().tolist()
    return {
        "format": FORMAT,
        "version": __version__,
        **student.info.payload,
        "classes": list(student.classes),
        "palette": student.palette.tolist(),
        "network": student.title,
        "bake": bundle.bake,
        "input": {
            "layout": "BCHW",
            "channels": "RGB",
            "type": "float32" if bundle.bake == "none" else "uint8",
        },
        "outputs": bundle.output_names,
        "mean": [round(value, 6) for value in mean],
        "std": [round(value, 6) for value in std],
        "divisor": bundle.divisor,
        "fixed_size": bundle.fixed_size,
        "resize": bundle.resize,
    }
