"""What a run folder holds: whose it is, what is damaged, what a second start does."""

import csv
import json
import os
import re
import shutil

import pytest
import torch
from resuming import same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd import checkpoint
from segkd.engine import run, run_folder
from segkd.engine.run import train_run
from segkd.engine.signals import Stopped
from segkd.errors import ConfigError, DataError, Interrupted, SegKDError
from segkd.evaluation import evaluator
from segkd.texts import finite

CONSTANT = {"name": "constant", "warmup": 2}


def table(folder):
    """(step, whether it is an evaluation's) of each row of metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return [(int(row["step"]), bool(row["val/miou"])) for row in csv.DictReader(file)]


def interrupted(folder, monkeypatch, step=4, **changes):
    """A run that was stopped after a step."""
    stop_after(monkeypatch, step)
    with pytest.raises(Interrupted):
        train_run(toy_config(folder, **changes))
    monkeypatch.undo()


# -- whose run it is -------------------------------------------------------------------------------


def test_a_memory_format_that_follows_from_the_device_is_no_other_configuration():
    def difference(old, new):
        configs = (toy_config("x", runtime=keys) for keys in (old, new))
        return run_folder._difference(*configs)

    cpu, gpu = {"device": "cpu"}, {"device": "cuda"}
    assert difference(cpu, gpu) == difference(gpu, cpu) == []
    assert difference(cpu | {"channels_last": False}, gpu | {"channels_last": False}) == []
    changed = ["runtime.channels_last: False -> True"]
    assert difference(cpu, cpu | {"channels_last": True}) == changed
    assert difference(cpu, gpu | {"channels_last": True}) == changed


@pytest.mark.parametrize("lost", ["config.yaml", "metrics.csv"])
def test_a_changed_config_is_refused_whatever_file_is_missing(tmp_path, monkeypatch, lost):
    interrupted(tmp_path / "run", monkeypatch)
    (tmp_path / "run" / lost).unlink()
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.05 -> 0\.5"):
        train_run(toy_config(tmp_path / "run", optim={"lr": 0.5}))
    assert train_run(toy_config(tmp_path / "run"))["steps"] == 6


@pytest.mark.parametrize("lost", [["config.yaml"], ["config.yaml", "checkpoints/last.pt"]])
def test_a_finished_run_is_known_by_a_checkpoint_where_its_config_is_lost(tmp_path, lost):
    train_run(toy_config(tmp_path / "run"))
    for name in lost:
        (tmp_path / "run" / name).unlink()
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.05 -> 0\.5"):
        train_run(toy_config(tmp_path / "run", optim={"lr": 0.5}))
    assert train_run(toy_config(tmp_path / "run"))["steps"] == 6


def other_runs_last(folder):
    train_run(toy_config(folder.parent / "other", seed=7))
    shutil.copy(folder.parent / "other/checkpoints/last.pt", folder / "checkpoints/last.pt")


def best_for_last(folder):
    shutil.copy(folder / "checkpoints/best.pt", folder / "checkpoints/last.pt")


def other_network(folder):
    path = folder / "checkpoints/last.pt"
    state = checkpoint.load(path)
    state["student"]["classifier.weight"] = torch.zeros(9, 18, 1, 1)
    checkpoint.save(path, state)


def other_values(folder):
    path = folder / "checkpoints/last.pt"
    checkpoint.save(path, checkpoint.load(path) | {"optimizer": {"state": 3}})


def without(key):
    def prepare(folder):
        path = folder / "checkpoints/last.pt"
        state = checkpoint.load(path)
        del state[key]
        checkpoint.save(path, state)

    return prepare


def cut(name):
    def prepare(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return prepare


def filled(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (other_runs_last, r"last\.pt is of another run, whose configuration differs:\n  seed: 7"),
        (best_for_last, r"segkd-student-1 \(best\.pt contains only the student\).*last\.pt"),
        (other_network, r"does not fit this run: its student does not fit.*\(9, 18, 1, 1\)"),
        (other_values, r"last\.pt does not fit this run"),
        (without("optimizer"), "not a training state but incomplete"),
        (cut("checkpoints/last.pt"), r"cannot be read as a checkpoint.*restore an intact one"),
        (filled("checkpoints/last.pt", b""), r"restore an intact one"),
        (filled("metrics.csv", b"\xff\xfe\x00"), r"metrics\.csv is damaged.*move it away"),
        (filled("metrics.csv", b"a,b\n1,2\n"), r"no column 'step'.*move it away"),
    ],
)
def test_what_a_run_cannot_go_on_from_is_one_message(tmp_path, monkeypatch, prepare, message):
    folder = tmp_path / "run"
    interrupted(folder, monkeypatch, eval={"every": 2})
    prepare(folder)
    with pytest.raises(SegKDError) as caught:
        train_run(toy_config(folder, eval={"every": 2}))
    assert re.search(message, str(caught.value), re.DOTALL), caught.value
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("content", [b"\xff\x00", b"steps: [", b"", b"steps: 4\n"])
def test_a_damaged_config_is_replaced_where_the_checkpoint_knows_better(
    tmp_path, monkeypatch, content
):
    folder = tmp_path / "run"
    interrupted(folder, monkeypatch)
    whole = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match="another configuration"):
        train_run(toy_config(folder, seed=3))
    train_run(toy_config(folder))
    assert (folder / "config.yaml").read_text() == whole


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff", b'{"steps": 6}'])
def test_a_damaged_summary_is_one_message_and_can_be_made_again(tmp_path, content):
    folder = tmp_path / "run"
    whole = train_run(toy_config(folder))
    (folder / "summary.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"summary\.json is damaged.*written again from last\.pt"):
        train_run(toy_config(folder))
    (folder / "summary.json").unlink()
    assert train_run(toy_config(folder))["score"] == whole["score"]


def test_a_finished_run_whose_config_is_lost_in_all_its_files_is_not_taken_for_another(tmp_path):
    folder = tmp_path / "run"
    train_run(toy_config(folder))
    (folder / "config.yaml").write_text("?")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ConfigError, match="it is unknown which run"):
        train_run(toy_config(folder))


def test_a_summary_holds_no_number_that_json_has_no_word_for():
    plain = {"a": [float("nan"), 1.0, {"b": float("-inf")}], "c": (2, "d")}
    assert finite(plain) == {"a": [None, 1.0, {"b": None}], "c": [2, "d"]}


def test_scraps_of_a_killed_save_are_removed_and_others_stay(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupted(folder, monkeypatch)
    scraps = ["checkpoints/.last.pt.77.part", "checkpoints/.best.pt.8.part", ".summary.json.9.part"]
    for name in [*scraps, ".eval.json.5.part"]:  # another command may be writing that one
        (folder / name).write_bytes(b"half")
    train_run(toy_config(folder))
    assert not any((folder / name).exists() for name in scraps)
    assert (folder / ".eval.json.5.part").exists()


# -- saved before it is evaluated ------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4, 6])
def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(tmp_path, monkeypatch, step):
    keys = {"eval": {"every": 2}, "save_every": 100, "log": {"every": 3, "tensorboard": False}}
    train_run(toy_config(tmp_path / "whole", **keys))
    original, folder = run.evaluate_network, tmp_path / "run"
    counted = []

    def broken(*args, **more):
        counted.append(1)
        if len(counted) == step // 2:
            raise DataError("val_3.png is broken")
        return original(*args, **more)

    monkeypatch.setattr(run, "evaluate_network", broken)
    with pytest.raises(DataError):
        train_run(toy_config(folder, **keys))
    assert states(folder)["step"] == step
    monkeypatch.undo()
    train_run(toy_config(folder, **keys))
    same(states(folder), states(tmp_path / "whole"))
    assert table(folder) == table(tmp_path / "whole")


def test_a_signal_in_an_evaluation_ends_it_at_once(tmp_path, monkeypatch):
    seen = []

    def read(*args):
        seen.append(args)
        os.kill(os.getpid(), 15)

    monkeypatch.setattr(evaluator, "placed_batches", read)
    with pytest.raises(Interrupted, match=r"after step 6 of 6.*last\.pt holds step 6") as caught:
        train_run(toy_config(tmp_path / "run", save_every=100))
    assert caught.value.exit_code == 143 and len(seen) == 1
    assert not isinstance(caught.value, Stopped)
    monkeypatch.undo()
    assert train_run(toy_config(tmp_path / "run", save_every=100))["steps"] == 6
    assert table(tmp_path / "run") == [(2, False), (4, False), (6, False), (6, True)]


def test_a_signal_while_a_teacher_is_scored_is_told_as_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "placed_batches", lambda *args: os.kill(os.getpid(), 2))
    with pytest.raises(Interrupted, match=r"after step 0 of 6\. Nothing was saved") as caught:
        train_run(toy_config(tmp_path / "run", methods={"kd": {}}), teachers={"t": teacher_net()})
    assert caught.value.exit_code == 130


def test_no_row_is_there_twice_where_the_last_evaluation_is_repeated(tmp_path, monkeypatch):
    folder, log = tmp_path / "run", {"every": 2, "tensorboard": True}
    train_run(toy_config(folder, log=log))
    (folder / "summary.json").unlink()  # as if killed before it was written
    before = table(folder)
    train_run(toy_config(folder, log=log))
    assert table(folder) == before == [(2, False), (4, False), (6, False), (6, True)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("val/miou")] == [6]
    assert [event.step for event in board.Scalars("task/cross_entropy")] == [2, 4, 6]


# -- a finished run --------------------------------------------------------------------------------


def test_a_finished_run_says_its_score_and_what_starts_a_new_one(tmp_path, capsys):
    summary = train_run(toy_config(tmp_path / "run"))
    capsys.readouterr()
    train_run(toy_config(tmp_path / "run"))
    told = " ".join(capsys.readouterr().out.split())
    assert f"already finished: mIoU {100 * summary['miou']:.2f} after 6 steps" in told
    assert "out=runs/NAME" in told and "steps=N" in told


@pytest.mark.parametrize("schedule", [CONSTANT, {"name": "step", "milestones": [3, 9]}])
def test_more_steps_go_on_where_the_schedule_does_not_know_the_end(tmp_path, schedule):
    keys = {"schedule": schedule, "methods": {"toy_self": {}}, "ema": 0.9}
    keys["log"] = {"every": 100, "tensorboard": False}
    train_run(toy_config(tmp_path / "a", steps=6, **keys))
    train_run(toy_config(tmp_path / "a", steps=10, **keys))
    train_run(toy_config(tmp_path / "b", steps=10, **keys))
    longer, whole = states(tmp_path / "a"), states(tmp_path / "b")
    for key in ("step", "student", "objective", "optimizer", "ema", "rng"):
        same(longer[key], whole[key])
    assert json.loads((tmp_path / "a/summary.json").read_text())["steps"] == 10
    assert table(tmp_path / "a") == [(6, False), (6, True), (10, False), (10, True)]


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        ({}, 9, r"its schedule 'poly' depends.*init_from=\S+run out=runs/NAME steps=3"),
        (
            {"schedule": CONSTANT, "methods": {"toy_self": {"decay": "cosine"}}},
            9,
            r"methods\.toy_self depends",
        ),
        (
            {
                "schedule": CONSTANT,
                "teachers": {"main": {"arch": "toy"}},
                "methods": {"ft": {"start": 5}},  # prepared for 1 of 6 steps, or 2 of 20
            },
            20,
            r"methods\.ft depends",
        ),
        (
            {
                "schedule": CONSTANT,
                "teachers": {"main": {"arch": "toy", "options": {"width": 12}}},
                "methods": {"fitnets": {}},  # its layers learn alone for 0 of 6 steps, 1 of 60
            },
            60,
            r"how long the layers of methods\.fitnets learn alone",
        ),
        ({"schedule": CONSTANT}, 5, "has done 6 steps already"),
    ],
)
def test_more_steps_are_refused_where_they_would_change_those_done(
    tmp_path, changes, steps, message
):
    train_run(toy_config(tmp_path / "run", **changes))
    with pytest.raises(ConfigError, match=message):
        train_run(toy_config(tmp_path / "run", **changes, steps=steps))
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 6


@pytest.mark.parametrize("methods", [{"kd": {}}, {"fitnets": {"adapter_warmup": 2}}])
def test_more_steps_are_taken_where_the_first_ones_are_the_same(tmp_path, methods):
    teacher = {"arch": "toy", "options": {"width": 12}}
    changes = {"schedule": CONSTANT, "teachers": {"main": teacher}, "methods": methods}
    train_run(toy_config(tmp_path / "run", **changes, steps=3))
    assert train_run(toy_config(tmp_path / "run", **changes, steps=60))["steps"] == 60


def test_a_run_that_learns_from_another_of_its_recipe_is_not_extended(tmp_path):
    train_run(toy_config(tmp_path / "run", schedule=CONSTANT))
    with pytest.raises(ConfigError, match="depends on another run"):
        train_run(toy_config(tmp_path / "run", schedule=CONSTANT, steps=9), extend=False)


def test_another_number_of_processes_is_told(tmp_path, monkeypatch, capsys):
    interrupted(tmp_path / "run", monkeypatch)
    path = tmp_path / "run/checkpoints/last.pt"
    state = checkpoint.load(path)
    checkpoint.save(path, state | {"rng": state["rng"] * 2})
    train_run(toy_config(tmp_path / "run"))
    told = " ".join(capsys.readouterr().out.split())
    assert "was saved by 2 process(es), now there are 1: the numbers will differ" in told
