"""Promises 1 to 5 of the design, for every registered method and for the toys.

A new method is found by the registry: nothing is edited here when one is added.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from cases import CELL, IGNORE, Case, all_methods, make_case, measure, upsampled
from distributed_worker import scenarios

import segkd
from segkd.errors import ConfigError
from segkd.runtime import Runtime

METHODS = all_methods()
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
F64 = torch.float64


def run(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Values by term and the student's gradients by tap, after one backward pass."""
    terms = case.terms()
    sum(term.value for term in terms.values()).backward()
    gradients = {name: leaf.grad for name, leaf in case.leaves().items()}
    return {name: term.value.detach() for name, term in terms.items()}, gradients


def leave_the_start(method: torch.nn.Module) -> None:
    """Moves all parameters a little: layers that start at zero hide those before them."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=draw)


def same(found: dict, expected: dict, **tolerances) -> None:
    torch.testing.assert_close(found, expected, **tolerances)


# -- 1. any method, any pair -----------------------------------------------------------------------


@every_method
def test_terms_are_finite_scalars_with_a_count(method):
    for term in make_case(method).terms().values():
        assert term.value.shape == () and term.value.isfinite()
        if term.count is not None:
            assert term.count.shape == () and term.count.dtype is F64 and term.count > 0
            assert not term.count.requires_grad


@every_method
def test_gradient_reaches_every_declared_tap_and_no_teacher(method):
    case = make_case(method)
    _, gradients = run(case)
    for tap in case.method.taps_with_gradient:
        assert gradients[tap].isfinite().all() and gradients[tap].any(), tap
    for tap in set(case.method.needs.student) - set(case.method.taps_with_gradient):
        assert gradients[tap] is None, tap
    if case.teacher is not None and not case.method.needs.teacher_gradient:
        assert all(tensor.grad is None for tensor in case.teacher.tensors())


@every_method
def test_parameters_are_trained_by_the_loss_or_by_the_own_loss(method):
    case = make_case(method)
    leave_the_start(case.method)
    run(case)
    own = {id(parameter) for parameter in case.method.inner_parameters()}
    assert bool(own) == (case.method.inner_steps > 0)
    for name, parameter in case.method.named_parameters():
        assert id(parameter) in own or parameter.grad.any(), name
    if own:
        case.method.zero_grad()
        sum(term.value for term in case.own_terms().values()).backward()
        assert all(p.grad.isfinite().all() for p in case.method.inner_parameters())
        assert any(p.grad.any() for p in case.method.inner_parameters())


@every_method
def test_log_probabilities_are_finite_teachers(method):
    case = make_case(method)
    if case.method.needs.accepts_log_prob:
        case.teacher.logits = case.teacher.logits.detach().log_softmax(1)
        case.teacher.kind = "log_prob"
        assert all(term.value.isfinite() for term in case.terms().values())


# -- 2. weights mean the same everywhere -----------------------------------------------------------


@every_method
def test_duplicating_the_batch_changes_nothing(method):
    case = make_case(method, dtype=F64)
    values, gradients = run(case.each(lambda x: x))
    twice = torch.arange(len(case.batch)).repeat(2)
    doubled_values, doubled = run(case.images(twice))
    same(doubled_values, values)
    for tap in case.method.taps_with_gradient:
        same(sum(doubled[tap].chunk(2)), gradients[tap])


@every_method
def test_upsampling_everything_changes_nothing(method):
    if not method.scale_free:
        pytest.skip("declares that its loss depends on the resolution")
    case = make_case(method, equal=True, dtype=F64)
    larger = case.batch.replace(
        images=upsampled(case.batch.images, 2),
        labels=upsampled(case.batch.labels, 2),
        not_padding=upsampled(case.batch.not_padding, 2),
    )
    values, _ = run(case.each(lambda x: upsampled(x, 2), batch=larger))
    same(values, run(case)[0], rtol=1e-5, atol=1e-9)


@every_method
def test_the_scale_of_features_changes_nothing(method):
    if method is toys.ToySelf:
        pytest.skip("compares no features, and its own head sees them as they are")
    values = []
    for scale in (1.0, 3.0):
        case = make_case(method, dtype=F64, feature_scale=scale)
        leave_the_start(case.method)
        values.append(run(case)[0])
    same(values[1], values[0], rtol=1e-5, atol=1e-9)


# -- 3. invalid positions never teach --------------------------------------------------------------


@every_method
def test_nothing_at_invalid_positions_matters(method):
    case = make_case(method, equal=True, dtype=F64)
    valid, inside = case.batch.valid, case.batch.not_padding
    noise = torch.Generator().manual_seed(1)

    def spoil(tensor):
        cells = valid[:, ::CELL, ::CELL]
        hidden = ~upsampled(cells, tensor.shape[-2] // cells.shape[-2]).unsqueeze(1)
        return tensor + 100 * hidden * torch.randn(tensor.shape, generator=noise, dtype=F64)

    batch = case.batch.replace(
        images=case.batch.images.masked_fill(~inside.unsqueeze(1), 77),
        labels=case.batch.labels.masked_fill(~inside, 1),
    )
    values, gradients = run(case.each(spoil, batch=batch))
    clean_values, clean = run(case)
    same(values, clean_values)
    for tap in case.method.taps_with_gradient:
        same(gradients[tap], clean[tap])
        assert gradients[tap][spoil(torch.zeros_like(clean[tap])) != 0].abs().max() < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@every_method
def test_what_is_no_number_at_invalid_positions_does_not_matter(method, bad, request):
    """NaN times 0 is NaN: what is masked is filled before it is multiplied."""
    if "[toy_" in request.node.name:
        pytest.skip("toys of the contract multiply by the mask")
    case = make_case(method, equal=True, dtype=F64)
    valid = case.batch.valid

    def hidden(tensor):
        cells = valid[:, ::CELL, ::CELL]
        return ~upsampled(cells, tensor.shape[-2] // cells.shape[-2]).unsqueeze(1)

    values, gradients = run(case.each(lambda tensor: tensor.masked_fill(hidden(tensor), bad)))
    clean_values, clean = run(case)
    same(values, clean_values)
    for tap in case.method.taps_with_gradient:
        same(gradients[tap].masked_fill(hidden(clean[tap]), 0), clean[tap])


# -- 4. losses are numerically safe ----------------------------------------------------------------


def dead_channels(tensor):
    return torch.cat([torch.zeros_like(tensor[:, :1]), tensor[:, 1:]], dim=1)


EXTREMES = {
    "saturated": lambda case: case.each(lambda x: 1e4 * x.sign()),
    "dead channels": lambda case: case.each(dead_channels),
    "constant maps": lambda case: case.each(torch.zeros_like),
    "one class": lambda case: replace(
        case, batch=case.batch.replace(labels=case.batch.labels.clamp(IGNORE - 1) - IGNORE + 1)
    ),
    "batch of one": lambda case: case.images(slice(0, 1)),
    "one image empty": lambda case: replace(
        case,
        batch=case.batch.replace(
            not_padding=case.batch.not_padding & (case.batch.index > 0)[:, None, None]
        ),
    ),
}


@every_method
@pytest.mark.parametrize("extreme", EXTREMES.values(), ids=EXTREMES)
def test_extremes_are_finite(method, extreme):
    values, gradients = run(extreme(make_case(method)))
    assert all(value.isfinite() for value in values.values())
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@every_method
@pytest.mark.parametrize("void", [False, True], ids=["all padding", "all void"])
def test_empty_mask_gives_a_zero_with_a_graph(method, void):
    case = make_case(method)
    hidden = (
        case.batch.replace(labels=torch.full_like(case.batch.labels, IGNORE))
        if void
        else case.batch.replace(not_padding=torch.zeros_like(case.batch.not_padding))
    )
    case = replace(case, batch=hidden)
    for term in case.terms().values():
        assert term.value == 0 and term.value.requires_grad
        assert term.count is None or term.count == 0
    _, gradients = run(case)
    assert all(not g.any() for g in gradients.values() if g is not None)


@every_method
def test_works_without_labels_unless_it_needs_them(method):
    case = make_case(method)
    if not case.method.needs.labels:
        values, _ = run(replace(case, batch=case.batch.replace(labels=None)))
        assert all(value.isfinite() for value in values.values())


@every_method
def test_two_classes_work_or_are_refused(method):
    try:
        case = make_case(method, classes=2)
    except ConfigError as error:
        assert "classes" in str(error)
        return
    if case.method.needs.min_classes <= 2:
        assert all(value.isfinite() for value in run(case)[0].values())


@every_method
def test_half_precision_is_raised(method):
    case = make_case(method)
    with torch.autocast("cpu", torch.bfloat16):
        values, gradients = run(case.each(lambda x: x.bfloat16()))
    assert all(value.dtype is torch.float32 for value in values.values())
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)
    same(values, run(case)[0], rtol=0.05, atol=0.02)


# -- 5. same numbers everywhere --------------------------------------------------------------------


@every_method
def test_state_round_trip(method, tmp_path):
    case = make_case(method)
    case.after_step()
    torch.save(case.method.state_dict(), tmp_path / "state.pt")
    other = make_case(method)
    for tensor in other.method.state_dict().values():
        tensor.fill_(1)
    other.method.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    same(run(other)[0], run(case)[0], rtol=0, atol=0)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What both of two gloo processes measured, for all methods and scenarios."""
    folder, tests = tmp_path_factory.mktemp("ranks"), Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(tests / "distributed_worker.py"), str(folder)]
    paths = os.pathsep.join([str(Path(segkd.__path__[0]).parent), str(tests)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@every_method
def test_one_and_two_processes_agree(method, two_processes):
    for scenario, case in scenarios(method).items():
        alone = measure(case)
        for found in two_processes:
            same(found[method.name][scenario], alone, rtol=1e-6, atol=1e-9)


@pytest.mark.gpu
@every_method
def test_gpu_and_cpu_agree(method):
    cpu, gpu = make_case(method), make_case(method)
    device = torch.device("cuda", 0)
    gpu.method.to(device)
    gpu = gpu.each(lambda x: x.to(device), batch=gpu.batch.to(device))
    gpu = replace(gpu, runtime=Runtime.single(device))
    same(measure(gpu), measure(cpu), rtol=1e-4, atol=1e-5)
