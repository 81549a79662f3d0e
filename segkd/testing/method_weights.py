"""A weight means the same everywhere: what may change without changing a loss."""

from dataclasses import replace

import torch
from torch import Tensor

from segkd.structures import Outputs
from segkd.testing.cases import Case, labels_of, make_batch, map_outputs, upsampled
from segkd.testing.check import CheckList, NotApplicable, require
from segkd.testing.method_subject import (
    F64,
    MethodSubject,
    exactly,
    gradient_at,
    leave_the_start,
    run,
    same,
    values,
)

CHECKS: CheckList[MethodSubject] = CheckList("method")

_CLOSE = {"rtol": 1e-5, "atol": 1e-9}
_ORDER = torch.tensor([2, 0, 1, 4, 3])  # does not commute with a shift of ids


@CHECKS.add(
    "Weights are tuned at one batch size and used at another: a sum over images would double "
    "with the batch."
)
def doubled_batch(subject: MethodSubject) -> None:
    """Each image twice gives the same values, and half of the gradient for each copy."""
    case = subject.case(dtype=F64)
    found, gradients = run(case.fresh())
    twice = torch.arange(len(case.batch)).repeat(2)
    doubled, both = run(case.images(twice))
    same(doubled, found, "with each image twice")
    for tap in case.taps_with_gradient:
        same(
            sum(gradient_at(both, tap).chunk(2)),
            gradients[tap],
            f"gradient at '{tap}', each image twice",
        )


@CHECKS.add(
    "Weights are tuned at one crop and stride and used at others: a sum over positions would be "
    "four times as large at twice the size."
)
def upsampled_maps(subject: MethodSubject) -> None:
    """All maps, labels and masks enlarged by 2 (nearest) give the same values, unless the method
    declares `scale_free = False` (fixed kernels)."""
    if not subject.kind.scale_free:
        raise NotApplicable("declares `scale_free = False`: its loss depends on the resolution")
    case = subject.case(equal=True, dtype=F64)
    batch = case.batch
    larger = batch.replace(
        images=upsampled(batch.images, 2),
        labels=upsampled(labels_of(batch), 2),
        not_padding=upsampled(batch.not_padding, 2),
    )
    found = values(case.each(lambda x: upsampled(x, 2), batch=larger))
    same(found, values(case), "at twice the size", **_CLOSE)


@CHECKS.add(
    "The features of one network are ten times as large as those of another. A loss in raw units "
    "needs another weight for each pair; see `segkd.methods.shared.feature_scale`."
)
def scaled_features(subject: MethodSubject) -> None:
    """Features of both sides, but not logits, multiplied by 3 give the same values."""
    found = []
    for scale in (1.0, 3.0):
        case = subject.case(dtype=F64, feature_scale=scale)
        if not case.student.features:
            raise NotApplicable("it looks at logits alone")
        leave_the_start(case.method)
        found.append(values(case))
    same(found[1], found[0], "with features three times as large", **_CLOSE)


@CHECKS.add(
    "The engine multiplies by weight and schedule. A method that does so as well is weighted "
    "twice, and `segkd profile` and `weight: {auto: …}` measure the wrong gradient."
)
def weight_and_schedule(subject: MethodSubject) -> None:
    """Values and gradients do not depend on `weight`, `weights`, `start`, `warmup` and `decay`, nor
    on the step and the length of the run."""
    case = subject.case(dtype=F64)
    expected, gradients = run(case.fresh())
    keys: list[dict[str, object]] = [
        {"weight": 7.0},
        {"weights": dict.fromkeys(expected, 3.0)},
        {"start": 5},
        {"warmup": 8},
        {"decay": "linear"},
        {"adapter_warmup": 4},
    ]
    changed = [(str(change), subject.case(dtype=F64).with_config(**change)) for change in keys]
    for step, total in ((0, 1), (9, 10), (3, 1000)):
        other = subject.case(dtype=F64).fresh(step=step, total_steps=total)
        changed.append((f"step {step} of {total}", other))
    for what, other in changed:
        found, theirs = run(other)
        exactly(found, expected, f"with {what}")
        for tap in case.taps_with_gradient:
            exactly(theirs[tap], gradients[tap], f"gradient at '{tap}' with {what}")


@CHECKS.add(
    "Classes have no order. A wrong axis, a wrong reshape, or a bank that stores a class under "
    "another id compares the wrong values without any error."
)
def renamed_classes(subject: MethodSubject) -> None:
    """Another order of the classes, in logits and labels alike, gives the same values."""
    shapes = [
        {name: tuple(p.shape) for name, p in subject.case(classes=k).method.named_parameters()}
        for k in (5, 6)
    ]
    if shapes[0] != shapes[1]:
        raise NotApplicable("its layers have a channel per class")
    before, after = (_filled_by_class(subject, order) for order in (torch.arange(5), _ORDER))
    same(values(after), values(before), "with classes in another order", **_CLOSE)


