"""``match: seconds``: steps follow from measured times, here those of a fake clock."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from resuming import same, states, stop_after
from toy_recipes import toy_recipe
from toy_run import toy_config

from segkd.config.match import exempt, with_steps
from segkd.config.recipe import expand
from segkd.engine import match, recipe_report, timing
from segkd.engine import recipe as recipe_module
from segkd.engine.match import Matcher
from segkd.engine.match_record import Match, digest, load, store
from segkd.engine.recipe import run_recipe
from segkd.engine.step_seconds import affordable, budget_rate, phases, step_seconds
from segkd.engine.trainer import Trainer
from segkd.errors import ConfigError, Interrupted
from segkd.runtime import Runtime

ALONE, KD = 0.5, 1.25  # seconds of a step, with the fake clock


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Plots and pictures take longer than the runs."""
    for name in ("comparison_plot", "draw_pictures"):
        monkeypatch.setattr(recipe_report, name, lambda *args, **options: None)


class Clock:
    """Seconds that pass only inside a step: more of them for each method that is at work."""

    now, costs, jitter = 0.0, {"kd": KD - ALONE}, ()

    def __init__(self):
        self.steps = 0

    def step(self, trainer):
        active = trainer.objective.active(trainer.step)
        seconds = ALONE + sum(self.costs.get(name, 0) for name in active)
        inner = [name for name in trainer.own if trainer.objective.inner_active(name, trainer.step)]
        seconds += sum(self.costs.get(f"{name} beforehand", 0) for name in inner)
        if self.jitter:
            seconds *= self.jitter[self.steps % len(self.jitter)]
        self.steps += 1
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made, update = Clock(), Trainer._update

    def slow(trainer):
        made.step(trainer)
        return update(trainer)

    monkeypatch.setattr(Trainer, "_update", slow)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def recipe_of(tmp_path, **changes):
    options = {"seeds": [0], "match": "seconds"} | changes
    recipe = toy_recipe(tmp_path, **options)
    return with_common(recipe, steps=60)


def with_common(recipe, **changes):
    runs = {
        name: run.model_copy(update={"config": run.config.model_copy(update=changes)})
        for name, run in recipe.runs.items()
    }
    return recipe.model_copy(update={"runs": runs})


def test_each_run_gets_the_baselines_seconds(tmp_path, clock):
    result = run_recipe(recipe_of(tmp_path))
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["alone"]["steps"] == rows["teacher"]["steps"] == 60
    assert rows["distilled"]["steps"] == 60 * ALONE / KD == 24
    for name in ("alone", "distilled"):
        assert rows[name]["training_seconds"] == pytest.approx(60 * ALONE, rel=1e-6)
    table = (tmp_path / "toys/report/table.md").read_text()
    assert "train s" in table and "| 24 |" in table.replace("  ", " ").replace("  ", " ")
    found = load(tmp_path / "toys/distilled/seed0")
    assert (found.steps, found.configured, found.baseline) == (24, 60, "alone/seed0")
    assert not (tmp_path / "toys/alone/seed0/match.json").exists()
    summary = json.loads((tmp_path / "toys/distilled/seed0/summary.json").read_text())
    assert summary["steps"] == 24


def test_a_factor_multiplies_the_seconds(tmp_path, clock):
    rows = run_recipe(recipe_of(tmp_path, match={"seconds": 0.5}))["rows"]
    assert {row["name"]: row["steps"] for row in rows}["distilled"] == 12


def test_without_match_all_runs_have_their_steps_and_the_table_no_such_columns(tmp_path, clock):
    rows = run_recipe(recipe_of(tmp_path, match=None))["rows"]
    assert {row["steps"] for row in rows} == {60}
    assert "train s" not in (tmp_path / "toys/report/table.md").read_text()


