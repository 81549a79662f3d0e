"""DIST: the student's probabilities correlate with the teacher's, within pixels and classes.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022,
arXiv 2205.10536.

    L = T² · (w_1 · mean over valid pixels i of (1 − ρ_i) + w_2 · mean over classes k of (1 − ρ_k))

ρ_i is Pearson's correlation of p_s and p_t over the classes of pixel i (inter), ρ_k over all valid
pixels of the batch for class k (intra); p = softmax(z / T) over classes. A correlation allows the
teacher to be sharper than the student. ``eps`` is added to the variances, for constant maps.

Taps: the logits of both at head resolution. The authors add 0.4 times the loss on the auxiliary
heads, and include padding and void pixels. Their intra term covers the images of one device only;
here it covers all processes. A well-known port for detectors keeps (B, K, h, w), so that its intra
term correlates along the images; that is a different loss.

With two classes ρ_i is 1 or −1: inter has no gradient and is refused at build.

``features: true`` is DIST+ (Huang et al., TPAMI 2025), which correlates a feature map as well:

    L + ι · mean over valid positions of (1 − ρ over channels)
      + κ · mean over channels of (1 − ρ over all valid positions of the batch)

A public port has ρ − 1 there, which drives the features apart. The paper was not read: both terms
are from descriptions of that port. That κ's correlation is one per channel is ours, as are
ι = κ = 1.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import (
    BuildContext,
    Context,
    Conversion,
    Method,
    MethodConfig,
    Needs,
    TapNames,
    Weight,
)
from segkd.methods.shared.feature_correlation import (
    FeatureCorrelation,
    inter_distance,
    intra_distance,
    matched,
)
from segkd.methods.shared.tapped import bound_pairs
from segkd.ops.resize import common_size
from segkd.structures import Batch, Outputs, Term

_FEATURE_WEIGHTS = {"feature_inter": 1.0, "feature_intra": 1.0}


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    eps: float = 1e-10,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """T² · (w_1 · (1 − correlation within pixels) + w_2 · (1 − correlation within classes)).

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        temperature: T.
        inter_weight: w_1; with two classes this term has no gradient.
        intra_weight: w_2.
        eps: added to the variances of probabilities.
        all_sum: sums a tensor over processes, and so does its backward. Both terms are then those
            of all images, the same on every process; average gradients, do not sum them.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.
    """
    student, teacher, mask = _probabilities(student, teacher, mask, temperature)
    inter = inter_distance(student, teacher, mask, eps) * mask.sum()
    inter, pixels = all_sum(torch.stack([inter, mask.sum().to(inter.dtype)]))
    intra = intra_distance(student, teacher, mask, eps, all_sum)
    return temperature**2 * (inter_weight * inter / pixels.clamp(min=1) + intra_weight * intra)


class DISTConfig(MethodConfig):
    """Keys of the method ``dist``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(1.0, description="T of both softmaxes")
    eps: PositiveFloat = Field(1e-10, description="added to the variances of probabilities")
    features: bool = Field(
        False,
        description="DIST+: correlate features, too: weights feature_inter 1, feature_intra 1",
    )
    tap: str | None = Field(None, description="with `features`: the student's; default: head")
    teacher_tap: str = Field("", description="that of the teacher; default: like `tap`")

    @model_validator(mode="after")
    def _taps_are_of_features(self) -> "DISTConfig":
        if (self.tap or self.teacher_tap) and not self.features:
            raise ValueError(
                f"got tap '{self.tap or self.teacher_tap}' but no features, and only these are "
                "tapped. Add features: true, or remove the tap"
            )
        return self


class DIST(Method[DISTConfig]):
    """Terms ``inter`` (a mean over valid pixels) and ``intra`` (the same on all processes)."""

    name = "dist"
    kind = "response"
    paper = "Huang et al.: Knowledge Distillation from A Stronger Teacher, arXiv 2205.10536"
    year = 2022
    published = "Cityscapes, DeepLabV3-R18: 74.21 → 77.10 (its README)"
    equation = "T² · (mean_pixels (1 − ρ over classes) + mean_classes (1 − ρ over pixels)), ρ of p"
    cost = "two softmaxes over the logits; both are kept for backward"
    default_weights: Mapping[str, float] = {"inter": 1.0, "intra": 1.0}
    exempt: ClassVar = {"any_temperature": "the paper has T² before correlations, which have no T"}
    conversions: ClassVar = {
        "DIST_KD segmentation": Conversion(1, note="T 1; and 0.4 on the auxiliary heads"),
        "mmrazor": Conversion(2, note="T 1; for rows of classes, not for maps"),
    }

    def __init__(self, config: DISTConfig | None = None) -> None:
        super().__init__(config)
        self.tap = self.config.tap or "head"
        self.teacher_tap = self.config.teacher_tap or self.tap
        self.features = FeatureCorrelation() if self.config.features else None
        if self.features is not None:
            self.default_weights = {**self.default_weights, **_FEATURE_WEIGHTS}
        weights = {**self.default_weights, **self.config.weights}
        self.terms = [name for name in self.default_weights if weights[name] > 0]

    @property
    def needs(self) -> Needs:
        """The logits of both, and with ``features`` a tap of each."""
        more = (self.tap,) if self.config.features else ()
        theirs = (self.teacher_tap,) if self.config.features else ()
        return Needs(("logits", *more), ("logits", *theirs), accepts_log_prob=True)

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.features and self.config.tap is None:
            chosen = [self.config.teacher_tap] if self.config.teacher_tap else []
            pairs = bound_pairs(("head",), student, teacher, chosen=chosen)
            ((self.tap, self.teacher_tap),) = pairs.items()

    def build(self, spec: BuildContext) -> None:
        if not self.terms:
            raise ConfigError("dist: all of its weights are 0. Raise one or drop the entry")
        if self.features is not None:
            mine, theirs = spec.student[self.tap], spec.teacher[self.teacher_tap]
            self.features.build(mine.channels, theirs.channels)
        if spec.num_classes == 2 and "inter" in self.terms:
            raise ConfigError(
                "dist: with 2 classes two distributions correlate by 1 or -1, so the inter term "
                "has no gradient. Switch it off in this entry: weights.inter=0"
            )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        temperature, eps = self.config.temperature, self.config.eps
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        logits = self._of_known(student.logits, teacher.logits, teacher.unknown)
        maps = _probabilities(*logits, mask, temperature)
        terms = {}
        if "inter" in self.terms:
            value = temperature**2 * inter_distance(*maps, eps)
            terms["inter"] = Term(value, mask.sum(dtype=torch.float64))
        if "intra" in self.terms:
            terms["intra"] = Term(temperature**2 * intra_distance(*maps, eps, context.all_sum))
        if self.features is not None:
            pair = student.tap(self.tap), teacher.tap(self.teacher_tap)
            found = self.features(*pair, context)
            terms |= {name: term for name, term in found.items() if name in self.terms}
        return terms

    def _of_known(
        self, student: Tensor, teacher: Tensor, unknown: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """The logits (B, K', h, w) of the classes that the teacher knows. Raises ConfigError."""
        if not unknown:
            return student, teacher
        known = [number for number in range(student.shape[1]) if number not in unknown]
        if len(known) < 3 and "inter" in self.terms:
            raise ConfigError(
                f"dist: the teacher knows {len(known)} of the classes, and with fewer than 3 the "
                "inter term has no gradient. Switch it off in this entry: weights.inter=0"
            )
        return student[:, known], teacher[:, known]


def _probabilities(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher, mask = matched(student, teacher, mask)
    return (student / temperature).softmax(1), (teacher / temperature).softmax(1), mask
