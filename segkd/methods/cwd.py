"""Channel-wise distillation: matches the teacher's softmax over positions, channel by channel.

Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction. ICCV 2021,
arXiv 2011.13256.

    L = T² / C · mean over images of Σ_c Σ_i φ_t log(φ_t / φ_s),   φ = softmax(a_c / T) over i

Taps: any, ``logits`` by default; a 1x1 convolution aligns the student's channels if they differ.
Public code includes padding in the softmax, and most takes ``softmax().log()``, which is −inf for
a peaked map. Here invalid positions are excluded from a map, and it is a log-softmax.
"""

from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from segkd.methods.base import BuildContext, Context, Conversion, Weight
from segkd.methods.shared.feature_scale import ScaleKeys
from segkd.methods.shared.tapped import TapKeys, TapMethod
from segkd.ops.masked import count_images, position_mask
from segkd.ops.resize import common_size, match_sizes
from segkd.ops.softmax_kl import softmax_kl
from segkd.structures import Batch, Outputs, Term


def cwd_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, temperature: float = 4.0
) -> Tensor:
    """Mean over images and channels of T² · KL(teacher ‖ student) over the positions.

    Args:
        student: logits or features (B, C, h, w).
        teacher: the same kind, (B, C, h', w'); detached. Log-probabilities are not supported.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.
        temperature: T; larger values flatten the maps.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the mask has another shape, or the channels differ.
    """
    student, teacher = match_sizes(student, teacher)
    keep = position_mask(student, mask).flatten(1).unsqueeze(1)  # (B, 1, N)
    images = keep.any(dim=2, keepdim=True)
    total = softmax_kl(
        student.flatten(2), teacher.flatten(2), images, dim=2, keep=keep, temperature=temperature
    )
    return total / (images.sum().clamp(min=1) * student.shape[1])


class CWDConfig(TapKeys, ScaleKeys):
    """Keys of the method ``cwd``."""

    weight: Weight = Field(0.5, description="factor of all terms; see docs/weights.md")
    tap: str = Field("logits", description="tapped value of the student")
    temperature: PositiveFloat = Field(4.0, description="T of the softmax over positions")

    @model_validator(mode="before")
    @classmethod
    def _default_weight(cls, keys: Any) -> Any:
        if isinstance(keys, dict) and keys.get("tap", "logits") != "logits":
            return {"weight": 1.0, **keys}
        return keys


class CWD(TapMethod[CWDConfig]):
    """Term ``cwd``, a mean over images."""

    name = "cwd"
    kind = "response"
    paper_weight = 3.0
    paper = "Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, arXiv 2011.13256"
    year = 2021
    published = "Cityscapes, PSPNet-R18: 69.10 → 74.87 (its table 2)"
    equation = "T²/C · mean_images Σ_c Σ_i φ_t log(φ_t / φ_s), φ = softmax(a_c / T) over positions"
    cost = "three passes over the tapped maps; one tensor of their size is kept for backward"
    conversions: ClassVar = {
        "TorchDistiller logits": Conversion(3, note="T 4"),
        "TorchDistiller features": Conversion(50, note="T 4"),
        "CIRKD logits": Conversion(3, note="T 4"),
        "CIRKD features": Conversion(50, {"C_t": 1, "C_s": -1}, "T 4; C before its adapter"),
        "CIRKD third block": Conversion(0.3, note="logits; 5 on features"),
        "mmrazor": Conversion(5, note="T 1"),
    }

    def __init__(self, config: CWDConfig | None = None) -> None:
        super().__init__(config)
        self.adapter: nn.Module = nn.Identity()

    def published_weight(self) -> float:
        return self.paper_weight if self.config.tap == "logits" else 50.0

    def build(self, spec: BuildContext) -> None:
        self.adapter = self.aligned(spec)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        if self.config.tap == "logits":  # the temperature sets their scale
            maps, target = self.tapped(student, teacher)
        else:
            maps, target = self.scaled(student, teacher, context)
        maps = self.adapter(maps)
        mask = context.mask_at(*common_size(maps, target))
        value = cwd_loss(maps, target, mask=mask, temperature=self.config.temperature)
        return {"cwd": Term(value, count_images(mask))}
