"""A first stage without labels, and a second that starts from its encoder (configs/foundation)."""

import re
from pathlib import Path

import pytest
import torch
from resuming import make_trainer
from toy_run import teacher_net, toy_config

from segkd import checkpoint
from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.config_files import known_configs
from segkd.engine.run import train_run
from segkd.errors import ConfigError

RECIPE = known_configs()["foundation/streets"]
NETS = {"main": teacher_net()}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The first stage on toys: no label, no task, and the encoder alone is trained."""
    folder = tmp_path_factory.mktemp("foundation") / "encoder"
    config = toy_config(
        folder,
        steps=3,
        data={"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48], "labels": "none"},
        task={"weight": 0.0},
        train=["student.encoder.*", "methods.gkd.*"],
        methods={"selfsim": {}, "gkd": {"adapter_warmup": 0}},
        teachers={"main": {"arch": "toy"}},
    )
    train_run(config, teachers=NETS)
    return folder


def parts(state):
    """What belongs to the encoder, and the rest."""
    encoder = {k: v for k, v in state.items() if k.startswith("encoder.")}
    return encoder, {k: v for k, v in state.items() if k not in encoder}


def test_the_first_stage_trains_the_encoder_alone_without_a_label(first):
    learned, others = parts(checkpoint.load(first / "checkpoints/last.pt")["student"])
    fresh, untouched = parts(make_trainer(toy_config(first.parent / "fresh")).student.state_dict())
    assert not torch.equal(learned["encoder.0.0.weight"], fresh["encoder.0.0.weight"])
    torch.testing.assert_close(dict(others), dict(untouched), rtol=0, atol=0)
    header = (first / "metrics.csv").read_text().splitlines()[0]
    assert "selfsim" in header and "gkd" in header and "cross_entropy" not in header


@pytest.mark.parametrize("frozen", [True, False])
def test_the_second_stage_starts_from_its_encoder(first, tmp_path, frozen):
    keys = {"train": ["student.classifier.*"]} if frozen else {}
    slow = {"lr": 0.05, "lr_factors": {"encoder": 0.1}}
    trainer = make_trainer(toy_config(tmp_path, init_from=str(first), optim=slow, **keys))
    learned = parts(checkpoint.load(first / "checkpoints/last.pt")["student"])[0]
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    torch.testing.assert_close(parts(before)[0], learned, rtol=0, atol=0)
    next(trainer.steps())
    after = trainer.student.state_dict()
    moved = {k for k in learned if not torch.equal(after[k], before[k])}
    assert bool(moved) == (not frozen)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])
    rates = {round(group["lr"], 9) for group in trainer.optimizer.param_groups}
    assert frozen or max(rates) == pytest.approx(10 * min(rates))


def test_a_second_stage_without_a_first_is_one_message(tmp_path):
    with pytest.raises(ConfigError) as caught:
        train_run(toy_config(tmp_path / "second", init_from=str(tmp_path / "encoder")))
    told = str(caught.value)
    assert told.startswith("init_from: there is no ") and "Train it first" in told
    for weights in ("pretrained:streets_fpn_mobilenetv3_large", __file__):  # or any other file
        with pytest.raises(ConfigError) as caught:
            train_run(toy_config(tmp_path / "third", init_from=weights))
        assert str(caught.value).endswith(f"begin with these weights: student.checkpoint={weights}")
    assert "\n" not in told


def test_the_shipped_recipe_is_such_a_pair_of_stages():
    plan = {one.name: one.config for one in expand(load_config(RECIPE).recipe)}
    encoder = plan["encoder"]
    assert encoder.task.weight == 0 and encoder.data.labels == "none"
    assert set(encoder.methods) == {"selfsim", "gkd"} and encoder.teachers
    for kind in ("slow", "frozen"):
        config = plan[kind]
        assert config.init_from == str(encoder.out) and not config.teachers
        assert kind == "slow" or not any("encoder" in part for part in config.train)
        assert kind == "frozen" or config.optim.lr_factors.encoder < 1
    assert plan["alone"].init_from is None and not plan["alone"].methods


def test_what_its_comment_says_makes_other_teachers_and_images():
    told = re.findall(r"(runs\.\S+)='(.+?)'", RECIPE.read_text("utf-8"))
    loaded = load_config(RECIPE, [f"{key}={value}" for key, value in told])
    encoder = {one.name: one.config for one in expand(loaded.recipe)}["encoder"]
    teacher = encoder.teachers["teacher"]
    assert teacher.timm and not teacher.checkpoint
    assert Path(encoder.data.unlabeled.root).name == "FOLDER"
