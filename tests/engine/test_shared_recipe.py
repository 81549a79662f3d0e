"""Several commands share the runs of a recipe: each run once, all tables whole."""

import json
import os
import signal
import socket

import pytest
import yaml
from processes import Training
from toy_recipes import toy_keys, toy_recipe

from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.engine import lock, shared_recipe
from segkd.engine.lock import RunLock
from segkd.engine.shared_recipe import alone_in, train_all
from segkd.errors import FolderInUseError, Interrupted


class Other:
    """Another command, which ends a run at every second look of this one."""

    def __init__(self, monkeypatch):
        self.locks, self.waits = [], 0
        monkeypatch.setattr(shared_recipe.time, "sleep", self.end_one)

    def begin(self, planned):
        self.locks.append(RunLock(planned.folder))
        self.locks[-1].acquire()

    def end_one(self, seconds):
        self.waits += 1
        if self.waits % 2 == 0:
            self.locks.pop(0).release()


@pytest.fixture
def other(monkeypatch):
    made = Other(monkeypatch)
    yield made
    for held in made.locks:
        held.release()


def order(recipe, plan):
    """Names of the runs in the order in which this command trained them."""
    trained = []

    def train(number, planned):
        trained.append(f"{planned.name}{planned.seed}")
        return {"name": planned.name, "seed": planned.seed}

    found = train_all(recipe, plan, train)
    assert [one for one, _ in found] == list(plan)
    assert all((facts["name"], facts["seed"]) == (one.name, one.seed) for one, facts in found)
    return trained


def test_runs_of_others_come_last_and_what_needs_them_waits(tmp_path, other, capsys):
    recipe = toy_recipe(tmp_path, shared=True)
    plan = expand(recipe)
    by_name = {f"{one.name}{one.seed}": one for one in plan}
    other.begin(by_name["teacher0"])
    other.begin(by_name["alone1"])
    found = order(recipe, plan)
    assert found == ["alone0", "teacher0", "distilled0", "distilled1", "alone1"]
    said = capsys.readouterr().out
    me = f"pid {os.getpid()} on {socket.gethostname()}"
    waits = f"Waiting for what other commands train: teacher, seed 0 ({me}); alone, seed 1 ({me})\n"
    assert waits in said
    assert said.count("Waiting") == 2 and other.waits == 4


def test_matched_runs_wait_for_the_seconds_of_the_baseline(tmp_path, other):
    recipe = toy_recipe(tmp_path, shared=True, match="seconds", seeds=[0])
    plan = expand(recipe)
    other.begin(next(one for one in plan if one.name == "alone"))
    assert order(recipe, plan) == ["teacher0", "alone0", "distilled0"]


def test_another_command_may_be_faster_at_the_last_moment(tmp_path, other):
    recipe = toy_recipe(tmp_path, shared=True, seeds=[0])
    plan, tries = expand(recipe), []

    def train(number, planned):
        tries.append(planned.name)
        if tries == ["teacher"]:
            raise FolderInUseError("is being trained by another process")
        return {}

    assert len(train_all(recipe, plan, train)) == 3
    assert tries == ["teacher", "alone", "teacher", "distilled"]


def test_without_the_key_a_run_of_another_process_is_an_error(tmp_path):
    recipe = toy_recipe(tmp_path)

    def train(number, planned):
        raise FolderInUseError("is being trained by another process")

    with pytest.raises(FolderInUseError, match=r"another process\. .* give each shared=true$"):
        train_all(recipe, expand(recipe), train)


def test_a_command_that_waits_is_stopped_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shared_recipe.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM)
    )
    recipe = toy_recipe(tmp_path, shared=True)
    teacher = RunLock(tmp_path / "toys" / "teacher")
    teacher.acquire()
    try:
        with pytest.raises(Interrupted, match="waiting for other commands") as caught:
            order(recipe, expand(recipe))
        assert caught.value.exit_code == 143
    finally:
        teacher.release()


def test_the_report_is_written_by_one_at_a_time(tmp_path, other):
    held = RunLock(tmp_path)
    held.acquire()
    other.locks.append(held)
    with alone_in(tmp_path, toy_recipe(tmp_path, shared=True)):
        assert other.waits == 2 and held.looks_held()
    assert not held.looks_held()


def test_two_commands_train_each_run_once_and_print_the_same_table(tmp_path):
    steps = 200  # seven such runs take longer than the other command sleeps
    keys = toy_keys(tmp_path, shared=True, seeds=[0, 1, 2], common={"steps": steps})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    command = ("train", str(tmp_path / "recipe.yaml"))
    plan = expand(load_config(tmp_path / "recipe.yaml").recipe)
    held = [RunLock(one.folder) for one in plan if not one.depends_on]
    for own in held:
        own.acquire()
    with (
        Training(folders[0], command=command) as one,
        Training(folders[1], command=command) as two,
    ):
        for both in (one, two):
            both.until_text("Waiting for what other commands train: ")
        for own in held:
            own.release()
        ended = [one.end(), two.end()]
    assert [both.code for both in ended] == [0, 0], ended
    parts = [
        {line for line in both.text.splitlines() if f": {steps} steps, " in line} for both in ended
    ]
    assert len(parts[0]) + len(parts[1]) == 7 and not parts[0] & parts[1]
    assert min(map(len, parts)) > 0
    tables = [both.text[both.text.index("\nToys\n") :] for both in ended]
    assert tables[0] == tables[1]
    rows = json.loads((tmp_path / "toys/report/table.json").read_text())["rows"]
    assert [len(row["scores"]) for row in rows] == [1, 3, 3]
    assert not list(tmp_path.rglob(".lock"))


# -- whether a lock is held, without waiting -------------------------------------------------------


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
def test_a_lock_looks_held_until_its_process_is_gone(tmp_path, monkeypatch, machine):
    now = [100.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    own = RunLock(tmp_path)
    assert not own.looks_held()
    facts = {**lock._me(), "token": "theirs"}
    if machine == "here":
        (tmp_path / ".lock").write_text(json.dumps(facts))
        assert own.looks_held()
        (tmp_path / ".lock").write_text(json.dumps(facts | {"born": "long ago"}))
        assert not own.looks_held()
        return
    (tmp_path / ".lock").write_text(json.dumps(facts | {"machine": "elsewhere"}))
    assert own.looks_held()
    now[0] += lock.STALE - 1
    assert own.looks_held()
    lock.os.utime(tmp_path / ".lock", (1, 1))  # touched again
    now[0] += 2
    assert own.looks_held()
    now[0] += lock.STALE
    assert not own.looks_held()
    told, other_lock = [], RunLock(tmp_path)  # what this process has seen holds for all its locks
    other_lock.acquire(told.append)
    other_lock.release()
    assert not told
