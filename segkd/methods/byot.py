"""Be Your Own Teacher: exits at earlier stages learn from labels and from the final output.

Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional
Neural Networks via Self Distillation. ICCV 2019, arXiv 1905.08094.

    L = Σ_exits [ task(z_e) + α T² · mean over pixels of KL(p_end ‖ p_e) + λ · mean (F_e − F_end)² ]
    F_e = 3x3 convolution, norm, ReLU on a stage;  z_e = 1x1 convolution of F_e;  p = softmax(z / T)

Taps: the three stages before the student's deepest; its ``head`` (F_end) and ``logits`` (z_end),
both detached. The exits train the stages below them and are removed afterwards. The paper has the
factor (1 − α) for the exits' task losses: use ``weight: 0.9`` and ``kd_…: 0.111`` for its α = 0.1.
Its bottlenecks halve the map down to the size of F_end; here maps are compared at the smaller of
both sizes. It sums squares over channels and positions, so its λ fits one size only.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from segkd.methods.base import Context, Conversion, Weight
from segkd.methods.shared.exits import EXIT_TAPS, ExitKeys, ExitMethod
from segkd.ops.softmax_kl import pixel_kl
from segkd.structures import Batch, Outputs, Term

_WEIGHTS = {"kd": 0.1, "feature": 0.1}


def byot_loss(
    students: Sequence[Tensor],
    deepest: Tensor,
    *,
    masks: Sequence[Tensor | None] | None = None,
    temperature: float = 3.0,
) -> Tensor:
    """Sum over exits of the mean over valid pixels of T² · KL(deepest ‖ exit) over the classes.

    Args:
        students: logits (B, K, h_e, w_e) of the exits.
        deepest: logits (B, K, h, w) at the network's end; detached.
        masks: for each exit (B, h', w') bool at the smaller of both sizes, True where pixels are
            valid; None: all.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: a mask has another shape, or the number of masks is not that of exits.
    """
    values = [
        pixel_kl(logits, deepest, mask=mask, temperature=temperature)
        for logits, mask in zip(students, masks or [None] * len(students), strict=True)
    ]
    return sum(values, deepest.new_zeros(()))


class BYOTConfig(ExitKeys):
    """Keys of the method ``byot``."""

    weight: Weight = Field(0.8, description="factor of all terms; see docs/weights.md")


class BYOT(ExitMethod[BYOTConfig]):
    """Terms per exit: the task losses, and ``kd_TAP``, ``feature_TAP``, means over positions."""

    name = "byot"
    kind = "self"
    scale_free = False  # 3x3 convolutions
    paper = "Zhang et al.: Be Your Own Teacher, arXiv 1905.08094"
    year = 2019
    equation = "Σ_exits task(z_e) + α T² mean_pixels KL(p_end ‖ p_e) + λ mean (F_e − F_end)²"
    cost = "per exit a 3x3 convolution to the head's channels and the task loss"
    default_weights: Mapping[str, float] = {
        f"{kind}_{tap}": weight for kind, weight in _WEIGHTS.items() for tap in EXIT_TAPS
    }
    conversions: ClassVar = {
        "BYOT kd": Conversion(0.1, note="T 3; `weights.kd_…`"),
        "BYOT feature": Conversion(1e-6, {"N": 1, "C_s": 1}, "`weights.feature_…`; pooled"),
        "mmrazor": Conversion(
            0.7, note="`weight`; kd 0.3/0.7, T 3; no factor for its feature root"
        ),
    }

    def _use(self, taps: list[str]) -> None:
        super()._use(taps)
        self.default_weights = {f"{k}_{tap}": w for k, w in _WEIGHTS.items() for tap in taps}

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        deepest = student.logits
        terms: dict[str, Term] = {}
        for branch in self.outputs(student, batch, context):
            terms |= {f"{name}_{branch.tap}": term for name, term in branch.task.items()}
            logits = branch.logits_beside(deepest)
            mask = context.mask_at(*logits.shape[-2:])
            value = byot_loss([logits], deepest, masks=[mask], temperature=self.config.temperature)
            terms[f"kd_{branch.tap}"] = Term(value, mask.sum(dtype=torch.float64))
            terms[f"feature_{branch.tap}"] = branch.feature
        return terms
