"""CanKD: each position of the student attends to all of the teacher before they are compared.

Sun, Ohyama: CanKD: Cross-Attention-based Non-local operation for Feature-based Knowledge
Distillation. WACV 2026, arXiv 2511.21503.

    L = ½ mean over valid positions and channels of (IN(z) − IN(F_t))²
    z = s + γ · norm(W y),   y_i = (1/N) Σ_j (θ(s_i) · φ(F_t)_j) g(F_t)_j,   s = a(F_s)
    IN: mean 0 and variance 1 of each channel over the valid positions of an image

Taps: ``head`` by default. The published segmentation runs tap the last stage (``tap: stage5``),
whose four convolutions have 8 million parameters at 2048 channels.
θ, φ, g: 1x1 to half of the channels; φ and g are max-pooled 2x2 to N positions j; γ starts at 0, so
that a new block is the identity. There is no softmax: y = θ(s)ᵀ (Σ_j φ_j g_jᵀ / N), a product with
one small matrix per image instead of the public code's N·h·w products, with the same result.

The values are the teacher's, but only through that matrix: at each position z is a linear function
of the student's vector there, the same at all positions of an image. So the block cannot draw what
the student lacks. With a student that is constant over the positions the loss is ½ whatever the
layers are; what they can do without the student is what an adapter of each image could.
In the public code the norm of W y is a batch normalisation; here it is IN, and biases that IN
removes are left out. Its pooling drops the last row and column of odd sides; here all count.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.modules.adapter import channel_adapter
from segkd.ops.masked import position_mask
from segkd.ops.nodes import raised
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.squared_distance import masked_mse
from segkd.structures import Batch, Outputs, Term


def cankd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda student, teacher, mask: student,
) -> Tensor:
    """Half the mean squared difference of instance-normalised features.

    Args:
        student: features (B, C, h, w), aligned to the teacher's channels.
        teacher: features (B, C, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.
        attend: z of student, teacher and mask, all of one size, e.g. a ``CrossAttention``; by
            default the student, as with a new one.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the channels differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = position_mask(student, mask)
    attended = attend(student, teacher, mask)
    return masked_mse(instance_norm(attended, mask), instance_norm(teacher, mask), mask) / 2


def instance_norm(maps: Tensor, mask: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Each channel with mean 0 and variance 1 over the valid positions of an image.

    Args:
        maps: (B, C, h, w).
        mask: (B, h, w) bool, True where positions are valid.
        eps: added to the variance.

    Returns:
        (B, C, h, w), float32 or wider, 0 at invalid positions.
    """
    hidden = ~mask.unsqueeze(1)
    count = mask.sum(dim=(1, 2)).clamp(min=1).view(-1, 1, 1, 1)
    maps = raised(maps).masked_fill(hidden, 0)
    mean = maps.sum(dim=(2, 3), keepdim=True) / count
    centred = (maps - mean).masked_fill(hidden, 0)
    variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
    return centred * (variance + eps).rsqrt()


class CrossAttention(nn.Module):
    """z = s + γ · IN(W y): a non-local block with the student's queries and the teacher's values.

    Args:
        channels: of both maps.
        width: channels of queries, keys and values; 0: half of them.
    """

    def __init__(self, channels: int, width: int = 0) -> None:
        super().__init__()
        width = width or max(1, channels // 2)
        self.query = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.key = nn.Conv2d(channels, width, kernel_size=1)
        self.value = nn.Conv2d(channels, width, kernel_size=1)
        self.project = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        self.gain = nn.Parameter(torch.zeros(channels))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Adds what each position of the student finds in the teacher.

        Args:
            student: (B, channels, h, w).
            teacher: (B, channels, h, w).
            mask: (B, h, w) bool, True where positions are valid; the others are no keys.

        Returns:
            (B, channels, h, w), float32 or wider.
        """
        keys, kept = _pooled(raised(self.key(teacher)), mask)
        values, _ = _pooled(raised(self.value(teacher)), mask)
        queries = raised(self.query(student))
        count = kept.sum(dim=1).clamp(min=1).view(-1, 1, 1)
        with torch.autocast(student.device.type, enabled=False):
            table = keys @ values.mT / count  # (B, width, width), key by value
            found = torch.einsum("bkhw,bkv->bvhw", queries, table)
        step = instance_norm(self.project(found), mask)
        return raised(student) + self.gain.view(-1, 1, 1) * step


def _pooled(maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over the valid positions of 2x2 cells; (B, C, N), 0 if there is none, and (B, N)."""
    seen = F.max_pool2d(mask.unsqueeze(1).to(maps.dtype), 2, ceil_mode=True) > 0
    maps = maps.masked_fill(~mask.unsqueeze(1), -torch.inf)
    cells = F.max_pool2d(maps, 2, ceil_mode=True).masked_fill(~seen, 0)
    return cells.flatten(2), seen.flatten(1)


class CanKDConfig(TapKeys, ScaleKeys):
    """Keys of the method ``cankd``."""

    weight: Weight = Field(1.6, description="factor of all terms; see docs/weights.md")
    width: NonNegativeInt = Field(
        0, description="channels of queries, keys and values; 0: half of the teacher's"
    )


class CanKD(TapMethod[CanKDConfig]):
    """Term ``cankd``, a mean over valid positions."""

    name = "cankd"
    kind = "feature"
    paper_weight = 10.0
    scale_free = False
    paper = "Sun, Ohyama: Cross-Attention-based Non-local operation for KD, arXiv 2511.21503"
    year = 2026
    published = "Cityscapes, PSPNet-R18: 74.87 → 76.24 (its README)"
    equation = (
        "½ mean (IN(z) − IN(F_t))², z = s + γ · norm(W Σ_j (θ(s)·φ(F_t)_j) g(F_t)_j / N); θ, φ, g, "
        "W: 1x1 convolutions, j: the N positions, IN: instance norm"
    )
    cost = "four 1x1 convolutions to and from C_t/2 channels: about 5·N·C_t² operations forward"
    conversions: ClassVar = {
        "CanKD": Conversion(10, note="its README counts 5: it leaves out the ½"),
        "CanKD, PSPNet-R101 to DeepLabV3-R18": Conversion(20, note="10 in its README"),
    }

    def build(self, spec: BuildContext) -> None:
        channels = spec.teacher[self.teacher_tap].channels
        self.adapter = channel_adapter(spec.student[self.config.tap].channels, channels, gain=1.0)
        self.attention = CrossAttention(channels, self.config.width)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.scaled(student, teacher, context)
        features = self.adapter(features)
        mask = context.mask_at(*common_size(features, target))
        value = cankd_loss(features, target, mask=mask, attend=self.attention)
        return {"cankd": Term(value, mask.sum(dtype=torch.float64))}
