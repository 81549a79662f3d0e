"""A recipe finds what rules out a later run before it trains the first one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_recipes import toy_recipe
from toy_run import ToyData, ToyNet

from segkd.config.load import load_config
from segkd.config.networks import ModelConfig
from segkd.config.recipe import expand
from segkd.data.reading import SampleError
from segkd.engine.recipe import run_recipe
from segkd.engine.stand_in import stand_in
from segkd.engine.trainer import Trainer
from segkd.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def untrained(monkeypatch):
    """A list of the trainers that trained; nothing is trained."""
    begun = []

    def refused(self):
        begun.append(self.config.out)
        raise AssertionError("a run was trained")

    monkeypatch.setattr(Trainer, "steps", refused)
    return begun


CACHED = {"checkpoint": "run:teacher", "cache": "images"}
OTHERS = {"every": 0, "others": {"far": {"name": "camvid", "root": "/nowhere"}}}
MISTAKES = {
    "a stored teacher has no features": (
        {"teachers": {"main": CACHED}, "methods": {"fitnets": {}}},
        ConfigError,
        "teachers.main.cache: methods.fitnets",
    ),
    "a tap that the student lacks": (
        {"methods": {"fitnets": {"tap": "stage9"}}},
        ConfigError,
        "stage9",
    ),
    "a pattern without parameters": ({"train": ["student.nothing*"]}, ConfigError, "nothing"),
    "a set that is not there": ({"eval": OTHERS}, DataError, "/nowhere"),
    "a file that is not there": (
        {"teachers": {"main": {"checkpoint": "gone.pt"}}},
        CheckpointError,
        "gone.pt",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_last_run_is_found_before_the_first_is_trained(tmp_path, untrained, name):
    changes, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=r"runs\.distilled: ") as error:
        run_recipe(toy_recipe(tmp_path, distilled=changes))
    assert words in str(error.value) and untrained == []
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_broken_image_of_a_later_run_is_told_with_its_file(tmp_path, untrained, monkeypatch):
    whole = ToyData.read

    def read(self, index):
        if self.config.images == 9:
            raise SampleError("broken.png", "is cut off", "Fetch it again")
        return whole(self, index)

    monkeypatch.setattr(ToyData, "read", read)
    recipe = toy_recipe(tmp_path, distilled={"data": {"images": 9}})
    with pytest.raises(DataError) as error:
        run_recipe(recipe)
    assert str(error.value) == "runs.distilled: broken.png: is cut off. Fetch it again"


def test_a_folder_that_holds_another_run_is_found_as_well(tmp_path, monkeypatch):
    run_recipe(toy_recipe(tmp_path, seeds=[0]))
    monkeypatch.setattr(Trainer, "_train_step", None)
    changed = toy_recipe(tmp_path, distilled={"optim": {"lr": 0.5}})
    missing = tmp_path / "toys/alone/seed1"
    with pytest.raises(ConfigError, match=r"runs\.distilled: .*another configuration"):
        run_recipe(changed)
    assert not missing.exists()


def test_what_was_trained_is_not_tried_again(tmp_path, capfd):
    run_recipe(toy_recipe(tmp_path, seeds=[0]))
    assert "Checking 2 further runs before the first" in capfd.readouterr().out
    run_recipe(toy_recipe(tmp_path, seeds=[0]))
    assert "Checking" not in capfd.readouterr().out
    (tmp_path / "toys/distilled/seed0/summary.json").unlink()
    run_recipe(toy_recipe(tmp_path, seeds=[0]))
    assert "Checking" not in capfd.readouterr().out, "a single run is built anyway"


def test_scores_are_the_same_with_and_without(tmp_path, monkeypatch):
    first = run_recipe(toy_recipe(tmp_path / "with", seeds=[0]))["rows"]
    monkeypatch.setattr("segkd.engine.recipe.rehearse", lambda *args, **keys: None)
    second = run_recipe(toy_recipe(tmp_path / "without", seeds=[0]))["rows"]
    assert [row["miou_mean"] for row in first] == [row["miou_mean"] for row in second]


ON_TWO = """
import json, pathlib, sys
import toy_run
from toy_recipes import toy_recipe
from segkd.data.reading import SampleError
from segkd.engine.recipe import run_recipe
from segkd.errors import SegKDError

toy_run.register()
changes = json.loads(sys.argv[2])
try:
    run_recipe(toy_recipe(pathlib.Path(sys.argv[1]), seeds=[0], distilled=changes))
except SegKDError as error:
    print(f"refused: {error}", flush=True)
