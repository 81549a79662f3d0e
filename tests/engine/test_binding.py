"""Default taps are what both networks have; the log says which where they differ from plain."""

import pytest
import torch
from torch import nn
from toy_run import ToyData, toy_config

from segkd.api import train
from segkd.config.schema import ModelConfig
from segkd.engine.setup import assemble
from segkd.errors import ConfigError
from segkd.models.build import build_network
from segkd.models.module import wrap
from segkd.runtime import Runtime

K = len(ToyData.classes)
FPN = {"arch": "fpn", "encoder": "resnet18"}
ENET, PSPNET = {"arch": "enet"}, {"arch": "pspnet", "encoder": "resnet18"}
MIT = {"arch": "segformer", "encoder": "mit_b0"}
DEFAULTS = {
    "ab": ["stage3:pre", "stage4:pre", "stage5:pre"],
    "at": ["stage3", "stage4", "stage5"],
    "byot": ["stage2", "stage3", "stage4", "head", "logits"],
    "fitnets": ["head"],
    "fsp": ["stage3", "stage4", "stage5"],
    "irg": ["stage4", "stage5", "logits"],
    "msd": ["stage2", "stage3", "stage4", "head", "logits"],
    "nst": ["stage4", "stage5"],
    "ofd": ["stage5:pre"],
    "pkd": ["stage5", "head"],
    "review_kd": ["stage2", "stage3", "stage4", "stage5"],
    "sad": ["stage3", "stage4", "stage5"],
}


def parts_of(folder, student, teacher, methods, **changes):
    config = toy_config(folder, teachers={"main": {"arch": "toy"}}, methods=methods, **changes)
    student, teacher = (
        net if isinstance(net, nn.Module) else build_network(ModelConfig(**net), K)
        for net in (student, teacher)
    )
    data = ToyData(config.data, "train")
    sets = {"train_set": data, "val_set": data}
    return assemble(config, Runtime.single(), student=student, teachers={"main": teacher}, **sets)


def needs_of(parts, name):
    needs = parts.objective.methods[name].needs
    return list(needs.student), list(needs.teacher)


def test_networks_with_five_stages_have_the_plain_defaults(tmp_path):
    parts = parts_of(tmp_path, FPN, FPN, {name: {} for name in DEFAULTS})
    for name, taps in DEFAULTS.items():
        mine, theirs = needs_of(parts, name)
        assert mine == taps and (theirs == taps or name in ("byot", "msd", "sad"))
    assert parts.chosen_taps == {}


def test_taps_are_paired_from_the_deepest_stage(tmp_path):
    parts = parts_of(tmp_path, FPN, ENET, {name: {} for name in DEFAULTS})
    assert needs_of(parts, "at") == (["stage3", "stage4", "stage5"], ["stage2", "stage3", "stage4"])
    assert needs_of(parts, "irg") == (
        ["stage4", "stage5", "logits"],
        ["stage3", "stage4", "logits"],
    )
    assert needs_of(parts, "ofd") == (["stage5:pre"], ["stage4:pre"])
    assert needs_of(parts, "pkd") == (["stage5", "head"], ["stage4", "head"])
    assert needs_of(parts, "review_kd")[1] == ["stage1", "stage2", "stage3", "stage4"]
    assert set(parts.chosen_taps) == {"ab", "at", "fsp", "irg", "nst", "ofd", "pkd", "review_kd"}
    assert parts.chosen_taps["nst"] == "student: stage4, stage5; teacher: stage3, stage4"


def test_as_many_as_both_have(tmp_path):
    parts = parts_of(tmp_path, PSPNET, FPN, {name: {} for name in DEFAULTS})
    assert needs_of(parts, "review_kd") == (
        ["stage1", "stage2", "stage3"],
        ["stage3", "stage4", "stage5"],
    )
    assert needs_of(parts, "byot")[0] == ["stage1", "stage2", "head", "logits"]
    byot = parts.objective.methods["byot"]
    assert set(byot.default_weights) == {
        f"{kind}_{tap}" for kind in ("kd", "feature") for tap in ("stage1", "stage2")
    }
    assert parts.objective.methods["sad"].pairs == [("stage1", "stage2"), ("stage2", "stage3")]


