"""Layout, compilation and shared statistics change how a run computes, not what."""

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from torch import nn
from toy_run import teacher_net, toy_config

from segkd.config.schema import ModelConfig
from segkd.engine.placement import channels_last, compile_networks, with_shared_statistics
from segkd.engine.run import Run, train_run
from segkd.errors import ConfigError, Interrupted
from segkd.models.build import build_network
from segkd.models.module import wrap
from segkd.runtime import Runtime

PLAIN = {"device": "cpu", "threads": 1}
COMPILED = {**PLAIN, "compile": True, "compile_backend": "aot_eager"}
TRACED = {**COMPILED, "compile_backend": "eager"}  # half the time: gradients are not traced
QUIET = {"arch": "toy", "options": {"norm": False}}  # without dropout's random numbers
TAPS = {
    "kd": {},
    "cwd": {"tap": "stage4", "weight": 1.0},
    "inside": {"method": "cwd", "tap": "module:encoder.1.0", "weight": 1.0},
    "before": {"method": "cwd", "tap": "stage5:pre", "weight": 1.0},
}


def trained(folder, runtime, steps=3, **changes):
    changes = {"student": QUIET, "methods": TAPS, "steps": steps} | changes
    config = toy_config(folder, runtime=runtime, **changes)
    trainer = make_trainer(config, teachers={"main": teacher_net(norm=False)})
    for _ in trainer.steps():
        pass
    return trainer


def is_compiled(module):
    return module._compiled_call_impl is not None


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# -- compilation -----------------------------------------------------------------------------------


def test_a_compiled_run_has_the_same_numbers_taps_and_names(tmp_path, fresh_compiler):
    plain = trained(tmp_path / "a", PLAIN)
    compiled = trained(tmp_path / "b", COMPILED)
    found, expected = compiled.student.state_dict(), plain.student.state_dict()
    assert found.keys() == expected.keys()
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-4, atol=1e-6)
    encoder = compiled.student.encoder
    assert is_compiled(encoder[0]) and not is_compiled(encoder[1]), "a hook watches inside"
    assert is_compiled(encoder[1][1]) and not is_compiled(encoder[1][0]), "the watched one"
    teacher = compiled.parts.teachers.members["main"].network
    assert is_compiled(teacher.classifier)


def test_steps_compile_once(tmp_path, fresh_compiler):
    config = toy_config(tmp_path, runtime=COMPILED, student=QUIET, methods=TAPS)
    trainer = make_trainer(config, teachers={"main": teacher_net(norm=False)})
    steps = trainer.steps()
    counted = torch._dynamo.utils.counters["stats"]
    next(steps)
    graphs = counted["unique_graphs"]
    next(steps), next(steps)
    assert graphs > 0 and counted["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("side", ["student", "teachers"])
def test_one_side_may_be_compiled(side, fresh_compiler):
    from segkd.engine.compiled import CompilePlan
    from segkd.models.teacher import build_teachers

    student, teacher = teacher_net(), teacher_net()
    teachers = build_teachers({}, {"main": ["logits"]}, 4, networks={"main": teacher})
    plan = CompilePlan(**{side: True}, options={"backend": "aot_eager"})
    compile_networks(plan, (), student, teachers)
    assert is_compiled(student.classifier) == (side == "student")
    assert is_compiled(teacher.classifier) == (side == "teachers")


def without_compiler(graph, examples):
    raise RuntimeError("No working C++ compiler found\nand many more lines")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("without_compiler", "No working C\\+\\+ compiler found"), ("inducter", "Invalid backend")],
)
def test_a_machine_that_cannot_compile_is_told_before_the_first_step(
    tmp_path, fresh_compiler, backend, reason
):
    if "without_compiler" not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(without_compiler)
    runtime = {**PLAIN, "compile": "student", "compile_backend": backend}
    with pytest.raises(ConfigError, match=f"(?s){reason}.*compile=false") as caught:
        make_trainer(toy_config(tmp_path, runtime=runtime))
    assert "many more lines" not in str(caught.value)


def test_a_callers_own_module_is_compiled_around_its_taps(fresh_compiler):
    module = nn.Sequential()
    module.add_module("body", nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()))
    module.add_module("top", nn.Conv2d(6, 4, 1))
    network = wrap(module, 4, taps={"stage1": "body", "logits": "top"})
    assert network.hooked_paths(["stage1"]) == {"module.body", "module.top"}
    assert network.hooked_paths(["module:module.body.0"]) >= {"module.body.0"}