def _filled_by_class(subject: MethodSubject, order: Tensor) -> Case:
    """A case in another order of classes; its banks saw features that depend on the class alone.

    So it does not matter which of the vectors of a class a bank draws.
    """
    case = _reordered(subject.case(dtype=F64, fill=False), order)
    plain = make_batch(len(case.batch), 5)
    table = torch.randn(5, 64, dtype=F64, generator=torch.Generator().manual_seed(4))

    def flat(value: Tensor) -> Tensor:
        rows = table[:, : value.shape[1]][labels_of(plain).clamp(max=4)].movedim(-1, 1)
        step = rows.shape[-1] // value.shape[-1]
        return rows[..., ::step, ::step]

    filling = case
    if case.teacher is not None:
        taps = {name: flat(value) for name, value in case.teacher.features.items()}
        logits = flat(case.teacher.logits)[:, order]
        filling = replace(case, teacher=replace(case.teacher, logits=logits, features=taps))
    filling.after_step()
    return case


def _reordered(case: Case, order: Tensor) -> Case:
    """Class ``order[k]`` of the case is class k of the new one."""
    place = torch.arange(256)
    place[order] = torch.arange(len(order))

    def outputs(side: Outputs) -> Outputs:
        leaves = map_outputs(side, lambda x: x)
        return replace(leaves, logits=side.logits.detach()[:, order].requires_grad_())

    batch = case.batch.replace(labels=place[labels_of(case.batch)])
    teacher = None if case.teacher is None else outputs(case.teacher)
    peers = {name: outputs(one) for name, one in case.peers.items()}
    return replace(case, student=outputs(case.student), teacher=teacher, batch=batch, peers=peers)


@CHECKS.add(
    "A softmax, a mean or a reshape along the wrong one of height and width still gives a loss "
    "that falls."
)
def swapped_axes(subject: MethodSubject) -> None:
    """Rows and columns swapped, in outputs, labels and masks alike, give the same values."""
    if not subject.kind.scale_free:
        raise NotApplicable("declares `scale_free = False`: kernels have an orientation")
    case = subject.case(equal=True, dtype=F64)
    batch = case.batch
    turned = batch.replace(
        images=batch.images.mT, labels=labels_of(batch).mT, not_padding=batch.not_padding.mT
    )
    found = values(case.each(lambda x: x.mT, batch=turned))
    same(found, values(case), "with rows and columns swapped", **_CLOSE)


@CHECKS.add(
    "A tap has 64 channels in one network and 2048 in another: a sum over channels would be "
    "thirty times as large there."
)
def doubled_channels(subject: MethodSubject) -> None:
    """Each channel of all features twice gives the same values, if the method has no layers of its
    own."""
    if subject.own_layers:
        raise NotApplicable("layers of its own take the channels")
    case = subject.case(equal=True, channels=(4, 4), dtype=F64)
    if not case.student.features:
        raise NotApplicable("it looks at logits alone")
    expected = values(case)
    wide = subject.case(equal=True, channels=(8, 8), dtype=F64, fill=False)
    teacher = None if case.teacher is None else _twice_the_channels(case.teacher)
    wide = replace(wide, student=_twice_the_channels(case.student), teacher=teacher)
    wide.after_step()
    same(values(wide), expected, "with each channel twice", **_CLOSE)


def _twice_the_channels(outputs: Outputs) -> Outputs:
    """Each channel of the features, but none of the logits, twice."""
    leaves = map_outputs(outputs, lambda x: x)
    taps = {k: torch.cat([v, v], 1).detach().requires_grad_() for k, v in leaves.features.items()}
    return replace(leaves, features=taps)


@CHECKS.add(
    "The gradient of softened classes shrinks with the square of the temperature. With the "
    "factor T² (Hinton et al.) a weight means the same at any temperature."
)
def any_temperature(subject: MethodSubject) -> None:
    """With a key `temperature` for logits, values at 2000 equal those at 1000."""
    if "temperature" not in subject.kind.Config.model_fields:
        raise NotApplicable("it has no key `temperature`")
    if "logits" not in subject.unbuilt.needs.student:
        raise NotApplicable("its temperature is not one of logits")
    low, high = (
        values(subject.case(dtype=F64).with_config(temperature=degrees)) for degrees in (1e3, 2e3)
    )
    for name, value in high.items():
        ratio = (value / low[name]).item()
        text = f"'{name}' is {ratio:.3g} times as large at temperature 2000 as at 1000"
        require(abs(ratio - 1) < 0.05, text)
