import json
import math

import pytest
import torch
from toy_run import toy_config

from segkd import cli
from segkd.commands.profile import profile_table, pull_table
from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.engine.profile import MemoryTimer, Part, Profile, profile_run
from segkd.engine.stand_in import stand_in

CPU = torch.device("cpu")
METHODS = {"kd": {"start": 500, "decay": "linear"}, "cwd": {"warmup": 300}}
RECIPE = """
seeds: [0, 1]
out: runs/r
common:
  steps: 5
  data: {name: toy, workers: 0, batch_size: 4, crop: [32, 48]}
  runtime: {device: cpu}
  student: {arch: toy}
runs:
  big: {once: true, student: {options: {width: 9}}}
  small: {teachers: {main: {checkpoint: "run:big"}}, methods: {kd: {}}}
  again: {init_from: "run:small"}
"""


def distilled(out, **changes):
    teachers = {"main": {"arch": "toy", "options": {"width": 8}}}
    return toy_config(out, teachers=teachers, methods=METHODS, **changes)


def test_all_parts_are_measured_and_nothing_is_written(tmp_path):
    seen = []
    found = profile_run(
        distilled(tmp_path / "run"),
        name="mine",
        steps=3,
        progress=lambda *at: seen.append(at),
    )
    names = [part.name for part in found.parts]
    expected = "data teacher student task method/kd method/cwd backward update other"
    assert names == expected.split()
    assert all(part.seconds > 0 for part in found.parts[:-1])
    assert math.fsum(part.seconds for part in found.parts) == pytest.approx(found.seconds_per_step)
    assert math.fsum(part.share for part in found.parts) == pytest.approx(1)
    assert found.images_per_second == pytest.approx(4 / found.seconds_per_step)
    assert found.peak_memory > 2**20 and found.steps == 3
    assert seen == [(n, 7) for n in range(1, 8)]
    assert list(tmp_path.iterdir()) == []
    json.dumps(found.to_dict(), allow_nan=False)


def test_memory_of_a_part():
    timer = MemoryTimer(CPU)
    with timer.part("none"):
        pass
    with timer.part("large"):
        torch.ones(60 * 2**18).sum()  # 60 MiB that are gone afterwards
    if not timer.peaks:
        pytest.skip("peak memory cannot be reset here")
    assert timer.peaks["large"] > 55 * 2**20 > 5 * 2**20 > timer.peaks["none"]


def test_runs_of_a_recipe_that_are_not_trained_yet_have_stand_ins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    plan = expand(load_config("recipe.yaml").recipe)
    small = next(p for p in plan if p.name == "small")
    teacher = stand_in(small, plan).teachers["main"]
    assert teacher.checkpoint is None and teacher.options == {"width": 9}
    assert stand_in(next(p for p in plan if p.name == "again"), plan).init_from is None
    best = tmp_path / "runs/r/big/checkpoints/best.pt"
    best.parent.mkdir(parents=True)
    best.touch()
    assert stand_in(small, plan).teachers["main"].checkpoint == "runs/r/big"


def test_the_command_measures_each_run_once(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["profile", "recipe.yaml", *arguments])
        return stop.value.code or 0, *capfd.readouterr()

    code, out, err = call("--steps", "1", "--json")
    found = {item["name"]: [part["name"] for part in item["parts"]] for item in json.loads(out)}
    assert code == 0 and list(found) == ["big", "small", "again"] and "5/5" in err
    assert "method/kd" in found["small"] and "method/kd" not in found["big"]
    code, out, _ = call("--steps", "1", "--run", "small", "data.batch_size=2")
    assert code == 0 and "method/kd" in out and "1 steps of 2 images on cpu" in out
    code, _, err = call("--run", "smal")
    assert code == 2 and "Did you mean 'small'" in err
    assert not (tmp_path / "runs").exists()


def test_table():
    parts = (Part("data", 0.25, 0.25, None), Part("other", 0.75, 0.75, None))
    table = profile_table(Profile("x", "cpu", 8, 10, 1.0, 2**20, parts))
    assert [list(row) for row in table.rows] == [
        ["data", "250.0", "25.0", "–"],
        ["other", "750.0", "75.0", "–"],
        ["step", "1000.0", "100.0", "1.0"],
    ]
    assert "8.00 images/s" in table.notes[0] and "not here" in table.notes[1]


def test_pulls_that_are_out_of_range_are_told_with_what_to_type():
    pulls = {"kd": 0.9, "sp": 12.0, "sad": 0.01, "fitnets": 0.01, "byot": None}
    weights = dict.fromkeys(pulls, 1.0)
    found = Profile("x", "cpu", 8, 10, 1.0, 2**20, (), pulls, weights, ("fitnets",))
    table = pull_table(found)
    assert [row[2] for row in table.rows] == ["0.9", "12", "0.01", "0.01", "–"]
    much, little, about = table.notes
    assert "sp dominates the task loss" in much and "methods.sp.weight=0.025, or" in much
    assert "sad hardly has an effect" in little and "methods.sad.weight=30" in little
    assert "after 10 steps" in about