def test_a_stage_that_no_activation_makes_is_taken_as_it_is(tmp_path):
    parts = parts_of(tmp_path, MIT, FPN, {"ofd": {}})
    assert needs_of(parts, "ofd") == (["stage5"], ["stage5:pre"])
    assert parts.chosen_taps["ofd"] == (
        "student: stage5; teacher: stage5:pre (of the student without `:pre`: no activation "
        "produces it)"
    )


def test_named_taps_stay_whatever_the_networks_have(tmp_path):
    methods = {"at": {"taps": ["stage2", "stage3"]}, "irg": {"layers": ["stage1", "stage4"]}}
    parts = parts_of(tmp_path, FPN, ENET, methods)
    assert needs_of(parts, "at") == (["stage2", "stage3"], ["stage2", "stage3"])
    assert needs_of(parts, "irg")[0] == ["stage1", "stage4", "logits"]
    assert parts.chosen_taps == {}
    with pytest.raises(ConfigError, match=r"methods\.at: there is no tap 'stage5'"):
        parts_of(tmp_path, FPN, ENET, {"at": {"taps": ["stage5"]}})


def test_taps_named_for_the_teacher_alone_meet_the_students_last_ones(tmp_path):
    methods = {"nst": {"teacher_taps": ["stage1", "head"]}}
    assert needs_of(parts_of(tmp_path, ENET, FPN, methods), "nst") == (
        ["stage3", "stage4"],
        ["stage1", "head"],
    )
    with pytest.raises(ConfigError, match="got 2 taps but 1 teacher_taps"):
        parts_of(tmp_path, ENET, FPN, {"nst": {"teacher_taps": ["stage1"]}})
    methods = {"irg": {"teacher_layers": ["stage1", "head"]}}
    assert needs_of(parts_of(tmp_path, ENET, FPN, methods), "irg") == (
        ["stage3", "stage4", "logits"],
        ["stage1", "head", "logits"],
    )


def one_stage():
    return wrap(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, K, 1)), K)


@pytest.mark.parametrize("name", ["byot", "fsp", "irg", "sad"])
def test_too_few_stages_are_refused_with_what_there_is(tmp_path, name):
    text = rf"methods\.{name}: needs (1|2) of the default taps .*the student has stage1.*module:"
    with pytest.raises(ConfigError, match=text):
        parts_of(tmp_path, one_stage(), FPN, {name: {}})
    if name in ("fsp", "irg"):
        with pytest.raises(ConfigError, match=r"the student has .* and the teacher stage1"):
            parts_of(tmp_path, FPN, one_stage(), {name: {}})


def test_one_stage_is_enough_where_one_pair_is(tmp_path):
    parts = parts_of(tmp_path, one_stage(), FPN, {"at": {}, "ofd": {}, "pkd": {}, "review_kd": {}})
    assert needs_of(parts, "at") == (["stage1"], ["stage5"])
    assert needs_of(parts, "ofd") == (["stage1:pre"], ["stage5:pre"])


def test_an_ensemble_is_refused_as_before(tmp_path):
    toy = {"arch": "toy"}
    config = toy_config(
        tmp_path,
        teachers={"one": toy, "two": toy, "both": {"ensemble": ["one", "two"]}},
        methods={"at": {"teacher": "both"}},
    )
    with pytest.raises(ConfigError, match=r"methods\.at: needs the teacher's stage3.* an ensemble"):
        assemble(config, Runtime.single())


def test_a_run_on_own_modules_says_what_was_chosen(tmp_path):
    """From the caller's modules alone; terms carry the student's names, and `weights` take them."""
    torch.manual_seed(0)
    config = toy_config(
        tmp_path / "run",
        teachers={"main": {"arch": "toy"}},
        methods={"at": {"weights": {"stage1": 2.0}}, "kd": {}},
    )
    student = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, K, 1))
    data = ToyData(config.data, "train")
    train(config, student=student, train_set=data, val_set=data)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "methods.at: default taps of these networks: student: stage1; teacher: stage5" in log
    assert "methods.kd" not in log
    assert "at/stage1" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
