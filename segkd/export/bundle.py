"""The exported network: a student with normalisation, resize and argmax baked in."""

import copy
import hashlib
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd import __version__
from segkd.errors import ConfigError, SegKDError
from segkd.export.enet_layers import MaskDown
from segkd.export.lane_decoder import LaneDecoder, LaneDecoding
from segkd.export.layers import exportable
from segkd.models.network import Network
from segkd.models.onnx_metadata import FORMAT
from segkd.models.payload import with_baked_rules
from segkd.models.quantized import bake_weights, largest_levels, without_input_grids
from segkd.modules.module_map import ModuleMap
from segkd.ops.resize import good_size

Bake = Literal["none", "normalize", "labels", "lanes"]
Size = tuple[int, int]


def check_bake(bake: str, key: str = "bake") -> None:
    """Raises ConfigError for what is no ``Bake``, of the argument ``key``."""
    known = get_args(Bake)
    if bake not in known:
        raise ConfigError(f"{key}: got '{bake}'. Known: {', '.join(known)}")


def check_size(key: str, size: Size | None) -> None:
    """Raises ConfigError for a height or width of no pixels, of the argument ``key``."""
    if size is not None and min(size) < 1:
        raise ConfigError(
            f"{key}: got {size[0]}x{size[1]}, expected a height and a width in pixels, at least 1"
        )


class Bundle(nn.Module):
    """A student with pre- and postprocessing.

    Args:
        student: is copied, without auxiliary heads.
        bake: ``none``: normalised floats in, logits out; ``normalize``: uint8 RGB in, logits out;
            ``labels``: uint8 RGB in, class ids (B, H, W) out, at the size of the images;
            ``lanes``: uint8 RGB in, points of lanes (B, L, R, 2) and existence (B, L) out.
        resize: (h, w) to which images are resized first; None: they are not.
        lanes: how lanes are decoded, for ``bake="lanes"``; None: as in the training's evaluations.

    Attributes:
        divisor: height and width of the input must be multiples of it.
        fixed_size: the only (H, W) that it takes, or None.
        output_names: names of the outputs of ``forward``.
        flips: whether rounding can change values by more than rounding: ENet puts values where a
            window of 2x2 had its maximum, and two of them may be almost equal.

    Raises:
        ConfigError: an unknown ``bake``, a ``resize`` of no pixels, or a student that is an
            exported file.
        SegKDError: ``resize`` is not a valid size for this network, or it has no labels to bake in.
    """

    def __init__(
        self,
        student: Network,
        bake: Bake = "normalize",
        resize: Size | None = None,
        lanes: LaneDecoding | None = None,
    ) -> None:
        super().__init__()
        check_bake(bake)
        check_size("resize", resize)
        if hasattr(student, "exported"):
            raise ConfigError(f"{student.title} is exported already. Give its checkpoint")
        self.bake, self.resize = bake, resize
        if student.rows and bake == "labels":
            raise SegKDError(
                "bake: this student classifies rows of lanes and labels no pixels. Use "
                "--bake lanes for points, or normalize (or none) for the logits of the rows' cells"
            )
        self.network = _prepared(student, bake)
        network = self.network
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
        self.flips = any(isinstance(module, MaskDown) for module in network.modules())
        self.output_names = ["labels" if bake == "labels" else "logits"]
        self.decoder: LaneDecoder | None = None
        if bake == "lanes":
            self.decoder = LaneDecoder(network, lanes or LaneDecoding.of(student), resize)
            self.divisor, self.fixed_size = 1, self.decoder.input_size
            self.output_names = ["points", "existence"]
            return
        with torch.no_grad():
            side = resize or network.probe_size()
            if network(torch.zeros(1, 3, *side)).exist is not None:
                self.output_names.append("exist")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors of ``output_names``.

        Args:
            images: (B, 3, H, W), uint8, or float32 with ``bake="none"``.
        """
        size = images.shape[-2:]
        if self.decoder is not None:
            seen = self.decoder.seen(images)
            outputs = self.network(seen)
            points: tuple[Tensor, ...] = self.decoder(outputs.logits, outputs.exist)
            return points
        if self.resize:
            images = F.interpolate(images.float(), self.resize, mode="bilinear", antialias=True)
        outputs = self.network(images)
        found = outputs.logits
        if self.bake == "labels":
            found = F.interpolate(found, size, mode="bilinear").argmax(1)
            found = found.to(torch.uint8 if self.network.num_classes <= 256 else torch.int64)
        return (found,) if outputs.exist is None else (found, outputs.exist)

    def example(self, batch: int, size: Size, seed: int = 0) -> Tensor:
        """Random smooth images (batch, 3, H, W) as the bundle takes them.

        Args:
            batch: number of images.
            size: (H, W).
            seed: of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, *(max(2, side // 8) for side in size), generator=generator)
        noise = 0.1 * torch.rand(batch, 3, *size, generator=generator)
        images = 0.9 * F.interpolate(coarse, size, mode="bicubic").clamp(0, 1) + noise
        return images * 4 - 2 if self.bake == "none" else (255 * images).round().to(torch.uint8)


def _prepared(student: Network, bake: Bake) -> Network:
    """A frozen copy in fp32 on the CPU with exportable layers."""
    network = copy.deepcopy(student).cpu().float().eval().requires_grad_(False)
    network.aux_heads = ModuleMap({})
    bake_weights(network)
    without_input_grids(network)  # an int8 file has them for all operators
    if bake == "none":
        network._mean.zero_()
        network._scale.fill_(1.0)
    exportable(network)
    return network


def describe(student: Network, bundle: Bundle, only: Size | None = None) -> dict[str, Any]:
    """Metadata of an exported student as plain data.

    Args:
        student: the network.
        bundle: its exported form.
        only: (H, W) of the images, if the file is traced for one image of one size.

    ``mean`` and ``std`` are on the scale 0..1, ``(x / 255 - mean) / std``; the device has to apply
    them only if ``bake`` is ``none``. Sides of images must be multiples of ``divisor``, or equal
    ``fixed_size``. With ``lane_points`` the file decodes lanes: points are in pixels of images of
    ``camera``, of which rows from ``top`` + ``cut`` on are resized to the input, or (``whole``) the
    input is the image itself. Of a student that classifies rows of lanes ``rows`` are their heights
    in the image as shares; see ``ops.row_cells`` for its logits.
    """
    mean = (student._mean / 255).flatten().tolist()
    std = (1 / (255 * student._scale)).flatten().tolist()
    facts = {
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
        "fixed_size": only or bundle.fixed_size,
        "resize": bundle.resize,
        **({"rows": list(student.rows)} if student.rows else {}),
        **({"lane_points": bundle.decoder.facts()} if bundle.decoder else {}),
        **_levels(student, bundle),
    }
    return with_baked_rules(facts)


def _levels(student: Network, bundle: Bundle) -> dict[str, Any]:
    """The levels of a quantised student, from which an int8 file finds its scales again."""
    facts = student.info.quantization
    if facts is None or not facts.fits_int8:
        return {}
    # Weights of linear layers are often transposed, and lose their names.
    turned = {
        digest(layer.weight.detach().numpy().T): path
        for path in facts.layers
        if isinstance(layer := bundle.network.get_submodule(path), nn.Linear)
    }
    return {"levels": largest_levels(bundle.network, facts), "transposed": turned}


def digest(weight: np.ndarray) -> str:
    """A hash of the values of a weight, any shape, by which it is found without its name."""
    return hashlib.blake2b(np.ascontiguousarray(weight).tobytes(), digest_size=12).hexdigest()
