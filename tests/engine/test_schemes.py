"""Several teachers, chains and teacher assistants in whole runs on toys."""

import csv

import pytest
import torch
from report_runs import silent
from resuming import same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd.config.load import load_config
from segkd.config.schema import TeacherConfig
from segkd.engine.recipe import run_recipe
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.errors import Interrupted
from segkd.model_card import CardFacts, _lessons
from segkd.models.teacher import Teachers, build_teachers
from segkd.report.make import make_report
from segkd.runtime import Runtime
from segkd.structures import Batch

DRAWN = {
    "teachers": {
        "one": {"ensemble": ["main", "other"], "combine": "random"},
        "all": {"ensemble": ["main", "other"], "combine": "by_loss"},
    },
    "methods": {
        "kd": {"teacher": "one"},
        "weighted": {"method": "kd", "teacher": "all"},
        "fitnets": {"teacher": "main", "weight": 0.1},
        "second": {"method": "fitnets", "teacher": "other", "weight": 0.1},
    },
}
COMMON = {
    "steps": 4,
    "data": {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48]},
    "student": {"arch": "toy"},
    "eval": {"every": 0},
    "log": {"every": 2, "tensorboard": False},
    "runtime": {"device": "cpu", "threads": 1},
    "methods": {"kd": {}},
}


def two():
    return {"main": teacher_net(), "other": teacher_net(5, seed=2)}


def test_a_run_with_drawn_teachers_resumes_bit_for_bit(tmp_path, monkeypatch):
    whole = toy_config(tmp_path / "whole", steps=8, save_every=4, **DRAWN)
    train_run(whole, teachers=two())
    parts = toy_config(tmp_path / "parts", steps=8, save_every=4, **DRAWN)
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_run(parts, teachers=two())
    monkeypatch.undo()
    train_run(parts, teachers=two())
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_each_teacher_of_features_has_its_own_adapter(tmp_path):
    parts = assemble(toy_config(tmp_path, **DRAWN), Runtime.single(), teachers=two())
    sizes = {
        name: sorted(p.shape for p in parts.objective.methods[name].parameters())
        for name in ("fitnets", "second")
    }
    assert sizes["fitnets"] and sizes["second"] and sizes["fitnets"] != sizes["second"]
    taught = parts.teachers(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))
    assert set(taught) == {"main", "other", "one", "all"}


def test_a_step_draws_once_whatever_its_micro_steps(tmp_path, monkeypatch):
    """The same draw in all micro-steps of a step, another one in other steps."""
    seen, forward = [], Teachers.forward

    def listening(self, images, batch=None, draw=None, names=None):
        assert batch.labels is not None
        seen.append(torch.rand(1, generator=draw("one")).item())
        return forward(self, images, batch, draw, names)

    monkeypatch.setattr(Teachers, "forward", listening)
    config = toy_config(tmp_path, steps=3, optim={"lr": 0.05, "accumulate": 2}, **DRAWN)
    parts = assemble(config, Runtime.single(), teachers=two())
    trainer = Trainer(config, parts, Runtime.single())
    seen.clear()
    for _ in trainer.steps():
        pass
    assert len(seen) == 6 and seen[::2] == seen[1::2] and len(set(seen)) == 3


def test_padding_is_void_for_teachers_that_are_weighted_by_their_loss():
    config = TeacherConfig(ensemble=["main", "other"], combine="by_loss")
    teachers = build_teachers({"all": config}, {"all": ["logits"]}, 4, networks=two())
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    labels = torch.zeros(1, 32, 48, dtype=torch.int64)
    inside = torch.ones(1, 32, 48, dtype=torch.bool)
    inside[..., 24:] = False
    index = torch.zeros(1, dtype=torch.int64)
    found = [
        teachers(images, Batch(images, labels, mask, index))["all"].logits
        for mask in (torch.ones_like(inside), inside)
    ]
    mean = teachers(images)["all"].logits
    torch.testing.assert_close(found[0][..., :3], found[1][..., :3])
    torch.testing.assert_close(found[1][..., 3:], mean[..., 3:])
    assert (found[0][..., 3:] - mean[..., 3:]).abs().max() > 1e-3


