"""FGD: separate foreground and background weighted by the teacher's attention, and global context.

Yang, Li, Jiang, Gong, Yuan, Zhao, Yuan: Focal and Global Knowledge Distillation for Detectors.
CVPR 2022, arXiv 2111.11837.

    focal     Σ_{side} w_side · mean over the side of S_t · mean_c C_t (a(F_s) − F_t)²
    attention w_sp · mean_i |S_s − S_t| + w_ch · mean_c |C_s − C_t|
    global    w · mean over positions and channels of (R_s(a(F_s)) − R_t(F_t))²
    S = n softmax_i(mean_c |F| / T) over n valid positions, C likewise over channels: mean 1

Taps: ``head`` by default; a is a 1x1 convolution if channels differ, R a GcBlock per network, both
trained. The paper is on detection: its foreground is the boxes, with equal weights. Here it is
class regions (``regions: true``, useful in street scenes) or their pixels; see defeat.
Public code sums over channels and positions, so its weights fit one size only.
The block is that of Cao, Xu, Lin, Wei, Hu: GCNet. ICCV Workshops 2019, arXiv 1904.11492.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.foreground import ForegroundKeys, ForegroundMethod, Sides
from segkd.ops.masked import count_images, image_mean, require_equal_shapes
from segkd.ops.resize import match_sizes
from segkd.ops.squared_distance import absolute_sums, masked_mse, squared_distance
from segkd.structures import Batch, Outputs, Term

# the published sums at 256 channels and 64x128 positions, as means
Relate = Callable[[Tensor, Tensor], Tensor]  # maps (B, C, h, w), mask (B, h, w) -> maps
_WEIGHTS = {"foreground": 1.8, "background": 0.13, "spatial": 8.2, "channel": 0.26, "context": 10.0}


def fgd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    foreground: Tensor,
    mask: Tensor | None = None,
    regions: Tensor | None = None,
    temperature: float = 0.5,
    weights: Mapping[str, float] = _WEIGHTS,
    relate: tuple[Relate, Relate] | None = None,
) -> Tensor:
    """Weighted sum of focal, attention and global terms.

    Args:
        student: features (B, C, h, w), in the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        foreground: (B, h, w) bool at the smaller of both sizes.
        mask: (B, h, w) bool, True where positions are valid; None: all.
        regions: (B, h, w) int64, ids from 0 at valid positions, e.g. labels: each region of an
            image then weighs the same within its side; None: each position does.
        temperature: T of both attentions.
        weights: w of foreground, background, spatial, channel, context; 0 if missing.
        relate: R of student and of teacher, called with maps and mask; None: the identity, like a
            new GcBlock.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ, or a mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach())
    sides = Sides.of_maps(student, foreground, mask, regions)
    terms = _terms(student, teacher, sides, temperature, relate)
    values = [weights.get(name, 0.0) * term.value for name, term in terms.items()]
    return sum(values, student.new_zeros(()))