"""


@pytest.mark.parametrize(
    ("changes", "told"),
    [("{}", ""), ('{"methods": {"fitnets": {"tap": "stage9"}}}', "refused: runs.distilled: ")],
)
def test_on_two_processes(tmp_path, changes, told):
    (tmp_path / "worker.py").write_text(ON_TWO)
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = subprocess.run(
        [*command, tmp_path / "worker.py", tmp_path / "out", changes],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("Checking 2 further runs") == 1, "the first process alone tells it"
    assert found.stdout.count("refused: runs.distilled: ") == (2 if told else 0)
    report = tmp_path / "out/toys/report/table.csv"
    assert report.is_file() != bool(told)
    assert (tmp_path / "out/toys").exists() != bool(told), "nothing is written"


def test_runs_that_need_a_trained_network_of_the_caller_are_left_out(tmp_path, untrained, capfd):
    recipe = toy_recipe(tmp_path, distilled={"methods": {"fitnets": {"tap": "stage9"}}})
    with pytest.raises(AssertionError, match="was trained"):
        run_recipe(recipe, student=ToyNet(ModelConfig(arch="toy"), 4))
    assert "Checking 1 further run before" in capfd.readouterr().out


def planned(folder, name, **runs):
    recipe = toy_recipe(folder, seeds=[0])
    plain = {
        "out": str(folder / "r"),
        "common": recipe.runs["alone"].config.model_dump(
            mode="json", include={"steps", "data", "student", "eval", "log", "runtime"}
        ),
        "runs": runs,
    }
    plan = expand(load_config(plain).recipe)
    return stand_in(next(one for one in plan if one.name == name), plan)


def test_a_stand_in_keeps_the_other_keys_of_a_teacher(tmp_path):
    runs = {
        "big": {"student": {"arch": "toy", "options": {"width": 9}}},
        "bigger": {"student": {"arch": "", "checkpoint": "run:big"}},
        "small": {
            "teachers": {"main": {**CACHED, "checkpoint": "run:bigger", "input_scale": 2.0}},
            "methods": {"kd": {}},
        },
    }
    teacher = planned(tmp_path, "small", **runs).teachers["main"]
    assert (teacher.arch, teacher.options, teacher.checkpoint) == ("toy", {"width": 9}, None)
    assert teacher.cache is not None and teacher.input_scale == 2.0


def test_a_peer_that_begins_from_an_earlier_run_has_a_stand_in(tmp_path):
    peer = {"arch": "toy", "checkpoint": "run:big", "options": {"width": 9}}
    runs = {
        "big": {"student": {"arch": "toy", "options": {"width": 9}}},
        "pair": {"methods": {"dml": {"peers": {"other": peer}}}},
    }
    peers = planned(tmp_path, "pair", **runs).methods["dml"].networks()
    assert "checkpoint" not in peers["peers", "other"]
    assert peers["peers", "other"]["options"] == {"width": 9}


CONSTANT = {"schedule": {"name": "constant", "warmup": 0}}


def test_a_run_from_which_others_have_learned_is_not_extended(tmp_path, monkeypatch):
    run_recipe(toy_recipe(tmp_path, seeds=[0], common=CONSTANT))
    monkeypatch.setattr(Trainer, "_train_step", None)
    longer = toy_recipe(tmp_path, seeds=[0], common=CONSTANT, trained={"steps": 8})
    with pytest.raises(ConfigError, match=r"runs\.teacher: .* to 8 steps, but .*distilled/seed0"):
        run_recipe(longer)


def test_a_lost_run_from_which_others_have_learned_is_told_before_it_is_trained_anew(
    tmp_path, capfd
):
    run_recipe(toy_recipe(tmp_path, seeds=[0]))
    shutil.rmtree(tmp_path / "toys/teacher")
    capfd.readouterr()
    with pytest.raises(ConfigError, match="is not what it was"):
        run_recipe(toy_recipe(tmp_path, seeds=[0], trained={"seed": 5}))
    out = capfd.readouterr().out
    told = out.index("WARNING: ")
    assert "distilled/seed0 learned from what was there before" in out[told:]
    assert told < out.index("teacher: 4 steps")


def test_a_run_that_nobody_needs_is_extended(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0], common=CONSTANT)
    run_recipe(recipe)
    alone = recipe.runs["alone"]
    longer = alone.model_copy(update={"config": alone.config.model_copy(update={"steps": 6})})
    rows = run_recipe(recipe.model_copy(update={"runs": {**recipe.runs, "alone": longer}}))["rows"]
    assert {row["name"]: row["steps"] for row in rows} == {"teacher": 4, "alone": 6, "distilled": 4}


def test_a_spent_budget_is_found_as_well(tmp_path, untrained, monkeypatch):
    (tmp_path / "unasked_box.py").write_text("def ask(images):\n    raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    box = {"function": "unasked_box:ask", "cache": str(tmp_path / "kept"), "max_queries": 0}
    changes = {"teachers": {"main": {"black_box": box}}, "methods": {"kd": {}}}
    with pytest.raises(
        ConfigError, match=r"runs\.distilled: teachers.main.black_box.max_queries=0"
    ):
        run_recipe(toy_recipe(tmp_path, distilled=changes))
    assert untrained == []
