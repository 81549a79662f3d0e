"""Losses are numerically safe: extremes, empty masks, half precision, and the gradient itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from segkd.errors import ConfigError
from segkd.structures import Term
from segkd.testing.cases import IGNORE, Case, labels_of, make_case, total
from segkd.testing.check import CheckList, NotApplicable, require
from segkd.testing.method_subject import (
    F64,
    MethodSubject,
    leave_the_start,
    run,
    same,
)
from segkd.testing.slopes import require_slopes

CHECKS: CheckList[MethodSubject] = CheckList("method")


@CHECKS.add(
    "A training with a wrong gradient shows no error and minimises something else. Hand-written "
    "backward passes are the usual cause."
)
def gradient(subject: MethodSubject) -> None:
    """In float64 the gradients of `loss` and `inner_loss` agree with finite differences, at each
    tap with a gradient and over all parameters. Detached values are held constant."""
    case = subject.case(dtype=F64)
    leave_the_start(case.method)
    own = {id(parameter) for parameter in case.inner}
    leaves = case.leaves()
    groups: dict[str, Sequence[Tensor]] = {tap: [leaves[tap]] for tap in case.taps_with_gradient}
    others = [p for p in case.method.parameters() if id(p) not in own]
    if others:
        groups["its parameters"] = others
    require_slopes(lambda: _total(case.terms()), groups, case.method)
    if own:
        mine = {"its inner parameters": case.inner}
        require_slopes(lambda: _total(case.inner_terms()), mine, case.method)


def _total(terms: Mapping[str, Term]) -> Tensor:
    return total(term.value for term in terms.values())


# -- extremes --------------------------------------------------------------------------------------


def _dead_channels(tensor: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(tensor[:, :1]), tensor[:, 1:]], dim=1)


def _one_class(case: Case) -> Case:
    labels = labels_of(case.batch)
    return case.with_batch(labels=labels.masked_fill(labels != IGNORE, 0))


def _one_image_empty(case: Case) -> Case:
    return case.with_batch(
        not_padding=case.batch.not_padding & (case.batch.index > 0)[:, None, None]
    )


def _one_image(case: Case) -> Case:
    """The first image; for a method that rewrites batches what it makes of a single image."""
    if not case.method.needs.rewrites_batch:
        return case.images(slice(0, 1))
    config = case.method.config
    return make_case(type(case.method), images=1, config=config)


_EXTREMES: dict[str, tuple[str, str, Callable[[Case], Case]]] = {
    "saturated_outputs": (
        "outputs of ±10,000",
        "The logits of a confident teacher saturate; log(softmax(x)) and squares overflow there.",
        lambda case: case.each(lambda x: 1e4 * x.sign()),
    ),
    "dead_channels": (
        "a channel that is 0 everywhere",
        "Dead channels are common after a ReLU; a division by their norm is one by 0.",
        lambda case: case.each(_dead_channels),
    ),
    "constant_maps": (
        "maps that are 0 everywhere",
        "A network may return constant maps in its first steps; square roots have no slope at 0.",
        lambda case: case.each(torch.zeros_like),
    ),
    "one_class": (
        "labels of a single class",
        "Crops that only show sky or road are common.",
        _one_class,
    ),
    "batch_of_one": (
        "a batch of one image",
        "Large images leave memory for one; relations between images and batch statistics fail.",
        _one_image,
    ),
    "one_image_empty": (
        "an image that is all padding",
        "A mean over no positions is 0 / 0.",
        _one_image_empty,
    ),
}


def _extreme(change: Callable[[Case], Case], subject: MethodSubject) -> None:
    found, gradients = run(change(subject.case()))
    for name, value in found.items():
        require(bool(value.isfinite()), f"the value of '{name}' is {value.item()}")
    for tap, slope in gradients.items():
        if slope is not None:
            require(bool(slope.isfinite().all()), f"the gradient at '{tap}' is not finite")


for _name, (_what, _why, _change) in _EXTREMES.items():
    CHECKS.put(
        _name, f"Values and gradients are finite for {_what}.", _why, partial(_extreme, _change)
    )


def _empty(case: Case, everything_counts: bool = False) -> None:
    """A zero with a graph, a count of 0, and no gradient."""
    for name, term in case.terms().items():
        require(bool(term.value == 0), f"the value of '{name}' is {term.value.item()}")
        require(term.value.requires_grad, f"the value of '{name}' has no graph")
        none = term.count is None or bool(term.count == 0)
        require(none, f"the count of '{name}' is {term.count}")
    for tap, slope in run(case.fresh())[1].items():
        require(slope is None or not bool(slope.any()), f"there is a gradient at '{tap}'")


@CHECKS.add(
    "Such batches occur. Without a graph the backward pass raises an error, and other processes "
    "wait for its gradients."
)
def all_padding(subject: MethodSubject) -> None:
    """A batch of nothing but padding gives values of 0 with a graph, counts of 0 and no
    gradient."""
    case = subject.case()
    _empty(case.with_batch(not_padding=torch.zeros_like(case.batch.not_padding)))


@CHECKS.add(
    "Such batches occur where an image is not annotated. They must neither have an effect nor "
    "stop a training."
)
def all_void(subject: MethodSubject) -> None:
    """A batch with nothing but void labels gives values of 0 with a graph, counts of 0 and no
    gradient."""
    case = subject.case()
    _empty(case.with_batch(labels=torch.full_like(labels_of(case.batch), IGNORE)))


@CHECKS.add("Many tasks have two classes: lanes, defects, water.")
def two_classes(subject: MethodSubject) -> None:
    """Two classes give finite values, or are refused at build by a message about classes."""
    try:
        case = subject.case(classes=2)
    except ConfigError as error:
        require("classes" in str(error), f"the refusal does not speak of classes: {error}")
        return
    if case.method.needs.min_classes > 2:
        raise NotApplicable(f"declares that it needs {case.method.needs.min_classes} classes")
    found, _ = run(case)
    require(all(bool(value.isfinite()) for value in found.values()), f"the values are {found}")


@CHECKS.add(
    "Under autocast, outputs have half types with three digits. Sums over thousands of pixels "
    "lose theirs, and exponentials overflow."
)
def half_precision(subject: MethodSubject) -> None:
    """Half types are raised to float32 first: bfloat16 outputs give float32 values, equal to those
    of the same numbers in float32, with and without autocast (to a few percent if the method has
    layers, which run in half precision)."""
    rounded = subject.case().each(lambda x: x.bfloat16().float())
    expected, _ = run(rounded)
    layers = any(True for _ in rounded.method.parameters())
    close = {"rtol": 0.05, "atol": 0.02} if layers else {"rtol": 1e-5, "atol": 1e-7}
    for autocast in (True,) if layers else (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, gradients = run(subject.case().each(lambda x: x.bfloat16()))
        for name, value in found.items():
            require(value.dtype is torch.float32, f"the value of '{name}' is {value.dtype}")
        for tap, slope in gradients.items():
            if slope is not None:
                require(bool(slope.isfinite().all()), f"the gradient at '{tap}' is not finite")
        what = "under autocast" if autocast else "without autocast"
        same(found, expected, f"bfloat16 {what}, beside the same numbers in float32", **close)
