"""Attention transfer: at each stage, the student matches the teacher's spatial attention map.

Zagoruyko, Komodakis: Paying More Attention to Attention. ICLR 2017, arXiv 1612.03928.

    L = Σ_taps mean over images of Σ_i (q_s − q_t)²,   q = Q / ‖Q‖₂ over the positions i
    Q = Σ_c |A_c|^p  or  max_c |A_c|^p

Taps: the last three stages by default; no adapter, since the maps have no channels.
The paper prints the norm ‖q_s − q_t‖₂, its public code uses the squared norm, which is followed
here: it has a gradient at equality. That code averages over positions as well, so its weights
(1e3 to 1e4) fit one resolution only. Some code omits the absolute value, which is wrong for odd p.

``form: gradient`` is the paper's second kind of attention: where the task loss is sensitive.

    L = mean over images of Σ_ci (j_s − j_t)²,   j = J / ‖J‖₂,   J = ∂(task loss of the image)/∂x

Taps: the image x. At other taps their features are differentiated, whose channels mean something
else in each network: q of A = J is compared. The paper prints β/2 ‖J_s − J_t‖₂ of unscaled
gradients, without a value of β, and has no public code. Those of a trained teacher are nearly 0 on
its training images; with unit norm it is the place that counts. The loss of each image is its own
(classes weigh within it, OHEM chooses in it), but batch norm in training mode mixes images, as it
does in any step. It needs labels, second derivatives (no ``runtime.compile``, no SyncBN), and a
backward pass of the teacher.
"""

from collections.abc import Collection
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import IMAGE, Context, Conversion, Needs, Weight
from segkd.methods.shared.tapped import TapListKeys, TapListMethod
from segkd.ops.attention import attention_map
from segkd.ops.masked import (
    count_images,
    image_mean,
    position_mask,
    require_equal_shapes,
    unit_maps,
)
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Batch, Outputs, Term

_OF_IMAGE, _OF_STAGES = 1.5, 0.04  # weights with a fifth to a third of the task loss's gradient


def at_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    over_channels: Literal["sum", "max"] = "sum",
    power: float = 2.0,
) -> Tensor:
    """Mean over images of the squared distance of two attention maps of norm 1.

    Args:
        student: features (B, C, h, w).
        teacher: features (B, C', h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all. Images without any valid position are excluded from the mean.
        over_channels: ``sum`` or ``max`` of the absolute values.
        power: p, applied to the absolute values; 1 or more.

    Returns:
        A scalar between 0 and 2, float32 or wider; a differentiable zero if no position is valid.
    """
    maps = (
        attention_map(features, over_channels, power) for features in (student, teacher.detach())
    )
    student, teacher = match_sizes(*maps, mask=mask)
    mask = position_mask(student, mask)
    distance = (unit_maps(student, mask) - unit_maps(teacher, mask)).square()
    return image_mean(distance.sum(dim=(1, 2)), mask)


