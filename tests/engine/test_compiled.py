"""Losses of methods as one compiled graph each, and what `runtime.compile` means on a device."""

import pytest
import torch
from cases import all_methods, config_of
from resuming import make_trainer, same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd import registry
from segkd.engine.compiled import CompiledLoss, compile_plan
from segkd.engine.run import train_run
from segkd.errors import ConfigError, Interrupted
from segkd.runtime import Runtime
from segkd.testing.cases import make_case

EAGER = {"device": "cpu", "threads": 1, "compile": "losses", "compile_backend": "eager"}
DRAWS = "generators"  # of random numbers: no graph can hold them
NODES = "shapes depend"  # the number of nodes depends on the labels
NOT_ONE_GRAPH = {
    **dict.fromkeys(("af_dcd", "cirkd", "mgd"), DRAWS),
    **dict.fromkeys(("cc", "crd", "irg", "rkd", "sp", "sskd", "mhgd"), NODES),
}
if torch.__version__ < (2, 12):  # which does not see that these are contiguous
    NOT_ONE_GRAPH |= {"gkd": "non-contiguous `out=`"}
METHODS = [name for name in registry.methods.names() if not name.startswith("toy_")]
QUICK = {"kd", "dist", "at", "ifvd", "mgd"}
SLOW = pytest.mark.slow  # compilers take seconds for each
every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else SLOW) for name in METHODS]
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_method
def test_a_loss_is_one_graph(name):
    method = all_methods()[name]
    case, plain = (make_case(method, config=config_of(method)) for _ in range(2))
    case.method.load_state_dict(plain.method.state_dict())
    loss = CompiledLoss(name, case.method, {"backend": "aot_eager"})
    teacher = case.teacher
    found = loss(case.student, teacher, case.batch, case.context(case.batch))
    expected = plain.terms()
    assert found.keys() == expected.keys()
    assert NOT_ONE_GRAPH.get(name, "") in loss.why_not
    assert bool(loss.why_not) == (name in NOT_ONE_GRAPH), loss.why_not
    for key, term in expected.items():
        torch.testing.assert_close(found[key].value, term.value, rtol=1e-5, atol=1e-7)
    sum(term.value for term in found.values()).backward()
    sum(term.value for term in expected.values()).backward()
    for tap, leaf in plain.leaves().items():
        torch.testing.assert_close(case.leaves()[tap].grad, leaf.grad, rtol=1e-4, atol=1e-7)


# -- in a run --------------------------------------------------------------------------------------


METHODS_OF_RUN = {
    "kd": {},
    "cwd": {"tap": "stage4", "weight": 1.0, "start": 1},
    "mgd": {"weight": 0.1},
    "fitnets": {"weight": {"auto": 0.3, "every": 2}},
}


def run_config(folder, **changes):
    usual = {"methods": METHODS_OF_RUN, "steps": 3, "eval": {"every": 1}, "runtime": EAGER}
    return toy_config(folder, **{**usual, **changes})


def test_a_run_with_compiled_losses_has_the_same_numbers(tmp_path):
    weights = []
    for number, compiled in enumerate((False, "losses")):
        config = run_config(tmp_path / str(number), runtime={**EAGER, "compile": compiled})
        trainer = make_trainer(config, teachers={"main": teacher_net()})
        for _ in trainer.steps():
            pass
        weights.append(dict(trainer.student.state_dict()))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)
    (line,) = trainer.objective.uncompiled()
    assert line.startswith("methods.mgd: its loss is not one graph")
    assert line in trainer.parts.notes
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3


def test_a_run_with_compiled_losses_resumes_bit_for_bit(tmp_path, monkeypatch):
    teachers = {"main": teacher_net()}
    train_run(run_config(tmp_path / "whole"), teachers=teachers)
    parts = run_config(tmp_path / "parts")
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train_run(parts, teachers=teachers)
    monkeypatch.undo()
    train_run(parts, teachers=teachers)
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_errors_of_a_compiled_loss_are_those_of_the_loss(tmp_path):
    changes = {"methods": {"kd": {}}, "student": {"arch": "toy"}}
    config = run_config(tmp_path, **changes)
    trainer = make_trainer(config, teachers={"main": teacher_net()})

    def refuse(*_):
        raise ConfigError("kd: cannot")

    trainer.objective._compiled["kd"] = CompiledLoss(
        "kd", trainer.methods["kd"], {"backend": "eager"}
    )
    trainer.methods["kd"].loss = refuse
    trainer.objective._compiled["kd"]._compiled = torch.compile(refuse, fullgraph=True)
    with pytest.raises(ConfigError, match="kd: cannot"):
        next(trainer.steps())


# -- what the key means ----------------------------------------------------------------------------


def plan(wanted, device="cpu", world=1, accumulate=1, backend="inductor"):
    runtime = {"device": "cpu", "compile": wanted, "compile_backend": backend}
    config = toy_config("unused", runtime=runtime, optim={"accumulate": accumulate})
    return compile_plan(config, Runtime(torch.device(device), world=world))


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        (False, (False, False, False)),
        (True, (True, True, False)),
        ("student", (True, False, False)),
        ("teachers", (False, True, False)),
        ("losses", (False, False, True)),
        ("max", (True, True, True)),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_compiled(wanted, parts, device):
    found = plan(wanted, device)
    assert (found.student, found.teachers, found.losses) == parts
    assert found.cuda_graphs == (wanted == "max" and device == "cuda")


def test_max_has_graphs_on_one_cuda_device():
    found = plan("max", "cuda")
    assert found.options == {"backend": "inductor", "dynamic": False, "mode": "max-autotune"}
    assert found.cuda_graphs and not found.notes


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"accumulate": 2}, "optim.accumulate keeps"),
        ({"world": 2}, "several processes"),
        ({"device": "cpu"}, "need a CUDA device, this run is on cpu"),
    ],
)
def test_max_says_why_it_has_none(changes, why):
    found = plan("max", **{"device": "cuda", **changes})
    assert not found.cuda_graphs and why in "".join(found.notes)
    mode = None if "device" in changes else "max-autotune-no-cudagraphs"
    assert found.options.get("mode") == mode


def test_max_is_refused_without_its_backend():
    with pytest.raises(ConfigError, match=r"modes of inductor.*aot_eager.*compile=true"):
        plan("max", "cuda", backend="aot_eager")


def test_each_step_of_graphs_is_told_to_begin(monkeypatch):
    told = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(1))
    plan("max", "cuda").begin_step()
    plan("max", "cpu").begin_step()
    assert told == [1]


@pytest.mark.gpu
@pytest.mark.slow
def test_max_has_the_numbers_of_a_plain_run_on_cuda(tmp_path):
    weights = []
    for number, compiled in enumerate((False, "max")):
        runtime = {"device": "cuda", "threads": 1, "compile": compiled}
        quiet = {"arch": "toy", "options": {"norm": False}}
        config = run_config(tmp_path / str(number), runtime=runtime, student=quiet)
        trainer = make_trainer(config, teachers={"main": teacher_net(norm=False)})
        for _ in trainer.steps():
            pass
        weights.append({name: value.cpu() for name, value in trainer.student.state_dict().items()})
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
