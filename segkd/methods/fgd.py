"""FGD: foreground and background apart, where the teacher attends, and the image as a whole.

Yang, Li, Jiang, Gong, Yuan, Zhao, Yuan: Focal and Global Knowledge Distillation for Detectors.
CVPR 2022, arXiv 2111.11837.

    focal     Σ_{side} w_side · mean over the side of S_t · mean_c C_t (a(F_s) − F_t)²
    attention w_sp · mean_i |S_s − S_t| + w_ch · mean_c |C_s − C_t|
    global    w · mean over positions and channels of (R_s(a(F_s)) − R_t(F_t))²
    S = n softmax_i(mean_c |F| / T) over n valid positions, C likewise over channels: mean 1

Taps: ``head`` by default; a is a 1x1 convolution if channels differ, R a GcBlock of its own for
each side, both trained. The paper detects: its foreground is the boxes, each weighing the same.
Here it is class regions (``regions: true``, what matters in streets) or their pixels; see defeat.
Public code sums over channels and positions, so its weights fit one size only.
The block is that of Cao, Xu, Lin, Wei, Hu: GCNet. ICCV Workshops 2019, arXiv 1904.11492.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, MethodConfig, Weight
from segkd.methods.shared.foreground import ForegroundKeys, ForegroundMethod, Sides
from segkd.ops.masked import count_images, image_mean, masked_mse, require_equal_shapes
from segkd.ops.resize import match_sizes
from segkd.structures import Batch, Outputs, Term

# the published sums at 256 channels and 64x128 positions, as means
_WEIGHTS = {"foreground": 1.8, "background": 0.13, "spatial": 8.2, "channel": 0.26, "context": 10.0}


def fgd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    foreground: Tensor,
    mask: Tensor | None = None,
    regions: Tensor | None = None,
    temperature: float = 0.5,
    weights: dict[str, float] = _WEIGHTS,
    relate: tuple[Callable, Callable] | None = None,
) -> Tensor:
    """Weighted sum of focal, attention and global terms.

    Args:
        student: features (B, C, h, w), in the teacher's channels.
        teacher: features (B, C, h', w'); without gradient.
        foreground: (B, h, w) bool at the smaller of both sizes.
        mask: (B, h, w) bool, True where positions are valid; None: all.
        regions: (B, h, w) int64, ids from 0 at valid positions, e.g. labels: each region of an
            image then weighs the same within its side; None: each position does.
        temperature: T of both attentions.
        weights: w of foreground, background, spatial, channel, context; 0 where missing.
        relate: R of student and of teacher, called with maps and mask; None: as a fresh GcBlock,
            which is the identity.

    Returns:
        A scalar, float32 or wider; 0 with a graph if no position is valid.

    Raises:
        ValueError: the channels differ, or a mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    sides = Sides.of_maps(student, foreground, mask, regions)
    terms = _terms(student, teacher, sides, temperature, relate)
    return sum(weights.get(name, 0.0) * term.value for name, term in terms.items())