def at_gradient_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean over images of the squared distance of two input gradients of norm 1, with their signs.

    Args:
        student: gradient of each image's loss (B, C, h, w), made with ``create_graph=True``.
        teacher: the same of the teacher, of the same shape; detached.
        mask: (B, h, w) bool, True where positions are valid; None: all. Images without any valid
            position are excluded from the mean.

    Returns:
        A scalar between 0 and 4, float32 or wider; a differentiable zero if no position is valid.

    Raises:
        ValueError: the shapes differ.
    """
    require_equal_shapes(student, teacher)
    student, teacher = match_sizes(student, teacher.detach(), mask=mask)
    mask = position_mask(student, mask)
    rows = mask.repeat(1, student.shape[1], 1)  # the norm is over channels as well
    units = (unit_maps(one.flatten(1, 2).unsqueeze(1), rows) for one in (student, teacher))
    difference = next(units) - next(units)
    return image_mean(difference.square().sum(dim=(1, 2)), mask)


class ATConfig(TapListKeys):
    """Keys of the method ``at``."""

    weight: Weight = Field(
        0.3,
        description="factor of all terms; see docs/weights.md. Default of form: gradient: 1.5 at "
        "the image, 0.04 at other taps",
    )
    form: Literal["activation", "gradient"] = Field(
        "activation", description="attention: sizes of features, or gradients of the task loss"
    )
    taps: list[str] | None = Field(
        None,
        description="taps of the student; default: the last three stages, the image for gradients",
    )
    over_channels: Literal["sum", "max"] = Field("sum", description="how channels are joined")
    power: float = Field(2.0, ge=1, le=8, description="p of |A|^p; with sum and 1: G_sum")

    @model_validator(mode="before")
    @classmethod
    def _gradients_have_weights_of_their_own(cls, keys: Any) -> Any:
        if isinstance(keys, dict) and keys.get("form") == "gradient":
            at_image = keys.get("taps") in (None, [IMAGE])
            return {"weight": _OF_IMAGE if at_image else _OF_STAGES, **keys}
        return keys


class AT(TapListMethod[ATConfig]):
    """Terms: one per tap of the student, each a mean over images."""

    name = "at"
    kind = "feature"
    paper = "Zagoruyko, Komodakis: Paying More Attention to Attention, arXiv 1612.03928"
    year = 2017
    published = "Cityscapes, PSPNet-R18: 69.10 → 72.37 (table 2 of CWD)"
    equation = (
        "mean_images Σ_i (q_s − q_t)², q = Q / ‖Q‖₂, Q = Σ_c |A_c|^p or max_c |A_c|^p; "
        "`form: gradient`: mean_images Σ_ci (j_s − j_t)², j = J / ‖J‖₂, J = ∂(task loss)/∂image"
    )
    cost = (
        "two passes over the tapped features; `form: gradient`: two to three more steps of the "
        "student, and a backward pass of the teacher"
    )
    default_taps = ("stage3", "stage4", "stage5")
    conversions: ClassVar = {
        "attention-transfer": Conversion(1000, {"h": -1, "w": -1}, "per stage, at its own size"),
        "RepDistiller, mdistiller": Conversion(1000, {"h": -1, "w": -1}, "per stage"),
        "CIRKD": Conversion(10000, {"h": -1, "w": -1}, "head"),
    }

    def __init__(self, config: ATConfig | None = None) -> None:
        if config is not None and config.form == "gradient" and config.taps is None:
            config = config.model_copy(update={"taps": [IMAGE]})
        super().__init__(config)
        self.of_gradients = self.config.form == "gradient"
        if IMAGE in self.pairs or IMAGE in self.pairs.values():
            self._check_image()

    def _check_image(self) -> None:
        if not self.of_gradients:
            raise ConfigError(
                f"method 'at': both networks see the same image, so its map teaches nothing. Set "
                f"form: gradient to compare gradients at '{IMAGE}', or name other taps"
            )
        if any((mine == IMAGE) != (theirs == IMAGE) for mine, theirs in self.pairs.items()):
            raise ConfigError(
                f"method 'at': the gradient at '{IMAGE}' has a sign and is compared with that at "
                f"'{IMAGE}' only; got taps {self.pairs}. Pair it with itself"
            )

    @property
    def needs(self) -> Needs:
        if not self.of_gradients:
            return super().needs
        taps = (*self.pairs, "logits"), (*self.pairs.values(), "logits")
        return Needs(*taps, labels=True, teacher_gradient=True)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        if self.of_gradients:
            mine = _slopes(student, self.pairs, batch, context, "student")
            theirs = _slopes(teacher, self.pairs.values(), batch, context, "teacher")
        else:
            mine = [student.tap(tap) for tap in self.pairs]
            theirs = [teacher.tap(tap) for tap in self.pairs.values()]
        terms = {}
        over_channels, power = self.config.over_channels, self.config.power
        for tap, features, target in zip(self.pairs, mine, theirs, strict=True):
            mask = context.mask_at(*common_size(features, target))
            if tap == IMAGE:
                value = at_gradient_loss(features, target, mask=mask)
            else:
                value = at_loss(
                    features, target, mask=mask, over_channels=over_channels, power=power
                )
            terms[tap] = Term(value, count_images(mask))
        return terms


def _slopes(
    outputs: Outputs, taps: Collection[str], batch: Batch, context: Context, who: str
) -> list[Tensor]:
    """Gradients of the sum of the images' own task losses, like the taps; the student's with graph.

    Raises:
        ConfigError: the logits do not depend on a tap.
    """
    with torch.autocast(outputs.logits.device.type, enabled=False):
        losses = [_loss_of(image, outputs, batch, context) for image in range(len(batch))]
        found = torch.autograd.grad(
            torch.stack(losses).sum(),
            [outputs.tap(tap) for tap in taps],
            create_graph=who == "student",
            retain_graph=True,  # of the teacher as well: another entry may need it
            allow_unused=True,
        )
    for tap, slope in zip(taps, found, strict=True):
        if slope is None:
            raise ConfigError(
                f"method 'at': the {who}'s logits do not depend on its tap '{tap}', or only on a "
                f"value that overwrites it. Choose another tap, e.g. '{IMAGE}'"
            )
    return list(found)


def _loss_of(image: int, outputs: Outputs, batch: Batch, context: Context) -> Tensor:
    """The task losses of one image, 0-d, as of a batch of its own; only of the logits.

    They are summed over positions instead of averaged: fp16 has no numbers for the gradient of
    a mean over many thousands, and gradients are scaled to norm 1 anyway.

    Raises:
        ConfigError: the run has no task loss of logits.
    """
    assert context.task_loss is not None  # the engine has it
    part = slice(image, image + 1)
    logits = outputs.logits[part]
    terms = context.task_loss(Outputs(logits, kind=outputs.kind), batch.part(part))
    if not terms:
        raise ConfigError(
            "method 'at': form: gradient differentiates the task losses of the logits, and "
            "`task.losses` has none. Add task.losses.cross_entropy={}"
        )
    return torch.stack([term.value for term in terms.values()]).sum() * logits[0, 0].numel()
