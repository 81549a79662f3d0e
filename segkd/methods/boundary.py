"""Boundary distillation: classes of pixels along borders, and shapes of what lies between them.

The idea of Liu, Wang, Phan, Zhang, Ge, Liu: BPKD: Boundary Privileged Knowledge Distillation For
Semantic Segmentation. WACV 2024, arXiv 2306.08075.

    M_c = dilation − erosion of the labels of class c, by a window of `width` pixels
    edge = T_e² · mean over images and classes with a band of the mean over i ∈ M_c of KL_i
    body = T_b²/K · mean over images of Σ_c Σ_{i ∉ M_c} φ_t log(φ_t / φ_s)

KL_i is the divergence of softmax(z_i / T_e) over the classes of pixel i (as in `kd`), and
φ = softmax(z_c / T_b) over the positions of channel c outside of its band (as in `cwd`). In edge
each class of an image counts alike, whatever the length of its border.

There is no public training code, and of the paper only the abstract was read: both losses are from
descriptions by others. Ours: masks are bool, taken by nearest neighbour, not means over cells of
the logits; positions outside of a mask are excluded, where a logit times 0 would still take part in
its softmax; the mean over classes is one over those present; void makes no border; weights and
temperatures.

Taps: the logits of both at head resolution, and labels. On images without labels, borders are those
of the teacher's confident classes (``pseudo_labels``), and pixels without one are left out.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs, Weight
from segkd.ops.bands import class_bands
from segkd.ops.masked import position_mask
from segkd.ops.resize import match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.structures import Batch, Outputs, Term


def boundary_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    width: int = 7,
    edge_temperature: float = 1.0,
    body_temperature: float = 4.0,
    edge_weight: float = 1.0,
    body_weight: float = 1.0,
) -> Tensor:
    """w_e · edge + w_b · body, of the equations in the module's docstring.

    Args:
        student: logits (B, K, h, w).
        teacher: logits (B, K, h', w'); detached. Log-probabilities are not supported.
        labels: (B, H, W) int64, at any size; any value outside of 0 … K−1 is void.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        width: of the band in pixels of the labels, odd: at 1 there is none.
        edge_temperature: T_e.
        body_temperature: T_b.
        edge_weight: w_e.
        body_weight: w_b.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape, or the classes differ.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    edge, body = _terms(
        student,
        teacher,
        class_bands(labels, _size(student), student.shape[1], width),
        position_mask(student, mask),
        (edge_temperature, body_temperature),
    )
    return edge_weight * edge.value + body_weight * body.value


class BoundaryConfig(MethodConfig):
    """Keys of the method ``boundary``."""

    weight: Weight = Field(0.15, description="factor of all terms; see docs/weights.md")
    width: int = Field(7, ge=1, description="of the band along borders, in pixels of the labels")
    edge_temperature: PositiveFloat = Field(1.0, description="T of the softmax over classes")
    body_temperature: PositiveFloat = Field(4.0, description="T of the softmax over positions")

    @field_validator("width")
    @classmethod
    def _has_a_middle(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError(
                f"got {width}, but a band lies evenly on both sides of a border: use an odd "
                f"number of pixels, {width - 1} or {width + 1}"
            )
        return width


class Boundary(Method[BoundaryConfig]):
    """Terms ``edge`` and ``body``, means over images and the classes that have one."""

    name = "boundary"
    kind = "response"
    needs = Needs(student=("logits",), teacher=("logits",), labels=True)
    scale_free = False
    paper = "the idea of Liu et al.: Boundary Privileged Knowledge Distillation, arXiv 2306.08075"
    year = 2024
    published = "of BPKD: Cityscapes, PSPNet-R18: 74.23 → 77.57 (its paper; cwd: 76.26)"
    equation = "w_e · mean_c mean_{i ∈ border of c} KL over classes + w_b · CWD outside of borders"
    cost = "a KL over classes and one over positions; two tensors of the logits' size are kept"
    default_weights: Mapping[str, float] = {"edge": 1.0, "body": 1.0}
    conversions: ClassVar = {
        "CWD, as the body": Conversion(3, note="body; T 4; without a border it is `cwd`"),
    }

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        config = self.config
        own, other = match_sizes(student.logits, teacher.logits.detach())
        mask = context.mask_at(*_size(own))
        own, other = match_sizes(own, other, mask=mask)
        labels = context.labels_at(*_size(batch.images))
        bands = class_bands(labels, _size(own), own.shape[1], config.width)
        degrees = config.edge_temperature, config.body_temperature
        edge, body = _terms(own, other, bands, mask, degrees)
        return {"edge": edge, "body": body}


def _terms(
    student: Tensor,
    teacher: Tensor,
    bands: Tensor,
    mask: Tensor,
    temperatures: tuple[float, float],
) -> tuple[Term, Term]:
    """Edge and body; bands (B, K, h, w) bool, the others (B, K, h, w) and (B, h, w)."""
    valid = mask.unsqueeze(1)
    bands = bands & valid
    lengths = bands.sum((2, 3), keepdim=True)  # of each image's and class's border
    share = (bands / lengths.clamp(min=1).to(student.dtype)).sum(1, keepdim=True)
    edge = softmax_kl(student, teacher, share, dim=1, temperature=temperatures[0])
    keep = (valid & ~bands).flatten(2)
    some = keep.any(2, keepdim=True)
    body = softmax_kl(
        student.flatten(2),
        teacher.flatten(2),
        some,
        dim=2,
        keep=keep,
        temperature=temperatures[1],
    )
    return _mean(edge, lengths > 0), _mean(body, some)


def _mean(total: Tensor, counted: Tensor) -> Term:
    count = counted.sum(dtype=torch.float64)
    return Term(total / count.clamp(min=1).to(total.dtype), count)


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
