"""Weights that follow from gradients at the taps: the right values, on every way to train."""

import csv
import json
import math

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd import registry
from segkd.engine.auto_weight import AutoWeights, PullMeter, advice
from segkd.engine.objective import scale_gradient
from segkd.engine.run import train_run
from segkd.errors import ConfigError, Interrupted
from segkd.methods.base import Method, Needs
from segkd.methods.kd import KD
from segkd.methods.tf_kd import TfKD
from segkd.runtime import Runtime
from segkd.structures import Outputs, Term

AUTO = {"kd": {"weight": {"auto": 0.3, "every": 2}}, "fitnets": {"weight": {"auto": 0.1}}}
PLAIN = {"arch": "toy", "options": {"norm": False}}  # no dropout: a second pass is the same


def trained(tmp_path, steps=8, **changes):
    config = toy_config(tmp_path, steps=max(steps, 1), student=PLAIN, **changes)
    trainer = make_trainer(config, teachers={"main": teacher_net(norm=False)})
    for _ in trainer.steps() if steps else ():
        pass
    return trainer


# -- the parts -------------------------------------------------------------------------------------


class Tapped(KD):
    needs = Needs(student=("stage4",), teacher=("logits",))


def test_a_pull_is_the_ratio_of_gradient_norms_at_the_taps():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    tap = x * 3
    student = Outputs((tap * 2).sum().view(1, 1, 1, 1), {"stage4": tap})
    meter = PullMeter({"m": Tapped()}, Runtime.single())
    for factor in (1.0, 2.0):  # two micro-steps
        meter.add(student, {"m": student}, (factor * tap).sum(), {"m": (5 * tap).sum()})
    # Gradients: task (1, 1), then (2, 2); method (5, 5) twice.
    assert meter.pulls() == {"m": pytest.approx(math.sqrt((50 + 50) / (2 + 8)))}
    assert x.grad is None


class TappedTwice(KD):
    needs = Needs(student=("stage4", "stage5"), teacher=("logits",))


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_paths_through_deeper_taps_count_during_the_adapter_warmup_as_well(share):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    shallow = x * 3
    kept = shallow.clone()  # as a Recorder keeps what is overwritten later
    deep = shallow * 2
    student = Outputs(deep.view(1, 2, 1, 1), {"stage4": kept, "stage5": deep})
    view = student if share is None else student.map(lambda value: scale_gradient(value, share))
    meter = PullMeter({"m": TappedTwice()}, Runtime.single())
    loss = (7 * view.tap("stage4")).sum() + (5 * view.tap("stage5")).sum()
    meter.add(student, {"m": view}, deep.sum(), {"m": loss})
    # Of each number: the task has 1 at the deep tap and 2 at the shallow one, the method 5 and
    # 7 + 2 · 5.
    assert meter.pulls()["m"] == pytest.approx(math.sqrt((17**2 + 5**2) / (2**2 + 1)))


def test_a_value_that_is_overwritten_later_is_measured_where_it_was_made():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    value = x * 3
    tap = value.clone()  # as a Recorder keeps it
    after = torch.relu_(value)
    student = Outputs(after.view(1, 2, 1, 1), {"stage4": tap})
    meter = PullMeter({"m": Tapped()}, Runtime.single())
    meter.add(student, {"m": student}, (4 * after).sum(), {"m": (2 * tap).sum()})
    assert meter.pulls()["m"] == pytest.approx(math.sqrt(8 / 16))  # relu stops one of the two


def test_nothing_to_compare_has_no_pull():
    x = torch.ones(2, requires_grad=True)
    student = Outputs(x.view(1, 2, 1, 1), {"stage4": x * 1})
    meter = PullMeter({"m": Tapped()}, Runtime.single())
    meter.add(student, {"m": student}, (0 * student.features["stage4"]).sum(), {"m": x.sum()})
    assert meter.pulls() == {"m": None}


def test_the_logarithm_is_smoothed_and_kept_in_a_buffer():
    auto = AutoWeights({"kd": KD(KD.Config(weight={"auto": 0.3}))}, 1.0)
    assert auto.factor("kd") is None and not auto.values() and auto.columns() == ["weight/kd"]
    auto.update({"kd": 0.6})
    assert auto.factor("kd") == pytest.approx(0.5)
    auto.update({"kd": None})
    auto.update({"kd": 0.03})
    assert auto.factor("kd") == pytest.approx(math.exp(0.8 * math.log(0.5) + 0.2 * math.log(10)))
    other = AutoWeights({"kd": KD(KD.Config(weight={"auto": 0.3}))}, 1.0)
    other.load_state_dict(auto.state_dict())
    other.refresh()
    assert other.factor("kd") == auto.factor("kd")


def test_it_is_measured_every_so_often_until_it_is_frozen():
    auto = AutoWeights({"kd": KD(KD.Config(weight={"auto": 1, "every": 3, "freeze": 7}))}, 1.0)
    assert auto.due(1, ["kd"]) == auto.due(9, ["kd"]) == ["kd"]  # never measured: it has no weight
    auto.update({"kd": 1.0})
    assert [step for step in range(12) if auto.due(step, ["kd"])] == [0, 3, 6]
    assert auto.due(3, []) == []


def test_what_is_out_of_range_gets_an_advice():
    assert advice("kd", 0.02, 1.0) is None and advice("kd", 3.0, 1.0) is None
    assert advice("cwd", 10.0, 3.0).startswith("methods.cwd.weight=0.09, or ")
    assert "=30" in advice("kd", 0.01, 1.0) and advice("kd", 0.01, 1.0, fresh=True) is None


# -- in a run --------------------------------------------------------------------------------------