def attentions(maps: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """S (B, h, w) and C (B, C): softmaxes of mean absolute values, scaled to a mean of 1.

    Both see valid positions only. S is 0 elsewhere; in an image without any both are finite.
    """
    size = maps.masked_fill(~mask.unsqueeze(1), 0).abs()
    count = mask.sum(dim=(1, 2)).clamp(min=1).to(maps.dtype).unsqueeze(1)
    hidden = ~mask.flatten(1) & mask.flatten(1).any(dim=1, keepdim=True)
    spatial = size.mean(dim=1).flatten(1) / temperature
    spatial = count * spatial.masked_fill(hidden, -torch.inf).softmax(dim=1)
    channel = size.sum(dim=(2, 3)) / (count * temperature)
    return spatial.view_as(mask), maps.shape[1] * channel.softmax(dim=1)


def _terms(
    student: Tensor,
    teacher: Tensor,
    sides: Sides,
    temperature: float,
    relate: tuple[Callable, Callable] | None,
) -> dict[str, Term]:
    """All terms by name, on maps of one size."""
    require_equal_shapes(student, teacher)
    mask = sides.mask
    student, teacher = (maps.masked_fill(~mask.unsqueeze(1), 0) for maps in (student, teacher))
    (own_spatial, own_channel), (spatial, channel) = (
        attentions(maps, mask, temperature) for maps in (student, teacher)
    )
    distance = ((student - teacher).square() * channel[:, :, None, None]).mean(dim=1)
    terms = sides.terms(distance * spatial)
    positions = mask.sum(dim=(1, 2)).clamp(min=1)
    shift = (own_spatial - spatial).abs().masked_fill(~mask, 0).sum(dim=(1, 2)) / positions
    images = count_images(mask)
    terms["spatial"] = Term(image_mean(shift, mask), images)
    terms["channel"] = Term(image_mean((own_channel - channel).abs().mean(dim=1), mask), images)
    if relate is not None:
        student, teacher = (
            block(m, mask) for block, m in zip(relate, (student, teacher), strict=True)
        )
    terms["context"] = Term(masked_mse(student, teacher, mask), mask.sum(dtype=torch.float64))
    return terms


class FGD(ForegroundMethod):
    name = "fgd"
    kind = "feature"
    paper = "Yang et al.: Focal and Global Knowledge Distillation for Detectors, arXiv 2111.11837"
    year = 2022
    equation = "Σ_sides w · mean S C (a(F_s) − F_t)² + |S_s − S_t| + |C_s − C_t| + (R_s − R_t)²"
    cost = "about eight passes over the features; C_t² parameters in two blocks"
    default_weights: ClassVar = _WEIGHTS
    conversions: ClassVar = {
        "FGD foreground": Conversion(1e-3, {"C_t": 1}, "times regions; also 1.6e-3, 5e-5"),
        "FGD background": Conversion(5e-4, {"C_t": 1}, "`weights.background`"),
        "FGD spatial": Conversion(1e-3, {"h": 1, "w": 1}, "gamma; `weights.spatial`"),
        "FGD channel": Conversion(1e-3, {"C_t": 1}, "gamma; `weights.channel`"),
        "FGD global": Conversion(5e-6, {"C_t": 1, "h": 1, "w": 1}, "`weights.context`"),
    }

    class Config(ForegroundKeys, MethodConfig):
        weight: Weight = Field(0.1, description="factor of all terms; see docs/weights.md")
        regions: bool = Field(True, description="classes of an image weigh the same in a side")
        temperature: PositiveFloat = Field(0.5, description="T of both attentions")

    def build(self, spec: BuildContext) -> None:
        super().build(spec)
        channels = spec.teacher[self.teacher_tap].channels
        self.regressor = self.aligned(spec)
        self.student_context, self.teacher_context = (GlobalContext(channels) for _ in range(2))

    def loss(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.scaled(student, teacher, context)
        features, target = match_sizes(self.regressor(features), target)
        sides = self.sides(batch, context, features.shape[-2:])
        relate = self.student_context, self.teacher_context
        return _terms(features, target, sides, self.config.temperature, relate)


class GlobalContext(nn.Module):
    """x + MLP(Σ_i softmax_i(w · x_i) x_i), the softmax over the valid positions of an image.

    The last layer starts at zero: a new block is the identity.

    Args:
        channels: of the maps.
        ratio: channels over those inside of the MLP.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        inner = max(4, channels // ratio)  # a LayerNorm over one channel says nothing
        self.score = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Linear(channels, inner),
            nn.LayerNorm(inner),
            nn.ReLU(),
            nn.Linear(inner, channels),
        )
        nn.init.kaiming_normal_(self.score.weight)
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """(B, C, h, w) and (B, h, w) bool to (B, C, h, w); the invalid positions must be finite."""
        scores = self.score(maps).flatten(1).float().masked_fill(~mask.flatten(1), -torch.inf)
        empty = ~mask.flatten(1).any(dim=1, keepdim=True)
        attention = scores.masked_fill(empty, 0).softmax(dim=1).to(maps.dtype)
        context = torch.einsum("bcn,bn->bc", maps.flatten(2), attention)
        return maps + self.transform(context)[:, :, None, None]
