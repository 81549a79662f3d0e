"""IFVD: matches the similarity of each pixel's feature to the mean feature of its class.

Wang, Zhou, Jiang, Bai, Xu: Intra-class Feature Variation Distillation for Semantic Segmentation.
ECCV 2020, doi 10.1007/978-3-030-58571-6_21.

    L = mean over valid pixels of (v_s − v_t)²,   v = cos(f, p_c),   p_c = mean of f over the
    valid pixels of the same image whose class c is the pixel's own

Taps: ``head`` by default; no adapter, since cosines have no channels.
Public code expands a mask and a mean to the features' size for each class, and counts void pixels
as their own centres, with cosine 1 on both sides, which dilutes the mean. Here means are products
with one-hot labels, and void pixels are skipped.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.masked import position_mask
from segkd.ops.precision import full_precision
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_EPS = 1e-8  # of mean squares, so that an all-zero feature has cosine 0 and a finite gradient


def ifvd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    num_classes: int | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Mean over labelled pixels of the squared difference of cosines to the class means.

    Args:
        student: features (B, C, h, w).
        teacher: features (B, C', h', w'); detached.
        labels: (B, h, w) int64 at the smaller of both sizes; ``ignore_index``, negative ids
            and those from ``num_classes`` on are void.
        mask: (B, h, w) bool, True where pixels are valid; None: all. Void pixels never are.
        num_classes: K; None: read from the labels, which synchronises with the device.
        ignore_index: the label of void pixels.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.
    """
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = position_mask(student, mask) & (labels != ignore_index) & (labels >= 0)
    if num_classes is not None:
        mask = mask & (labels < num_classes)
    labels = labels.masked_fill(~mask, 0)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    classes = torch.arange(num_classes, device=labels.device)
    one_hot = (labels.flatten(1).unsqueeze(2) == classes) & mask.flatten(1).unsqueeze(2)
    difference = _cosines(student, one_hot) - _cosines(teacher, one_hot)
    return difference.square().sum() / mask.sum().clamp(min=1)


def _cosines(features: Tensor, one_hot: Tensor) -> Tensor:
    """Cosine of each pixel's feature and its class's mean: (B, N), 0 at invalid pixels.

    Args:
        features: (B, C, h, w).
        one_hot: (B, N, K), all zero at invalid pixels.
    """
    hidden = ~one_hot.any(dim=2)
    one_hot = one_hot.to(features.dtype)
    features = features.flatten(2).masked_fill(hidden.unsqueeze(1), 0)
    with full_precision(features.device):
        sums = torch.bmm(features, one_hot)  # (B, C, K)
        means = sums / one_hot.sum(dim=1, keepdim=True).clamp(min=1)
        products = torch.bmm(features.transpose(1, 2), means * _inverse_norm(means))
    own = (products * one_hot).sum(dim=2)
    return own * _inverse_norm(features).squeeze(1)


def _inverse_norm(vectors: Tensor) -> Tensor:
    """1 / norm over axis 1, which is kept."""
    mean_square = vectors.square().mean(dim=1, keepdim=True)
    return ((mean_square + _EPS) * vectors.shape[1]).rsqrt()


class IFVDConfig(TapKeys):
    """Keys of the method ``ifvd``."""

    weight: Weight = Field(10.0, description="factor of all terms; see docs/weights.md")


class IFVD(TapMethod[IFVDConfig]):
    """Term ``ifvd``, a mean over labelled pixels."""

    name = "ifvd"
    kind = "feature"
    paper_weight = 20.0
    needs_labels = True
    paper = "Wang et al.: Intra-class Feature Variation Distillation for Semantic Segmentation"
    year = 2020
    published = "Cityscapes, PSPNet-R18: 69.10 → 71.35 (table 2 of CWD)"
    equation = (
        "mean_pixels (v_s − v_t)², v = cos(f, mean of f over the image's pixels of its class)"
    )
    cost = "products of the features with K class means; no tensor of their size for each class"
    exempt: ClassVar = {"mask_not_padding": "a position without a label has no class mean"}
    conversions: ClassVar = {
        "IFVD": Conversion(200, note="without void pixels; with KD and a critic"),
        "CIRKD": Conversion(20, note="without void pixels"),
    }

    def build(self, spec: BuildContext) -> None:
        self.num_classes = spec.num_classes

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        features, target = self.tapped(student, teacher)
        size = common_size(features, target)
        labels = context.labels_at(*size)
        mask = context.mask_at(*size) & (labels != batch.ignore_index)
        value = ifvd_loss(
            features,
            target,
            labels=labels,
            mask=mask,
            num_classes=self.num_classes,
            ignore_index=batch.ignore_index,
        )
        return {"ifvd": Term(value, mask.sum(dtype=torch.float64))}
