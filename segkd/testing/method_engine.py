"""What the engine relies on: inputs stay as they are, state travels, processes agree, no waits."""

import copy
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segkd.ops.precision import ieee_products
from segkd.runtime import Runtime, preserved_rng
from segkd.structures import Batch
from segkd.testing.cases import Case, backward, make_batch, map_batch
from segkd.testing.check import CheckList, NotApplicable, global_generators, require, require_finds
from segkd.testing.measure import measure
from segkd.testing.method_subject import (
    F64,
    MethodSubject,
    exactly,
    run,
    same,
    values,
)
from segkd.testing.processes import ThreadRuntime, on_two_processes
from segkd.testing.waits import META, Unknown, find_waits

CHECKS: CheckList[MethodSubject] = CheckList("method")


@CHECKS.add(
    "All methods of a run share the outputs, also with the task loss and the report. In-place "
    "changes alter what the others learn from."
)
def inputs_unchanged(subject: MethodSubject) -> None:
    """Outputs and batch are the same objects with the same numbers after `loss`, backward,
    `inner_loss` and `after_step`."""
    case = subject.case(dtype=F64)
    case.student = case.student.map(lambda x: x * 1)  # as a network's: no leaves
    case.teacher = case.teacher and case.teacher.detach()
    before = [(name, value, value.detach().clone()) for name, value in _inputs(case)]
    backward(term.value for term in case.terms().values())
    if case.inner:
        backward(term.value for term in case.inner_terms().values())
    case.after_step()
    after = dict(_inputs(case))
    require(after.keys() == {name for name, *_ in before}, f"there are now {', '.join(after)}")
    for name, value, numbers in before:
        require(after[name] is value, f"{name} is another tensor")
        require(_equal(value, numbers), f"{name} was overwritten")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of any shape are equal; NaN, which means unknown, equals NaN."""
    return torch.equal(one.nan_to_num(nan=-9e9), other.nan_to_num(nan=-9e9))


def _inputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    for who, outputs in (("student", case.student), ("teacher", case.teacher)):
        if outputs is not None:
            yield f"{who}'s logits", outputs.logits
            yield from ((f"{who}'s {tap}", value) for tap, value in outputs.features.items())
    yield from _tensors(case.batch)


def _tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for name in ("images", "labels", "not_padding", "index", "labelled"):
        value = getattr(batch, name)
        if value is not None:
            yield f"batch.{name}", value
    yield from ((f"batch.extra['{name}']", value) for name, value in batch.extra.items())


@CHECKS.add(
    "The rewritten batch is what the whole run sees: student, teachers, task loss and all other "
    "methods. Each process makes its own part of it."
)
def rewritten_batch(subject: MethodSubject) -> None:
    """A `prepare` that rewrites the batch leaves the one it gets as it is, returns tensors that fit
    each other, draws from the context's generators alone, lets no padding into valid pixels, and
    makes on two processes the two parts of what it makes on one."""
    case = subject.case(dtype=F64)
    if not case.method.needs.rewrites_batch:
        raise NotApplicable("it does not rewrite the batch")
    case = case.fresh(batch=make_batch(4, 5))
    before = [(name, value, value.clone()) for name, value in _tensors(case.batch)]
    alone = _prepared(case)
    for name, value, numbers in before:
        require(_equal(value, numbers), f"{name} was overwritten")
    _require_fit(alone, case.batch)
    expected = dict(_tensors(alone))
    with preserved_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            state = global_generators()
            _require_equal(dict(_tensors(_prepared(case))), expected, "with other global seeds")
            require(global_generators() == state, "it draws from a global generator")
    hidden = ~case.batch.not_padding.unsqueeze(1)
    other = case.batch.replace(images=case.batch.images.masked_fill(hidden, 77))
    found = _prepared(case.fresh(batch=other))
    exactly(found.not_padding, alone.not_padding, "with other padding: not_padding")
    seen = alone.not_padding.unsqueeze(1)
    exactly(found.images * seen, alone.images * seen, "with other padding: valid pixels")
    parts = on_two_processes(partial(_prepared_half, case))
    both = [dict(_tensors(part)) for part in parts]
    joined = {name: torch.cat([one[name] for one in both]) for name in expected}
    _require_equal(joined, expected, "both parts of two processes, beside one process")


def _require_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    require(found.keys() == expected.keys(), f"{what} there are {', '.join(found)}")
    for name, value in found.items():
        require(_equal(value, expected[name]), f"{what} {name} is another")


def _prepared(case: Case) -> Batch:
    return case.method.prepare(case.batch, case.context(case.batch))


def _prepared_half(case: Case, runtime: ThreadRuntime) -> Batch:
    half = slice(2 * runtime.rank, 2 * runtime.rank + 2)
    return _prepared(case.fresh(runtime=runtime, batch=map_batch(case.batch, lambda x: x[half])))


def _require_fit(batch: Batch, given: Batch) -> None:
    """All tensors have one length, at least 1, and those of pixels one size."""
    require(len(batch) > 0, "it returns no image")
    size = batch.images.shape[2:]
    for name, value in _tensors(batch):
        require(len(value) == len(batch), f"{name} has {len(value)} rows, images {len(batch)}")
        pixels = name in ("batch.labels", "batch.not_padding")
        require(not pixels or value.shape[1:] == size, f"{name} has the shape {tuple(value.shape)}")
    before = dict(_tensors(given))
    for name, value in _tensors(batch):
        kind = before[name].dtype if name in before else value.dtype
        require(value.dtype is kind, f"{name} is {value.dtype}, it was {kind}")


@CHECKS.add(
    "A resumed run equals an uninterrupted one, and processes agree, only if random numbers come "
    "from the generators of the context, which depend on seed, step and image."
)
def reproducible(subject: MethodSubject) -> None:
    """The same inputs and generators give identical bits, whatever the state of the global
    generators of torch, numpy and Python, which is not changed."""
    case = subject.case(dtype=F64)
    found = []
    with preserved_rng():
        for seed in (1, 2):
            other = case.fresh()
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            state = global_generators()
            found.append(measure(other, steps=1))
            require(global_generators() == state, "it draws from a global generator")
    exactly(found[1], found[0], "with other global seeds")


@CHECKS.add("Whatever is not in the state is lost when a run resumes: a bank would be empty again.")
def state_round_trip(subject: MethodSubject) -> None:
    """A fresh method that loads the `state_dict` of another one gives identical bits."""
    case = subject.case()
    case.each(lambda x: 1 - 2 * x, method=case.method).after_step()  # unlike that of a fresh one
    state = {name: value.clone() for name, value in case.method.state_dict().items()}
    other = subject.case()
    for tensor in other.method.state_dict().values():
        tensor.fill_(1)
    other.method.load_state_dict(state)
    exactly(run(other), run(case), "after loading its state")


@CHECKS.add(
    "`torch.save`, spawned processes and job launchers pickle objects. Lambdas, local classes "
    "and open files in attributes cannot be pickled."
)
def pickling(subject: MethodSubject) -> None:
    """A method gives identical bits after pickling."""
    case = subject.case()
    other = case.fresh(method=pickle.loads(pickle.dumps(case.method)))
    exactly(run(other), run(case), "after pickling")


@CHECKS.add(
    "A recipe trains several runs in one process: state in a class attribute, a global or a "
    "closure leaks from one run into the next."
)
def deep_copies(subject: MethodSubject) -> None:
    """A deep copy gives identical bits, and what it learns does not reach the original."""
    case = subject.case()
    other = case.fresh(method=copy.deepcopy(case.method))
    exactly(values(other.fresh()), values(case.fresh()), "of a deep copy")
    before = {name: value.clone() for name, value in case.method.state_dict().items()}
    expected = values(case.fresh())
    other = other.each(lambda x: 2 * x + 1, method=other.method)
    with torch.no_grad():
        for parameter in other.method.parameters():
            parameter.add_(1)
    for _ in range(3):
        values(other)
        other.after_step()
    exactly(case.method.state_dict(), before, "state of the original after its copy learned")
    exactly(values(case.fresh()), expected, "the original after its copy learned")


@CHECKS.add(
    "A run on eight GPUs must equal a run on one: relations, banks and counts are those of the "
    "global batch."
)
def two_processes(subject: MethodSubject) -> None:
    """Two simulated processes with half of the images each give the values, gradients and state of
    one process with all, reduced as the engine does it; also if one of them has no valid
    position."""
    for what in ("unequal counts", "nothing valid on the second process"):
        case = subject.case(dtype=F64)
        inside, half = case.batch.not_padding.clone(), (len(case.batch) + 1) // 2
        if what != "unequal counts":
            inside[half:] = False
        case = case.with_batch(not_padding=inside)
        parts = [case.images(part) for part in (slice(0, half), slice(half, None))]
        alone = measure(case)
        found = on_two_processes(partial(_measured_part, parts))
        for rank, one in enumerate(found):
            same(one, alone, f"{what}: process {rank}", rtol=1e-6, atol=1e-9)


def _measured_part(parts: Sequence[Case], runtime: ThreadRuntime) -> dict[str, Tensor]:
    return measure(parts[runtime.rank].fresh(runtime=runtime))


@CHECKS.add(
    "Training runs on GPUs, where sums have another order and new tensors must be on the right "
    "device."
)
def on_the_gpu(subject: MethodSubject) -> None:
    """The first CUDA device gives the numbers of the CPU, to four digits."""
    if not torch.cuda.is_available():
        raise NotApplicable("there is no CUDA device here")
    device = torch.device("cuda", 0)
    cpu, gpu = subject.case(), subject.case()
    gpu.method.to(device)
    batch = gpu.batch.to(device)
    gpu = gpu.each(lambda x: x.to(device), batch=batch, runtime=Runtime.single(device))
    with ieee_products(convolutions=True):  # those of CUDA are TF32's by default, of ten bits
        same(measure(gpu), measure(cpu), "on the GPU", rtol=1e-4, atol=1e-5)


@CHECKS.add(
    "A GPU works through a queue ahead of Python. `.item()`, `.cpu()`, `if tensor:`, "
    "`mask.nonzero()` and boolean indices wait until it is empty, in each step."
)
def no_waiting(subject: MethodSubject) -> None:
    """`prepare`, `loss`, backward, `inner_loss` and `after_step` read no numbers from the device,
    create no shapes that depend on numbers, and copy nothing to it without
    `non_blocking=True`."""
    case = subject.case()
    case.method.to(META)
    batch = case.batch.to(META)
    case = case.each(lambda x: x.to(META), batch=batch)

    def step() -> None:
        if case.method.needs.rewrites_batch:
            _prepared(case)
        backward(term.value for term in case.terms().values())
        if case.inner:
            backward(term.value for term in case.inner_terms().values())
        case.after_step()

    try:
        require_finds(find_waits(step), "it waits")
    except Unknown as why:
        raise NotApplicable(f"cannot be looked at without a GPU: {why}") from None
