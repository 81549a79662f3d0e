"""Holistic distillation: a critic separates student from teacher maps; the student deceives it.

Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation. CVPR
2019, arXiv 1903.04197. Its critic is SAGAN's (arXiv 1805.08318), trained as WGAN-GP (1704.00028).

    student  L = −mean_images D(p_s | image),   p = softmax(z) over classes
    critic   mean_images D(p_s | image) − D(p_t | image) + 10 · (‖∂D/∂x‖ − 1)²,
             x = e · p_t + (1 − e) · p_s,   e uniform in [0, 1] for each image
    hinge    mean_images max(0, 1 + D(p_s | image)) + max(0, 1 − D(p_t | image))

Taps: the logits of both. The critic minimises ``own_minus_wasserstein`` + ``own_penalty``, or with
hinge ``own_fake`` + ``own_real``. Public code omits the paper's image and feeds raw logits through
a batch norm, which breaks a per-sample penalty; one critic combines spectral norm, penalty and
weight decay. Here the critic's inputs are probabilities and the image, 0 where invalid.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, Conversion, Needs, Weight
from segkd.methods.shared.critics import CriticKeys, CriticMethod
from segkd.modules.critic import Critic, critic_losses, frozen, prepared
from segkd.ops.masked import count_images, image_mean
from segkd.ops.resize import common_size
from segkd.structures import Batch, Outputs, Term


def holistic_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    critic: nn.Module,
    image: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The student's term: minus the mean over images of the critic's score of its map.

    Gradients reach only the student; the critic is frozen and in eval mode.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); only their size is used here.
        critic: (maps (B, K, h, w), image (B, 3, h, w) or None) -> (B,), as modules.critic.Critic.
        image: (B, 3, H, W), in about −1 to 1; averaged to the size of the maps.
        mask: (B, h, w) bool at the smaller of both sizes, True where valid; None: all. Images
            without any valid position are excluded from the mean.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the mask has another shape.
    """
    fake, _, image, mask = prepared(student, teacher, image, mask)
    return -image_mean(frozen(critic, fake, image), mask)


class HolisticConfig(CriticKeys):
    """Keys of the method ``holistic``."""

    weight: Weight = Field(0.03, description="factor of all terms; see docs/weights.md")
    loss: Literal["wgan-gp", "hinge"] = Field("wgan-gp", description="what the critic learns")
    penalty: PositiveFloat | None = Field(
        None, description="factor of the gradient penalty; default 10, hinge has none"
    )
    spectral_norm: bool = Field(False, description="on the critic; default: with hinge only")
    condition_on_image: bool = Field(True, description="the image is an input of the critic")
    width: PositiveInt = Field(64, description="channels of the critic's first layer")

    @model_validator(mode="before")
    @classmethod
    def _hinge(cls, keys: Any) -> Any:
        if not isinstance(keys, dict) or keys.get("loss") != "hinge":
            return keys
        if keys.get("penalty") is not None:
            raise ConfigError(
                f"penalty: {keys['penalty']} was given, but loss: hinge has no gradient "
                "penalty; spectral_norm bounds its critic. Remove penalty, or set loss=wgan-gp"
            )
        return {"weight": 0.001, "spectral_norm": True, **keys}


class Holistic(CriticMethod[HolisticConfig]):
    """Term ``holistic``, a mean over images; a critic is trained by ``inner_loss``."""

    name = "holistic"
    paper_weight = 0.1
    scale_free = False
    needs = Needs(student=("logits",), teacher=("logits",), accepts_log_prob=True)
    paper = "Liu et al.: Structured Knowledge Distillation, arXiv 1903.04197 (holistic term)"
    year = 2019
    published = "Cityscapes, PSPNet-R18: 71.78 → 74.08, with kd and pairwise (SKD's README)"
    equation = "−mean_images D(softmax(z_s), image), D a WGAN-GP critic of teacher and student"
    cost = "a critic (3.2 M parameters at K = 19) on one map per image, on three per inner step"
    exempt: ClassVar = {"never_negative": "a critic's score has no zero"}
    conversions: ClassVar = {
        "SKD": Conversion(0.1, note="wgan-gp, on logits, without the image"),
        "TorchDistiller, IFVD": Conversion(0.001, note="wgan-gp, on logits, without the image"),
        "CIRKD": Conversion(0.001, note="hinge, on logits, without the image"),
    }

    def published_weight(self) -> float:
        return 0.001 if self.config.loss == "hinge" else self.paper_weight

    def build(self, spec: BuildContext) -> None:
        self.critic = Critic(
            spec.num_classes,
            condition_on_image=self.config.condition_on_image,
            width=self.config.width,
            spectral_norm=self.config.spectral_norm,
        )

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask, image = self._inputs(student, teacher, batch, context)
        value = holistic_loss(
            student.logits, teacher.logits, critic=self.critic, image=image, mask=mask
        )
        return {"holistic": Term(value, count_images(mask))}

    def inner_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask, image = self._inputs(student, teacher, batch, context)
        self.critic.train()  # the power iteration of the spectral norm advances only here
        values = critic_losses(
            student.logits,
            teacher.logits,
            critic=self.critic,
            loss=self.config.loss,
            penalty=self.config.penalty or 10.0,
            mix=torch.stack([torch.rand((), generator=g) for g in context.image_generators]),
            image=image,
            mask=mask,
        )
        return {name: Term(value, count_images(mask)) for name, value in values.items()}

    def _inputs(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        """Mask (B, h, w) and image (B, 3, H, W); the image is 0 at invalid pixels."""
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        if not self.config.condition_on_image:
            return mask, None
        hidden = ~context.mask_at(*batch.images.shape[-2:]).unsqueeze(1)
        return mask, (batch.images / 127.5 - 1).masked_fill(hidden, 0)