def attentions(maps: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Softmaxes of mean absolute values over positions and over channels, with mean 1.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid; the others are ignored.
        temperature: T.

    Returns:
        S (B, h, w), 0 at invalid positions, and C (B, C); finite in images without any valid
        position.
    """
    return _attentions(maps.masked_fill(~mask.unsqueeze(1), 0), mask, temperature)


def _attentions(maps: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``attentions`` of maps that are 0 at invalid positions."""
    of_positions, of_channels = absolute_sums(maps)
    count = mask.sum(dim=(1, 2)).clamp(min=1).to(maps.dtype).unsqueeze(1)
    hidden = ~mask.flatten(1) & mask.flatten(1).any(dim=1, keepdim=True)
    spatial = of_positions.flatten(1) / (maps.shape[1] * temperature)
    spatial = count * spatial.masked_fill(hidden, -torch.inf).softmax(dim=1)
    channel = of_channels / (count * temperature)
    return spatial.view_as(mask), maps.shape[1] * channel.softmax(dim=1)


def _terms(
    student: Tensor,
    teacher: Tensor,
    sides: Sides,
    temperature: float,
    relate: tuple[Relate, Relate] | None,
) -> dict[str, Term]:
    """All terms by name, on maps of one size."""
    require_equal_shapes(student, teacher)
    mask = sides.mask
    student, teacher = (maps.masked_fill(~mask.unsqueeze(1), 0) for maps in (student, teacher))
    (own_spatial, own_channel), (spatial, channel) = (
        _attentions(maps, mask, temperature) for maps in (student, teacher)
    )
    distance = squared_distance(student, teacher, channel_weight=channel) / student.shape[1]
    terms = sides.terms(distance * spatial)
    positions = mask.sum(dim=(1, 2)).clamp(min=1)
    shift = (own_spatial - spatial).abs().masked_fill(~mask, 0).sum(dim=(1, 2)) / positions
    images = count_images(mask)
    terms["spatial"] = Term(image_mean(shift, mask), images)
    terms["channel"] = Term(image_mean((own_channel - channel).abs().mean(dim=1), mask), images)
    if relate is not None:
        student, teacher = relate[0](student, mask), relate[1](teacher, mask)
    terms["context"] = Term(masked_mse(student, teacher, mask), mask.sum(dtype=torch.float64))
    return terms


class FGDConfig(ForegroundKeys):
    """Keys of the method ``fgd``."""

    weight: Weight = Field(0.1, description="factor of all terms; see docs/weights.md")
    regions: bool = Field(True, description="classes of an image weigh the same in a side")
    temperature: PositiveFloat = Field(0.5, description="T of both attentions")


class FGD(ForegroundMethod[FGDConfig]):
    """Terms ``foreground``, ``background``, ``spatial``, ``channel``, ``context``."""

    name = "fgd"
    kind = "feature"
    paper = "Yang et al.: Focal and Global Knowledge Distillation for Detectors, arXiv 2111.11837"
    year = 2022
    equation = "Σ_sides w · mean S C (a(F_s) − F_t)² + |S_s − S_t| + |C_s − C_t| + (R_s − R_t)²"
    cost = "about eight passes over the features; C_t² parameters in two blocks"
    default_weights: Mapping[str, float] = _WEIGHTS
    conversions: ClassVar = {
        "FGD foreground": Conversion(1e-3, {"C_t": 1}, "times regions; also 1.6e-3, 5e-5"),
        "FGD background": Conversion(5e-4, {"C_t": 1}, "`weights.background`"),
        "FGD spatial": Conversion(1e-3, {"h": 1, "w": 1}, "gamma; `weights.spatial`"),
        "FGD channel": Conversion(1e-3, {"C_t": 1}, "gamma; `weights.channel`"),
        "FGD global": Conversion(5e-6, {"C_t": 1, "h": 1, "w": 1}, "`weights.context`"),
    }

    def build(self, spec: BuildContext) -> None:
        super().build(spec)
        channels = spec.teacher[self.teacher_tap].channels
        self.student_context, self.teacher_context = (GlobalContext(channels) for _ in range(2))

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target, sides = self.regressed(student, teacher, batch, context)
        relate = self.student_context, self.teacher_context
        return _terms(features, target, sides, self.config.temperature, relate)


class GlobalContext(nn.Module):
    """x + MLP(Σ_i softmax_i(w · x_i) x_i), the softmax over the valid positions of an image.

    The last layer is initialised to zero: a new block is the identity.

    Args:
        channels: of the maps.
        ratio: channels over hidden channels of the MLP.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        inner = max(4, channels // ratio)  # a LayerNorm over one channel is constant
        self.score = nn.Conv2d(channels, 1, kernel_size=1)
        first, last = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.transform = nn.Sequential(first, nn.LayerNorm(inner), nn.ReLU(), last)
        nn.init.kaiming_normal_(self.score.weight)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Adds the context of each image to all of its positions.

        Args:
            maps: (B, C, h, w), finite at invalid positions.
            mask: (B, h, w) bool, True where positions are valid.

        Returns:
            (B, C, h, w).
        """
        scores = self.score(maps).flatten(1).float().masked_fill(~mask.flatten(1), -torch.inf)
        empty = ~mask.flatten(1).any(dim=1, keepdim=True)
        attention = scores.masked_fill(empty, 0).softmax(dim=1).to(maps.dtype)
        context = torch.einsum("bcn,bn->bc", maps.flatten(2), attention)
        return maps + self.transform(context)[:, :, None, None]