def test_a_chain_hands_each_student_on(tmp_path):
    recipe = load_config(_chain(tmp_path)).recipe
    runs = run_recipe(recipe)["runs"]
    folder = tmp_path / "toys"
    for name, previous in (("again", "big"), ("again_2", "again"), ("small", "again_2")):
        own = runs[str(folder / name / "seed0")]["teachers"]["previous"]
        assert own["miou"] == pytest.approx(runs[str(folder / previous / "seed0")]["best_miou"])


def _chain(tmp_path):
    return {
        "title": "Toys",
        "out": str(tmp_path / "toys"),
        "common": COMMON,
        "chain": ["big", "again", "again", "small"],
        "runs": {
            "big": {"methods": None, "student": {"options": {"width": 9}}},
            "again": {"student": {"options": {"width": 8}}},
            "small": {},
        },
    }


def test_assistants_end_in_a_plot_of_scores_over_sizes(tmp_path):
    plain = _chain(tmp_path)
    plain["chain"] = [["big", "middle", "from_middle"], ["big", "from_big"]]
    plain["baseline"], plain["seeds"] = "alone", [0, 1]
    plain["runs"] = {
        "big": {"once": True, **plain["runs"]["big"]},
        "middle": {"student": {"options": {"width": 7}}},
        "from_middle": {},
        "from_big": {},
        "alone": {"methods": None},
    }
    recipe = load_config(plain).recipe
    runs = run_recipe(recipe)["runs"]
    report = tmp_path / "toys" / "report"
    assert (report / "assistants.png").stat().st_size > 0
    with open(report / "assistants.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"from_middle", "from_big"}, "of the baseline's network only"
    for name, teacher in (("from_middle", "middle/seed0"), ("from_big", "big")):
        size = runs[str(tmp_path / "toys" / teacher)]["student"]["parameters"]
        assert int(rows[name]["parameters"]) == size
        mine = [runs[str(tmp_path / "toys" / name / f"seed{seed}")]["miou"] for seed in (0, 1)]
        assert [float(value) for value in rows[name]["scores"].split()] == pytest.approx(mine)
    page = make_report([tmp_path / "toys"], bar=silent, latency=False).html.read_text()
    chart = page[page.index('id="assistants"') :].split("</svg>")[0]
    assert "from_middle" in chart and "from_big" in chart and "alone, labels only" in chart


def test_students_of_one_teacher_have_no_plot_of_assistants(tmp_path):
    plain = _chain(tmp_path)
    plain["chain"] = ["big", "small"]
    plain["runs"].pop("again")
    run_recipe(load_config(plain).recipe)
    report = tmp_path / "toys" / "report"
    assert (report / "table.txt").exists() and not (report / "assistants.png").exists()


def test_weights_by_the_loss_without_any_label_are_a_warning(tmp_path):
    data = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48], "labels": "none"}
    for task, count in (({"weight": 0.0}, 1), ({"weight": 1.0}, 0)):
        changes = {"task": task} | ({"data": data} if count else {})
        config = toy_config(tmp_path, **changes, **DRAWN)
        warnings = assemble(config, Runtime.single(), teachers=two()).warnings
        assert sum("it is the mean of its members" in text for text in warnings) == count


def test_the_model_card_says_how_teachers_were_combined(tmp_path):
    config = toy_config(tmp_path, **DRAWN).model_dump(mode="json")
    text = _lessons(CardFacts({}, config, {}, "toy", 8))
    assert "Teacher `one`: in each step one of main, other." in text
    assert "Teacher `all`: the mean, weighted at each pixel by their loss, of main, other." in text
