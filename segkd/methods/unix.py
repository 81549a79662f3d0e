"""Uncertainty-aware mixup: student and teacher see fewer images, mixed by the student's doubt.

Xu, Liu, Loy: Computation-Efficient Knowledge Distillation via Uncertainty-Aware Mixup.
arXiv 2012.09413.

    x̃_r = (1 − c_r) · x_(r) + c_r · x_π(r),   r = 0 … k − 1;   x_(r) the r-th most uncertain image
    c_r = λ / (1 + exp(−w · (r/B − (2b − 1) / 2B))),   λ uniform in [0, 1], π a permutation
    u_i = mean over valid pixels of −Σ_k p log p,   p = softmax(z_s) of the student on image i
    L = T² · mean over valid pixels of KL(p_t ‖ p_s) on x̃

``prepare`` scores the B images of the global batch by a forward pass of the student, and the run
goes on with k mixed ones: images of which the student is unsure stay almost as they are, those that
it knows are mixed or left out, and the teacher computes k/B of its forward passes.
Taps: the logits of both. The public code scores in training mode, so that each step updates the
statistics of batch norms twice; here the student scores in eval mode, which leaves them alone.

Labels for dense prediction: at each mixed pixel the label is drawn, that of x_π(r) with probability
c_r. In expectation this is the public code's (1 − c) · CE(y_(r)) + c · CE(y_π(r)), with whatever
task loss there is. The paper trains without labels (``labels: none``, ``task.weight: 0``). An image
is mixed only where the other one is valid; its own void pixels and padding stay what they are.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from segkd.errors import ConfigError
from segkd.methods.base import Context, Conversion, Method, MethodConfig, Needs, Weight
from segkd.ops.queued import queued
from segkd.ops.resize import common_size
from segkd.ops.softmax_kl import pixel_kl
from segkd.structures import Batch, Outputs, Term

Score = Literal["entropy", "confidence", "margin", "random"]
_FIELDS = ("images", "labels", "not_padding", "index", "labelled")  # of a batch, by image
_FEW = 8  # images; with fewer the shares of mixing are almost the same in each step


def unix_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, temperature: float = 4.0
) -> Tensor:
    """Mean over valid pixels of T² · KL(teacher ‖ student) over the classes, on mixed images.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        mask: (B, h, w) bool at the smaller of both sizes, True where pixels are valid; None: all.
        temperature: T.

    Returns:
        A scalar, float32 or wider; a differentiable zero if no pixel is valid.

    Raises:
        ValueError: the mask has another shape, or the classes differ.
    """
    return pixel_kl(student, teacher, mask=mask, temperature=temperature)


@torch.no_grad()
def uncertainty(logits: Tensor, mask: Tensor, score: Score = "entropy") -> Tensor:
    """How unsure a network is of each image: the mean over its valid pixels.

    Args:
        logits: (B, K, h, w).
        mask: (B, h, w) bool, True where pixels are valid.
        score: ``entropy``, ``confidence`` (1 − the largest probability) or ``margin`` (minus the
            distance of the two largest).

    Returns:
        (B,) float64; −inf for images without a valid pixel.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities = logits.masked_fill(~mask.unsqueeze(1), 0).softmax(1)
    if score == "entropy":
        values = torch.special.entr(probabilities).sum(1)  # 0 for a probability of 0
    elif score == "confidence":
        values = 1 - probabilities.amax(1)
    else:
        first, second = probabilities.topk(2, dim=1).values.unbind(1)
        values = second - first
    count = mask.flatten(1).sum(1)
    total = values.masked_fill(~mask, 0).flatten(1).sum(1, dtype=torch.float64)
    return (total / count.clamp(min=1)).masked_fill(count == 0, -math.inf)


def mixing_shares(images: int, *, steepness: float = 10.0, center: float = 0.5) -> Tensor:
    """c_r / λ, the share of the other image at each rank of uncertainty.

    Args:
        images: B.
        steepness: w.
        center: b/B.

    Returns:
        (B,) float64, rising from the most uncertain image to the most certain one.
    """
    rank = torch.arange(images, dtype=torch.float64)
    return torch.sigmoid(steepness * ((rank + 0.5) / images - center))


class UNIXConfig(MethodConfig):
    """Keys of the method ``unix``."""

    weight: Weight = Field(0.4, description="factor of all terms; see docs/weights.md")
    temperature: PositiveFloat = Field(4.0, description="T of both softmaxes")
    keep: float = Field(0.75, gt=0, le=1, description="k/B, the share of images that go on")
    center: float = Field(0.5, ge=0, le=1, description="b/B, the rank at which half is mixed")
    steepness: PositiveFloat = Field(10.0, description="w, how fast mixing sets in at the center")
    score: Score = Field("entropy", description="the student's uncertainty, by which images rank")
    labels: Literal["drawn", "none"] = Field(
        "drawn", description="of mixed pixels: drawn by the shares of both images; none: dropped"
    )


