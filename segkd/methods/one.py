"""On-the-fly native ensemble: branches on one trunk learn from their own gated ensemble.

Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble. NeurIPS 2018,
arXiv 1806.04606.

    L = Σ_i task(z_i) + task(z_e) + Σ_i T² · mean over pixels of KL(p_e ‖ p_i),  p = softmax(z / T)
    z_e = Σ_i g_i z_i;   g = softmax(linear(mean over positions of F)), one weight per image

Branch 0 is the student's own end (``logits``), whose task losses are the run's. The others begin
at a tap F of the student: 3x3 convolution, norm, ReLU, 1x1 convolution. They train the layers below
F, which all branches share, and are removed afterwards with the gate: the student that is kept is
the plain network (the paper's ONE; its ONE-E keeps the ensemble). Maps are joined at the smallest
size. The target of KL has no gradient, as in public code, which also ramps KL up over 80 of 300
epochs (``warmup``) and adds 1e-7 to the target. The paper's branches are copies of a network's
last blocks, and its gate has a batch norm and a ReLU before the softmax.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segkd.methods.base import (
    BuildContext,
    Context,
    Conversion,
    MethodConfig,
    Needs,
    SelfMethod,
    TapNames,
    Weight,
)
from segkd.methods.shared.exits import Exit
from segkd.methods.shared.tapped import bound_pairs
from segkd.modules.masked_norm import MaskedGroupNorm
from segkd.modules.module_map import ModuleMap
from segkd.ops.resize import common_size, match_sizes, reduce_valid
from segkd.ops.softmax_kl import pixel_kl
from segkd.structures import Batch, Outputs, Term

_TAP = "stage4"


def one_ensemble(logits: Sequence[Tensor], shares: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The gated sum of the branches' logits, reduced to their smallest size.

    Args:
        logits: (B, K, h_i, w_i) of n branches.
        shares: (B, n), one weight per image and branch.
        mask: (B, h, w) bool, True where pixels are valid; None: all.

    Returns:
        (B, K, h, w), zero where invalid.
    """
    matched = torch.stack(match_sizes(*logits, mask=mask), dim=1)  # (B, n, K, h, w)
    return (matched * shares[..., None, None, None]).sum(1)


def one_loss(
    branches: Sequence[Tensor],
    ensemble: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 3.0,
) -> Tensor:
    """Sum over branches of the mean over valid pixels of T² · KL(ensemble ‖ branch).

    Args:
        branches: logits (B, K, h_i, w_i).
        ensemble: logits (B, K, h, w) at the smallest size of all; detached.
        mask: (B, h, w) bool, True where pixels are valid; None: all.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape.
    """
    values = [pixel_kl(each, ensemble, mask=mask, temperature=temperature) for each in branches]
    return sum(values, ensemble.new_zeros(()))


class Gate(nn.Module):
    """One share per image and branch; equal ones at the beginning.

    Args:
        channels: C of the tap.
        branches: n, with the student's own.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.norm = MaskedGroupNorm(channels)
        self.linear = nn.Linear(channels, branches)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Shares (B, n) whose sum is 1.

        Args:
            features: (B, C, h, w), zero where invalid.
            mask: (B, h, w) bool, True where positions are valid.
        """
        count = mask.sum(dim=(1, 2)).clamp(min=1).unsqueeze(1)
        mean = self.norm(features, mask).sum(dim=(2, 3)) / count
        return self.linear(mean).softmax(1)


class ONEConfig(MethodConfig):
    """Keys of the method ``one``."""

    weight: Weight = Field(0.3, description="factor of all terms; see docs/weights.md")
    branches: PositiveInt = Field(2, description="branches beside the student's own end")
    tap: str | None = Field(
        None, description="where they begin; default: the stage before the student's deepest"
    )
    width: PositiveInt = Field(64, description="channels within a branch")
    temperature: PositiveFloat = Field(3.0, description="T of both softmaxes")


class ONE(SelfMethod[ONEConfig]):
    """Terms: the task losses of branches and ensemble, and ``kd_…`` of student and branches."""

    name = "one"
    kind = "online"
    scale_free = False  # 3x3 convolutions
    paper = "Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, arXiv 1806.04606"
    year = 2018
    equation = "Σ_i task(z_i) + task(z_e) + Σ_i T² mean_pixels KL(p_e ‖ p_i), z_e = Σ_i g_i z_i"
    cost = "per branch a 3x3 convolution of a stage, the task loss and a softmax-KL"
    conversions: ClassVar = {"ONE": Conversion(1.0, note="T 3; ramped up over 80 of 300 epochs")}
    default_weights: Mapping[str, float] = {}

    def __init__(self, config: ONEConfig | None = None) -> None:
        super().__init__(config)
        self.tap = self.config.tap or _TAP

    def bind_taps(self, student: TapNames, teacher: TapNames | None) -> None:
        if self.config.tap is None:
            (self.tap,) = bound_pairs((_TAP,), student)

    @property
    def needs(self) -> Needs:
        return Needs(student=(self.tap, "logits"), labels=True)

    def build(self, spec: BuildContext) -> None:
        channels, width = spec.student[self.tap].channels, self.config.width
        self.branches = ModuleMap(
            {
                f"branch{number}": Exit(channels, width, spec.num_classes)
                for number in range(1, self.config.branches + 1)
            }
        )
        self.gate = Gate(channels, self.config.branches + 1)

    def self_loss(self, student: Outputs, batch: Batch, context: Context) -> dict[str, Term]:
        assert context.task_loss is not None  # set by the engine
        features = student.tap(self.tap)
        mask = context.mask_at(*features.shape[-2:])
        features = features.masked_fill(~mask.unsqueeze(1), 0)
        logits = {name: branch(features, mask)[1] for name, branch in self.branches.items()}
        shares = self.gate(features, mask)
        size = common_size(features, student.logits)
        # A branch knows nothing outside of valid positions.
        inside = {name: reduce_valid(own, mask, size) for name, own in logits.items()}
        everyone = {"student": student.logits, **inside}
        mask = context.mask_at(*size)
        joint = one_ensemble(list(everyone.values()), shares, mask=mask)
        terms: dict[str, Term] = {}
        for name, own in {**logits, "ensemble": joint}.items():
            task = context.task_loss(Outputs(own), batch)
            terms |= {f"{loss}_{name}": term for loss, term in task.items()}
        count = mask.sum(dtype=torch.float64)
        for name, own in everyone.items():
            value = one_loss([own], joint, mask=mask, temperature=self.config.temperature)
            terms[f"kd_{name}"] = Term(value, count)
        return terms