def test_a_few_slow_steps_do_not_count(tmp_path, clock):
    """Every eighth step takes nine times as long: a mean would halve the number of steps."""
    clock.jitter = (9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    recipe = with_common(recipe_of(tmp_path), log=toy_config(tmp_path).log)
    steps = {row["name"]: row["steps"] for row in run_recipe(recipe)["rows"]}
    assert steps["distilled"] == 24


def test_the_baseline_is_trained_before_the_others(tmp_path):
    recipe = toy_recipe(tmp_path)
    late = {name: recipe.runs[name] for name in ("distilled", "teacher", "alone")}
    for wanted, change in ((["teacher", "distilled", "alone"], None), (["alone"], "seconds")):
        matched = type(recipe).model_validate(
            {**recipe.model_dump(exclude={"runs"}), "match": change, "runs": late}
        )
        plan = [planned.name for planned in expand(matched) if planned.seed == 0]
        assert plan[: len(wanted)] == wanted


def test_seeds_of_a_run_have_the_same_number_of_steps(tmp_path, clock):
    """The second seed is not measured: its steps take longer here."""
    measured = []

    def measuring(config, *rest):
        measured.append(config.out)
        clock.costs = {"kd": (KD - ALONE) * 3}  # from now on
        return original(config, *rest)

    original, match.step_seconds = match.step_seconds, measuring
    try:
        clock.costs = {"kd": KD - ALONE}
        rows = run_recipe(recipe_of(tmp_path, seeds=[0, 1]))["rows"]
    finally:
        match.step_seconds = original
    assert len(measured) == 1
    both = [load(tmp_path / f"toys/distilled/seed{seed}").steps for seed in (0, 1)]
    assert both[0] == both[1] == {row["name"]: row["steps"] for row in rows}["distilled"]


def test_the_run_is_the_same_as_without_a_measurement(tmp_path, clock):
    run_recipe(recipe_of(tmp_path))
    plain = with_common(recipe_of(tmp_path / "plain", match=None), steps=60)
    runs = dict(plain.runs)
    shorter = with_steps(runs["distilled"].config, 24)
    runs["distilled"] = runs["distilled"].model_copy(update={"config": shorter})
    run_recipe(plain.model_copy(update={"runs": runs}))
    one, other = (
        states(folder / "toys/distilled/seed0") for folder in (tmp_path, tmp_path / "plain")
    )
    same(one["student"], other["student"])
    same(one["optimizer"], other["optimizer"])


def test_a_stopped_run_resumes_bit_for_bit_without_a_new_measurement(tmp_path, clock, monkeypatch):
    run_recipe(recipe_of(tmp_path / "whole"))
    recipe = recipe_of(tmp_path / "parts")
    stop_in_distilled(monkeypatch, 11)
    with pytest.raises(Interrupted):
        run_recipe(recipe)
    monkeypatch.undo()
    monkeypatch.setattr(match, "step_seconds", None)  # it would fail
    result = run_recipe(recipe)
    assert {row["name"]: row["steps"] for row in result["rows"]}["distilled"] == 24
    one, other = (states(tmp_path / name / "toys/distilled/seed0") for name in ("whole", "parts"))
    same(one["student"], other["student"])
    same(one["optimizer"], other["optimizer"])
    assert one["step"] == other["step"] == 24


def test_finished_runs_in_a_folder_that_was_moved_are_not_measured_anew(
    tmp_path, clock, monkeypatch
):
    run_recipe(recipe_of(tmp_path / "before"))
    shutil.move(tmp_path / "before", tmp_path / "after")
    for file in (tmp_path / "after").rglob("config.yaml"):
        text = file.read_text(encoding="utf-8").replace("/before/", "/after/")
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(match, "step_seconds", None)  # it would fail
    rows = run_recipe(recipe_of(tmp_path / "after"))["rows"]
    assert {row["name"]: row["steps"] for row in rows}["distilled"] == 24


def stop_in_distilled(monkeypatch, steps):
    """Stops the training of the run that distils, not the measurement before it."""
    train = recipe_module.train_run

    def trained(config, **options):
        if config.methods:
            stop_after(monkeypatch, steps)
        return train(config, **options)

    monkeypatch.setattr(recipe_module, "train_run", trained)


def seeds_of(tmp_path, monkeypatch):
    """The runs of two seeds, their folders, and a matcher that need not train the baselines."""
    recipe = recipe_of(tmp_path, seeds=[0, 1])
    plan = expand(recipe)
    own = [one for one in plan if one.name == "distilled"]
    matcher = Matcher(recipe, plan)
    matcher.seconds = {"alone/seed0": 30.0, "alone/seed1": 30.0}
    monkeypatch.setattr(match, "step_seconds", lambda *args: {("kd",): KD})
    return own, [Path(one.config.out) for one in own], matcher


def test_seeds_that_two_commands_measure_at_once_have_the_same_steps(tmp_path, monkeypatch):
    (first, second), folders, matcher = seeds_of(tmp_path, monkeypatch)

    def meanwhile(*args):
        own = digest(second.config)
        store(folders[1], Match(30, 1.0, 30.0, 1.0, "alone/seed1", 60, own))
        return {("kd",): KD}

    monkeypatch.setattr(match, "step_seconds", meanwhile)
    assert matcher.config(first).steps == 30 == load(folders[0]).steps
    assert matcher.config(second).steps == 30


def test_a_corrected_run_takes_the_steps_of_its_other_seed_not_its_old_ones(tmp_path, monkeypatch):
    (first, second), folders, matcher = seeds_of(tmp_path, monkeypatch)
    store(folders[1], Match(30, 1.0, 30.0, 1.0, "alone/seed1", 60, "before"))
    assert matcher.config(first).steps == 24
    assert matcher.config(second).steps == 24 == load(folders[1]).steps


# -- what is refused -------------------------------------------------------------------------------


def test_another_factor_or_number_of_steps_is_refused_with_the_difference(tmp_path, clock):
    run_recipe(recipe_of(tmp_path))
    with pytest.raises(ConfigError, match=r"match.seconds: 1 -> 2\n.*delete its folder"):
        run_recipe(recipe_of(tmp_path, match={"seconds": 2}))
    other = recipe_of(tmp_path)
    runs = dict(other.runs)
    longer = runs["distilled"].config.model_copy(update={"steps": 80})
    runs["distilled"] = runs["distilled"].model_copy(update={"config": longer})
    with pytest.raises(ConfigError, match="steps: 60 -> 80"):
        run_recipe(other.model_copy(update={"runs": runs}))


def test_a_folder_of_matched_runs_names_the_key_that_is_missing(tmp_path, clock):
    run_recipe(recipe_of(tmp_path, match={"seconds": 0.5}))
    with pytest.raises(ConfigError, match=r"12 steps, not 60. .*match='\{seconds: 0.5\}'"):
        run_recipe(recipe_of(tmp_path, match=None))
    run_recipe(recipe_of(tmp_path, match={"seconds": 0.5}))


def test_a_run_that_failed_and_was_corrected_is_measured_anew(tmp_path, clock, monkeypatch):
    def fails(self):
        raise ConfigError("out of memory")

    recipe = recipe_of(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Match, "about", property(fails))  # what follows the measurement
        with pytest.raises(ConfigError, match="out of memory"):
            run_recipe(recipe)
    folder = tmp_path / "toys/distilled/seed0"
    assert load(folder).steps == 24
    clock.costs = {"kd": 2 * (KD - ALONE)}
    entry = recipe.runs["distilled"]
    methods = {"kd": entry.config.methods["kd"].model_copy(update={"temperature": 2.0})}
    config = entry.config.model_copy(update={"methods": methods})
    runs = recipe.runs | {"distilled": entry.model_copy(update={"config": config})}
    corrected = recipe.model_copy(update={"runs": runs})
    run_recipe(corrected)
    assert load(folder).steps == 60 * ALONE / (2 * KD - ALONE) == 15
    assert run_recipe(corrected)["rows"][-1]["steps"] == 15
    other = expand(corrected)[-1].config.model_copy(update={"seed": 3, "steps": 7})
    assert digest(other) == load(folder).measured


def test_another_baseline_is_refused(tmp_path, clock):
    run_recipe(recipe_of(tmp_path))
    path = tmp_path / "toys/distilled/seed0/match.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"budget": facts["budget"] / 2}))
    with pytest.raises(ConfigError, match="seconds of alone/seed0: 15 -> 30"):
        run_recipe(recipe_of(tmp_path))


def test_a_damaged_record_is_one_message(tmp_path):
    (tmp_path / "match.json").write_text('{"steps": 3')
    with pytest.raises(ConfigError, match=r"is damaged: .*how many steps"):
        load(tmp_path)


def test_a_run_with_too_few_steps_is_refused(tmp_path, clock):
    clock.costs = {"kd": 40 * ALONE}
    recipe = recipe_of(tmp_path, match={"seconds": 0.1})
    with pytest.raises(ConfigError, match=r"runs.distilled: a step takes 20.5 s.* 0 steps") as told:
        run_recipe(recipe)
    assert "the 30 s of 'alone' times 0.1 are" in str(told.value)
    # The baseline is there with its 60 steps; 8200 give the run 20.
    assert "another folder" in str(told.value) and "runs.alone.steps=8200" in str(told.value)


# -- the record ------------------------------------------------------------------------------------


def test_what_another_command_has_stored_meanwhile_stays(tmp_path):
    first, second = (Match(n, 1.0, 10.0, 1.0, "alone", 60) for n in (10, 11))
    assert store(tmp_path, first) == first
    assert store(tmp_path, second) == first and load(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["match.json"]


# -- who is matched, and what follows --------------------------------------------------------------


def test_baseline_teacher_once_phases_and_sources_are_exempt(tmp_path):
    recipe = recipe_of(tmp_path)
    assert exempt(recipe, "distilled") is None
    assert exempt(recipe, "alone") == "the baseline"
    assert exempt(recipe, "teacher") == "the teacher"
    runs, config = dict(recipe.runs), recipe.runs["distilled"].config
    phase = config.model_copy(update={"train": ["student.encoder.*"]})
    then = config.model_copy(update={"init_from": "run:hints"})
    runs |= {
        "once": runs["distilled"].model_copy(update={"once": True}),
        "phase": runs["distilled"].model_copy(update={"config": phase}),
        "hints": runs["distilled"].model_copy(update={"config": config}),
        "then": runs["distilled"].model_copy(update={"config": then}),
    }
    recipe = recipe.model_copy(update={"runs": runs, "teacher": None})
    assert "once" in exempt(recipe, "once") and "train" in exempt(recipe, "phase")
    assert exempt(recipe, "hints") == "'then' begins with it"
    assert exempt(recipe, "then") is None
    assert exempt(recipe.model_copy(update={"teacher": None}), "teacher") == "`once`"


def test_all_lengths_follow_the_number_of_steps(tmp_path):
    config = toy_config(
        tmp_path,
        steps=100,
        teachers={"main": {"arch": "toy"}},
        methods={"kd": {"start": 50, "warmup": 10, "adapter_warmup": 3}, "ft": {}},
        schedule={"name": "step", "milestones": [60, 80], "warmup": 5},
        eval={"every": 20},
        save_every=40,
    )
    half = with_steps(config, 50)
    assert half.steps == 50 and half.schedule.milestones == [30, 40]
    assert half.schedule.warmup == 2 and half.eval.every == 10
    kd = half.methods["kd"]
    assert (kd.start, kd.warmup, kd.adapter_warmup) == (25, 5, 2)
    assert half.methods["ft"].adapter_warmup is None and half.save_every == 40
    tiny = with_steps(config, 1)
    assert tiny.schedule.milestones == [1] and tiny.eval.every == 1
    assert with_steps(config, 100) == config


def test_phases_are_cut_where_methods_begin(tmp_path):
    config = toy_config(
        tmp_path,
        steps=100,
        teachers={"main": {"arch": "toy"}},
        methods={"kd": {"start": 50}, "ft": {"paraphraser_steps": 20}},
    )
    assert phases(config) == [
        (range(20), ("ft beforehand",)),
        (range(20, 50), ("ft",)),
        (range(50, 100), ("kd", "ft")),
    ]


def test_late_methods_are_paid_for_the_steps_in_which_they_act(tmp_path, clock):
    """Half of the steps cost 0.5 s, half 1.25 s, and the phase beforehand 0.75 s."""
    recipe = recipe_of(tmp_path)
    runs = dict(recipe.runs)
    entry = {"kd": {"start": 30}, "ft": {"paraphraser_steps": 10}}
    plain = runs["distilled"].config.model_dump(mode="json") | {"methods": entry}
    late = type(runs["distilled"].config).model_validate(plain)
    clock.costs = {"kd": KD - ALONE, "ft beforehand": 0.25}
    runtime = Runtime.single()
    rates = step_seconds(late.model_copy(update={"teachers": toy_teacher(tmp_path)}), runtime)
    assert rates == pytest.approx({("ft beforehand",): 0.75, ("ft",): ALONE, ("kd", "ft"): KD})
    expected = (10 * 0.75 + 20 * ALONE + 30 * KD) / 60
    assert budget_rate(late, rates) == pytest.approx(expected)
    budget = 60 * expected
    assert affordable(late, rates, budget) == 60
    steps = affordable(late, rates, budget / 2)
    shorter = with_steps(late, steps)
    taken = steps * budget_rate(shorter, rates)
    assert taken <= budget / 2 + 1e-6 < taken + 2 * KD


def toy_teacher(tmp_path):
    return toy_config(tmp_path, teachers={"main": {"arch": "toy"}}).teachers


def test_nothing_is_affordable_without_time(tmp_path):
    config = toy_config(tmp_path, steps=100)
    assert affordable(config, {(): 2.0}, 1.0) == 0
    assert affordable(config, {(): 0.1}, 25.0) == 250
    assert math.isclose(budget_rate(config, {(): 0.1}), 0.1)


def test_a_measurement_leaves_random_numbers_alone(tmp_path, clock):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    step_seconds(toy_config(tmp_path, steps=30), Runtime.single())
    assert torch.equal(torch.rand(3), expected)


def test_without_match_nothing_is_looked_at(tmp_path):
    recipe = recipe_of(tmp_path, match=None)
    plan = expand(recipe)
    matcher = Matcher(recipe, plan)
    assert all(matcher.config(planned) is planned.config for planned in plan)
