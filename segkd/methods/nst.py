"""Neuron selectivity transfer: matches the distributions of the channels' activation maps.

Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. 2017,
arXiv 1707.01219.

    L = Σ_taps mean over images of [ mean k(f_s, f_s) + mean k(f_t, f_t) − 2 mean k(f_s, f_t) ]
    f: a channel's map, of norm 1 over the positions;   k(a, b) = (a·b)²  or  a·b

Taps: the last two stages by default; no adapter, channels are compared as sets.
This is the squared maximum mean discrepancy. Public code broadcasts all pairs of channels over
all positions; here the products of two sets are one Gram matrix, C x C' numbers per image. For
k = (a·b)² the loss equals the squared distance of both N x N Gram matrices over C. The paper's
third kernel, a Gaussian, is not implemented.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.masked import count_images, image_mean, peaks, position_mask
from segkd.ops.precision import full_precision
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_EPS = 1e-12  # of the mean square of a map whose largest value is 1


def nst_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    kernel: Literal["poly", "linear"] = "poly",
) -> Tensor:
    """Mean over images of the squared maximum mean discrepancy of two sets of channel maps.

    Args:
        student: features (B, C, h, w).
        teacher: features (B, C', h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.
        kernel: ``poly`` is (a·b)², ``linear`` is a·b.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = position_mask(student, mask)
    power = 2 if kernel == "poly" else 1
    with full_precision(student.device):
        student, teacher = _peak_one(student, mask), _peak_one(teacher, mask)
        own, other = student @ student.mT, teacher @ teacher.mT
        count = mask.flatten(1).sum(dim=1, keepdim=True)
        scale_s, scale_t = _inverse_norms(own, count), _inverse_norms(other, count)
        distance = (
            _mean_kernel(own, scale_s, scale_s, power)
            + _mean_kernel(other, scale_t, scale_t, power)
            - 2 * _mean_kernel(student @ teacher.mT, scale_s, scale_t, power)
        )
    return image_mean(distance.clamp(min=0), mask)


def _peak_one(maps: Tensor, mask: Tensor) -> Tensor:
    """(B, C, N), zero at invalid positions; no square overflows. Norms undo the scale."""
    maps = maps.masked_fill(~mask.unsqueeze(1), 0).flatten(2)
    return maps / peaks(maps, _EPS)


def _inverse_norms(gram: Tensor, count: Tensor) -> Tensor:
    """(B, C): 1 / ‖map‖ from the products (B, C, C) of maps that have ``count`` positions."""
    return (gram.diagonal(dim1=1, dim2=2) + _EPS * count.clamp(min=1)).rsqrt()


def _mean_kernel(products: Tensor, rows: Tensor, columns: Tensor, power: int) -> Tensor:
    """Mean kernel of maps of norm 1, from the products (B, C, C') and inverse norms: (B,)."""
    return (products * rows.unsqueeze(2) * columns.unsqueeze(1)).pow(power).mean(dim=(1, 2))


class NSTConfig(TapListKeys):
    """Keys of the method ``nst``."""

    weight: Weight = Field(1.4, description="factor of all terms; see docs/weights.md")
    taps: list[str] | None = Field(
        None, description="taps of the student; default: the last two stages"
    )
    kernel: Literal["poly", "linear"] = Field("poly", description="(a·b)² or a·b")


class NST(TapListMethod[NSTConfig]):
    """Terms: one per tap of the student, each a mean over images."""

    name = "nst"
    kind = "feature"
    paper_weight = 50.0
    paper = "Huang, Wang: Like What You Like: Neuron Selectivity Transfer, arXiv 1707.01219"
    year = 2017
    equation = "mean_images [mean k(f_s, f_s) + mean k(f_t, f_t) − 2 mean k(f_s, f_t)], k = (a·b)²"
    cost = "products of all pairs of channels: 2·N·(C_s² + C_t² + C_s·C_t) operations per image"
    default_taps = ("stage4", "stage5")
    conversions: ClassVar = {
        "paper": Conversion(50, note="k = (a·b)²"),
        "RepDistiller, mdistiller": Conversion(50, note="per stage"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        terms = {}
        for tap, teacher_tap in self.pairs.items():
            features, target = student.tap(tap), teacher.tap(teacher_tap)
            mask = context.mask_at(*common_size(features, target))
            value = nst_loss(features, target, mask=mask, kernel=self.config.kernel)
            terms[tap] = Term(value, count_images(mask))
        return terms