def test_nothing_is_compiled_to_evaluate(tmp_path, monkeypatch, fresh_compiler):
    counted, scored = torch._dynamo.utils.counters["stats"], []
    original = Run._evaluate

    def counting(self, network):
        before = counted["unique_graphs"]
        result = original(self, network)
        scored.append(counted["unique_graphs"] - before)
        return result

    monkeypatch.setattr(Run, "_evaluate", counting)
    changes = {"steps": 2, "methods": {"kd": {}}, "runtime": TRACED, "eval": {"every": 1}}
    train_run(toy_config(tmp_path, **changes), teachers={"main": teacher_net()})
    assert counted["unique_graphs"] > 0 and scored == [0, 0, 0]


def test_a_compiled_run_resumes_bit_for_bit(tmp_path, monkeypatch, fresh_compiler):
    student_alone = {**TRACED, "compile": "student"}
    changes = {"steps": 3, "methods": TAPS, "ema": 0.9, "runtime": student_alone}
    changes |= {"eval": {"every": 1}}
    train_run(toy_config(tmp_path / "whole", **changes), teachers={"main": teacher_net()})
    parts = toy_config(tmp_path / "parts", **changes)
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


# -- channels last ---------------------------------------------------------------------------------


def test_channels_last_gives_the_same_numbers(tmp_path):
    plain = trained(tmp_path / "a", PLAIN)
    other = trained(tmp_path / "b", {**PLAIN, "channels_last": True})
    weight = other.student.encoder[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    teacher = other.parts.teachers.members["main"].network.encoder[1][0].weight
    assert teacher.is_contiguous(memory_format=torch.channels_last)
    found, expected = other.student.state_dict(), plain.student.state_dict()
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-4, atol=1e-6)


def test_images_and_values_inside_are_channels_last(tmp_path):
    trainer = trained(tmp_path, {**PLAIN, "channels_last": True}, steps=1)
    seen = []
    trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.student.encoder[1].register_forward_hook(lambda _, __, out: seen.append(out))
    trainer.config = trainer.config.model_copy(update={"steps": 2})
    next(trainer.steps())
    assert seen and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_a_channels_last_run_resumes_bit_for_bit(tmp_path, monkeypatch):
    changes = {"runtime": {**PLAIN, "channels_last": True}, "methods": {"kd": {}}, "ema": 0.9}
    train_run(toy_config(tmp_path / "whole", **changes), teachers={"main": teacher_net()})
    parts = toy_config(tmp_path / "parts", **changes)
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


# -- shared batch statistics -----------------------------------------------------------------------


def test_shared_statistics_are_refused_on_a_cpu(tmp_path):
    config = toy_config(tmp_path, runtime={**PLAIN, "sync_bn": True})
    with pytest.raises(ConfigError, match=r"runtime\.sync_bn: .*on cpu.*sync_bn=false"):
        make_trainer(config)


def test_every_batch_norm_is_converted_and_keeps_its_state():
    student = build_network(ModelConfig(arch="toy"), 4)
    expected = {key: value.clone() for key, value in student.state_dict().items()}
    network = with_shared_statistics(student, Runtime(torch.device("cuda"), rank=0, world=2))
    assert network is student
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert network.state_dict().keys() == expected.keys()
    torch.testing.assert_close(dict(network.state_dict()), expected, rtol=0, atol=0)


def test_one_process_has_nothing_to_share():
    student = build_network(ModelConfig(arch="toy"), 4)
    with_shared_statistics(student, Runtime(torch.device("cuda")))
    assert isinstance(student.encoder[0][1], nn.BatchNorm2d)


def test_the_activation_in_a_norm_of_timm_stays():
    student = build_network(ModelConfig(arch="toy"), 4)
    from timm.layers import BatchNormAct2d

    student.encoder[0][1] = BatchNormAct2d(6, act_layer=nn.ReLU)
    images = torch.randint(256, (1, 3, 32, 48), dtype=torch.uint8)
    expected = student.eval()(images).logits
    with_shared_statistics(student, Runtime(torch.device("cuda"), rank=0, world=2))
    assert isinstance(student.encoder[0][1], nn.SyncBatchNorm)
    student.encoder[0][2] = nn.Identity()  # the toy's own activation would hide the loss
    torch.testing.assert_close(student(images).logits, expected)


def test_the_student_is_converted_before_methods_see_its_modules(tmp_path, monkeypatch):
    from segkd.engine import setup

    order = []
    monkeypatch.setattr(setup, "with_shared_statistics", lambda s, r: order.append("norms") or s)
    original = setup.make_methods
    monkeypatch.setattr(setup, "make_methods", lambda *a: order.append("methods") or original(*a))
    make_trainer(toy_config(tmp_path, runtime={**PLAIN, "sync_bn": True}))
    assert order == ["norms", "methods"]


def test_channels_last_reaches_all_modules_given():
    one, other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    channels_last(one, other)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in (one, other))
