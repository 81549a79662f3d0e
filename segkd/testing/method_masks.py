"""Invalid positions never teach: padding, void labels, images without labels."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.testing.cases import CELL, IGNORE, Case, labels_of
from segkd.testing.check import CheckList, NotApplicable, require
from segkd.testing.method_subject import (
    F64,
    MethodSubject,
    exactly,
    gradient_at,
    hidden_at,
    run,
    same,
    values,
)

CHECKS: CheckList[MethodSubject] = CheckList("method")


@CHECKS.add(
    "Padding is not part of an image, and void pixels have no known class. What the teacher "
    "predicts there is noise."
)
def invalid_positions(subject: MethodSubject) -> None:
    """Outputs, image and labels at padded and void positions change neither values nor gradients,
    and get no gradient."""
    case = subject.case(equal=True, dtype=F64)
    _nothing_matters_at(case, case.batch.valid)


def _nothing_matters_at(case: Case, visible: Tensor) -> None:
    """Noise where ``visible`` (B, H, W) is False; image and labels are replaced in the padding."""
    inside, noise = case.batch.not_padding, torch.Generator().manual_seed(1)

    def spoil(tensor: Tensor) -> Tensor:
        hidden = hidden_at(visible, tensor)
        return tensor + 100 * hidden * torch.randn(tensor.shape, generator=noise, dtype=F64)

    batch = case.batch.replace(
        images=case.batch.images.masked_fill(~inside.unsqueeze(1), 77),
        labels=labels_of(case.batch).masked_fill(~inside, 1),
    )
    found, gradients = run(case.each(spoil, batch=batch))
    clean, expected = run(case.fresh())
    same(found, clean, "with noise at invalid positions")
    for tap in case.taps_with_gradient:
        same(gradients[tap], expected[tap], f"gradient at '{tap}', noise at invalid positions")
        slope = gradient_at(gradients, tap)
        leaked = slope.masked_fill(~hidden_at(visible, slope), 0).abs().max()
        require(bool(leaked < 1e-12), f"the gradient at '{tap}' is {leaked:.3g} there")


@CHECKS.add(
    "Crops of small images have more padding. A mean that counts it is smaller there, so that a "
    "weight depends on the size of the images."
)
def more_padding(subject: MethodSubject) -> None:
    """A band of padding at the right of all maps gives the same values, unless the method declares
    `scale_free = False`."""
    if not subject.kind.scale_free:
        raise NotApplicable("declares `scale_free = False`: its loss depends on the resolution")
    case = subject.case(equal=True, dtype=F64)
    width = case.batch.not_padding.shape[-1]

    def wider(tensor: Tensor, fill: float) -> Tensor:
        band = tensor.shape[-1] * CELL // width
        return F.pad(tensor, (0, band), value=fill)

    batch = case.batch.replace(
        images=wider(case.batch.images, 77),
        labels=wider(labels_of(case.batch), IGNORE),
        not_padding=F.pad(case.batch.not_padding, (0, CELL)),
    )
    found = values(case.each(lambda x: wider(x, 3.0), batch=batch))
    same(found, values(case.fresh()), "with more padding", rtol=1e-5, atol=1e-9)


@CHECKS.add(
    "Networks may overflow in padding, and NaN times 0 is NaN. Values must be filled before they "
    "are masked by multiplication, or one padded image ends the training."
)
def nan_at_invalid_positions(subject: MethodSubject) -> None:
    """NaN and infinity at padded and void positions change neither values nor gradients."""
    case = subject.case(equal=True, dtype=F64)
    visible = case.batch.valid
    clean, expected = run(case.fresh())
    for bad in (float("nan"), float("inf")):
        found, gradients = run(case.each(partial(_filled, visible=visible, number=bad)))
        same(found, clean, f"with {bad} at invalid positions")
        for tap in case.taps_with_gradient:
            slope = gradient_at(gradients, tap)
            seen = slope.masked_fill(hidden_at(visible, slope), 0)
            same(seen, expected[tap], f"gradient at '{tap}', {bad} at invalid positions")


def _filled(tensor: Tensor, visible: Tensor, number: float) -> Tensor:
    return tensor.masked_fill(hidden_at(visible, tensor), number)


@CHECKS.add(
    "`mask: not_padding` lets the teacher teach at void pixels. A method that takes its mask "
    "from the labels ignores the key without a word."
)
def mask_not_padding(subject: MethodSubject) -> None:
    """With `mask: not_padding` void labels do not hide positions: the values are those of a batch
    without labels. Padding still has no effect."""
    case = subject.case(equal=True, dtype=F64).with_config(mask="not_padding")
    _nothing_matters_at(case, case.batch.not_padding)
    if case.method.needs.labels:
        void = case.with_batch(labels=torch.full_like(labels_of(case.batch), IGNORE))
        _, gradients = run(void)
        slopes = [gradients[tap] for tap in case.taps_with_gradient]
        reached = any(slope is not None and bool(slope.any()) for slope in slopes)
        require(reached, "nothing is taught where all labels are void")
        return
    expected = values(case.with_batch(labels=None))
    exactly(
        values(case), expected, "with `mask: not_padding`, beside the same batch without labels"
    )


@CHECKS.add(
    "`data.unlabeled` and `data.labels: optional` provide images without labels, from which only "
    "methods can learn. All of their pixels count."
)
def unlabelled_images(subject: MethodSubject) -> None:
    """A batch without labels works, and an image without labels counts like one without void
    pixels, unless the method needs labels."""
    case = subject.case(equal=True, dtype=F64)
    if case.method.needs.labels:
        raise NotApplicable("declares that it needs labels")
    found, _ = run(case.with_batch(labels=None))
    require(all(bool(v.isfinite()) for v in found.values()), f"without labels: {found}")
    known = torch.arange(len(case.batch)) % 2 == 0
    labels = labels_of(case.batch).clone()
    labels[~known] = 0
    full = values(case.with_batch(labels=labels))
    labels = labels.masked_fill(~known[:, None, None], IGNORE)
    exactly(
        values(case.with_batch(labels=labels, labelled=known)),
        full,
        "with every second image unlabelled",
    )