def test_the_weighted_pull_becomes_the_asked_one(tmp_path):
    methods = {"kd": {"weight": {"auto": 0.3, "every": 1, "smoothing": 0.0}}, "cwd": {}}
    trainer = trained(tmp_path, methods=methods)
    # Measured in the last step, before its update moved the student a little.
    weight = trainer.objective.auto.factor("kd")
    assert weight * trainer.pulls(4)["kd"] == pytest.approx(0.3, rel=0.3)
    assert trainer.objective.auto.factor("cwd") == 1.0


def test_before_its_first_measurement_an_entry_moves_its_own_layers_only(tmp_path):
    keys = {"methods": {"fitnets": {"weight": {"auto": 0.3}, "adapter_warmup": 2}}}
    with_method = trained(tmp_path / "a", steps=2, **keys)
    alone = trained(tmp_path / "b", steps=2)
    same(with_method.student.state_dict(), alone.student.state_dict())
    fresh = make_trainer(
        toy_config(tmp_path / "c", student=PLAIN, **keys),
        teachers={"main": teacher_net(norm=False)},
    )
    adapter = "methods.fitnets.regressor.weight"
    moved = with_method.objective.state_dict()[adapter] - fresh.objective.state_dict()[adapter]
    assert moved.abs().max() > 0


def test_weights_are_columns_of_the_metrics_and_survive_a_stop(tmp_path, monkeypatch):
    keys = {"methods": AUTO, "steps": 8, "save_every": 4}
    teachers = {"main": teacher_net()}
    train_run(toy_config(tmp_path / "whole", **keys), teachers=teachers)
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_run(toy_config(tmp_path / "parts", **keys), teachers=teachers)
    monkeypatch.undo()
    train_run(toy_config(tmp_path / "parts", **keys), teachers=teachers)
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))
    with open(tmp_path / "whole" / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-2]
    assert float(last["weight/kd"]) > 0 and float(last["weight/fitnets"]) > 0


class Mute(Method):
    """Its loss depends on the student, its gradient is always zero."""

    name = "toy_mute"
    kind = "feature"
    needs = Needs(student=("stage4",))

    def loss(self, student, teacher, batch, context):
        value = 0 * student.tap("stage4").mean() + 1
        return {"mute": Term(value, torch.tensor(1.0, dtype=torch.float64))}


def warnings(folder):
    """The warnings of a run about weights, and the steps of the lines before them."""
    lines = (folder / "log.txt").read_text().splitlines()
    return [line for line in lines if "WARNING" in line and "weight=" in line]


def test_an_entry_that_never_gets_a_weight_is_told_once(tmp_path):
    registry.methods.add(Mute)
    methods = {"kd": {"weight": {"auto": 0.3}}, "still": {"method": "toy_mute", "start": 2}}
    methods["still"]["weight"] = {"auto": 0.2, "every": 4}
    teachers = {"main": teacher_net()}
    for steps, count in ((11, 9), (30, 10)):  # at the end of a short run, else after 10
        config = toy_config(tmp_path / str(steps), steps=steps, methods=methods)
        train_run(config, teachers=teachers)
        (told,) = warnings(tmp_path / str(steps))
        assert "methods.still.weight={auto: 0.2} has no weight yet" in told
        assert f"in {count} measurements its gradient" in told
    text = (tmp_path / "30/log.txt").read_text()
    places = [text.index(words) for words in ("step 10/", "has no weight yet", "step 14/")]
    assert places == sorted(places)
    methods["still"]["start"] = 30
    train_run(toy_config(tmp_path / "late", steps=30, methods=methods), teachers=teachers)
    assert "it was never measured" in warnings(tmp_path / "late")[0]


def test_a_weight_that_comes_late_is_no_reason_to_warn():
    auto = AutoWeights({"kd": KD(KD.Config(weight={"auto": 0.3}))}, 1.0)
    for pull in (*[None] * 9, 0.5, *[None] * 50):
        auto.update({"kd": pull})
        assert auto.doubts() == []
    assert auto.doubts(last=True) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_types_find_about_the_same_weight(tmp_path, precision):
    runtime = {"device": "cpu", "threads": 1}
    found = [
        trained(tmp_path / kind, steps=3, methods=AUTO, runtime=runtime | {"precision": kind})
        for kind in ("fp32", precision)
    ]
    full, half = (trainer.objective.auto.factor("kd") for trainer in found)
    assert half == pytest.approx(full, rel=0.1)


def test_micro_steps_find_the_weight_of_whole_steps(tmp_path):
    data = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48], "void": False}
    data["scale"] = [1.0, 2.0]  # no padding: micro-steps of equal counts
    found = [
        trained(
            tmp_path / str(parts),
            steps=3,
            methods=AUTO,
            data=data,
            optim={"lr": 0.05, "accumulate": parts},
        ).objective.auto.factor("kd")
        for parts in (1, 2)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.kd\.weight.*task\.weight is 0"):
        trained(tmp_path, methods={"kd": {"weight": {"auto": 0.3}}}, task={"weight": 0.0})
    untapped = type("Untapped", (TfKD,), {"taps_with_gradient": ()})
    with pytest.raises(ConfigError, match="has none"):
        AutoWeights({"m": untapped(TfKD.Config(weight={"auto": 1}))}, 1.0)
    with pytest.raises(ValueError, match="greater than 0"):
        KD.Config(weight={"auto": 0})


def test_the_state_is_plain_data(tmp_path):
    trainer = trained(tmp_path, methods=AUTO)
    assert "auto.log_kd" in trainer.objective.state_dict()
    json.dumps(trainer.objective.auto.values())