class UNIX(Method[UNIXConfig]):
    """Term ``unix``, a mean over valid pixels of the mixed images."""

    name = "unix"
    kind = "response"
    needs = Needs(("logits",), ("logits",), accepts_log_prob=True, rewrites_batch=True)
    paper = "Xu, Liu, Loy: KD via Uncertainty-Aware Mixup, arXiv 2012.09413"
    year = 2020
    equation = "T² · mean_pixels KL(p_t ‖ p_s) on images (1 − c_r) · x_(r) + c_r · x_π(r)"
    cost = "as kd, one more forward pass of the student; all passes after it on k/B of the images"
    conversions: ClassVar = {
        "UNIXKD": Conversion(1, note="T 4, w 10, 48 of 64 images, b 32; task weight 0"),
    }

    def prepare(self, batch: Batch, context: Context) -> Batch:
        """This process's part of the k mixed images of the global batch."""
        batch = self._without_labels(batch) if self.config.labels == "none" else batch
        # Which images go on is known on the device alone, and so is their index from here on.
        placed = batch.replace(index=queued(batch.index, batch.images.device))
        own = _tensors(placed)
        visible = batch.valid if self.config.mask == "valid" else batch.not_padding
        scores, visible, *values = context.gather_rows(
            self._scores(batch, context), visible, *own.values()
        )
        everything = _with_tensors(placed, dict(zip(own, values, strict=True)))
        count, world, device = len(scores), context.world, batch.images.device
        kept = max(world, math.floor(self.config.keep * count + 0.5))
        rows = slice(kept * context.rank // world, kept * (context.rank + 1) // world)
        # The generator is the same on all processes, and so is what is drawn from it.
        other = torch.randperm(count, generator=context.generator)[rows]
        largest = torch.rand((), generator=context.generator, dtype=torch.float64)
        seeds = torch.randint(2**62, (kept,), generator=context.generator)[rows]
        shares = largest * self._curve(count)[rows]
        second = queued(other, device)
        one = _rows(everything, scores.argsort(descending=True, stable=True)[rows])
        two, where = _rows(everything, second), visible[second]
        part = queued(shares, device)
        mixed = one.replace(
            images=_mixed(one.images, two.images, where, part),
            extra=_mixed_extra(one.extra, two.extra, part),
        )
        if one.labels is None or two.labels is None:
            return mixed
        drawn = queued(_drawn(shares, seeds, one.labels.shape[1:]), device)
        known = one.labels != batch.ignore_index
        return mixed.replace(labels=torch.where(drawn & where & known, two.labels, one.labels))

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        mask = context.mask_at(*common_size(student.logits, teacher.logits))
        value = unix_loss(
            student.logits, teacher.logits, mask=mask, temperature=self.config.temperature
        )
        return {"unix": Term(value, mask.sum(dtype=torch.float64))}

    def _scores(self, batch: Batch, context: Context) -> Tensor:
        """The uncertainty (B,) of the images of this process."""
        if self.config.score == "random":
            each = context.image_generators
            draws = [torch.rand((), generator=one, dtype=torch.float64) for one in each]
            return queued(torch.stack(draws), batch.images.device)
        if context.student_forward is None:
            raise ConfigError(
                "unix: images are ranked by a forward pass of the student, and this context has "
                "none. Give Context.student_forward, or set score=random"
            )
        logits = context.student_forward(batch.images).logits
        return uncertainty(logits, context.mask_at(*logits.shape[-2:]), self.config.score)

    def _without_labels(self, batch: Batch) -> Batch:
        """Void pixels count as padding where they are masked: images without labels have none."""
        inside = batch.valid if self.config.mask == "valid" else batch.not_padding
        return batch.replace(labels=None, labelled=None, not_padding=inside)

    def _curve(self, images: int) -> Tensor:
        keys = self.config
        return mixing_shares(images, steepness=keys.steepness, center=keys.center)

    def notes(self, total_steps: int, images: int) -> list[str]:
        """A warning about batches that are too small."""
        if images >= _FEW:
            return []
        shares = self._curve(images)[: math.floor(self.config.keep * images + 0.5)]
        numbers = ", ".join(f"{share:.2g}" for share in shares.tolist())
        return [
            f"WARNING: {len(shares)} of the {images} images of a (micro-)step go on; their shares "
            f"of mixing are always {numbers}, times one random number. The method is made for "
            f"large batches: set data.batch_size to {_FEW} or more"
        ]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """All tensors of a batch, whose first axis is that of images, by field or (extra) key."""
    fields = {name: getattr(batch, name) for name in _FIELDS}
    extra = {f"extra.{name}": value for name, value in batch.extra.items()}
    return {name: value for name, value in fields.items() if value is not None} | extra


def _with_tensors(batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
    """The batch with other tensors, named as by ``_tensors``."""
    fields = {name: value for name, value in tensors.items() if name in _FIELDS}
    extra = {name: tensors[f"extra.{name}"] for name in batch.extra}
    return batch.replace(**fields, extra=extra)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return _with_tensors(batch, {name: value[rows] for name, value in _tensors(batch).items()})


def _mixed(one: Tensor, two: Tensor, where: Tensor, shares: Tensor) -> Tensor:
    """(n, 3, H, W) uint8: ``shares`` (n,) of the other image, where (n, H, W) that one is valid."""
    part = (shares.float()[:, None, None] * where).unsqueeze(1)
    return torch.lerp(one.float(), two.float(), part).round().to(one.dtype)


def _mixed_extra(
    one: dict[str, Tensor], two: dict[str, Tensor], shares: Tensor
) -> dict[str, Tensor]:
    """The first image's; its lanes exist by shares: a cross-entropy is linear in its target."""
    if "exist" not in one:
        return one
    first, second = one["exist"], two["exist"]
    return one | {"exist": torch.lerp(first, second, shares.to(first.dtype)[:, None])}


def _drawn(shares: Tensor, seeds: Tensor, size: torch.Size) -> Tensor:
    """(n, H, W) bool on the CPU, True with probability ``shares`` (n,) at each pixel."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    draws = torch.stack([torch.rand(size, generator=each) for each in generators])
    return draws < shares[:, None, None]
