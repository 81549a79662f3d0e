"""Recipes: runs that feed each other, nothing repeated, and the table at the end."""

import csv
import json
import math
import signal
from types import SimpleNamespace

import pytest
from toy_recipes import TOYS, toy_recipe
from toy_run import teacher_net

from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.engine import recipe_pictures
from segkd.engine.recipe import compare, run_recipe
from segkd.engine.run import Run, train_run
from segkd.engine.run_folder import RunFolder
from segkd.engine.trainer import Trainer
from segkd.errors import Interrupted
from segkd.evaluation.results import ComparisonRow
from segkd.models.teacher import SingleTeacher, Teachers


def test_a_recipe_ends_in_one_row_per_run_over_its_seeds(tmp_path):
    result = run_recipe(toy_recipe(tmp_path))
    folder = tmp_path / "toys" / "report"
    with open(folder / "table.csv", newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert list(table) == ["teacher", "alone", "distilled"]
    assert len(table["alone"]["scores"].split()) == 2
    assert len(table["teacher"]["scores"].split()) == 1
    assert float(table["teacher"]["parameters"]) > float(table["alone"]["parameters"])
    alone = json.loads((tmp_path / "toys/alone/seed1/summary.json").read_text())
    assert alone["miou"] == result["runs"][str(tmp_path / "toys/alone/seed1")]["miou"]
    for name in ("table.md", "table.txt", "comparison.png", "pictures.png"):
        assert (folder / name).stat().st_size > 0
    # The distilled run's teacher is the trained one, not a fresh network.
    distilled = result["runs"][str(tmp_path / "toys/distilled/seed0")]
    trained = result["runs"][str(tmp_path / "toys/teacher")]
    assert distilled["teachers"]["main"]["miou"] == pytest.approx(trained["best_miou"])


def test_a_finished_recipe_only_reports_again(tmp_path, monkeypatch):
    recipe = toy_recipe(tmp_path, seeds=[0])
    first = run_recipe(recipe)
    monkeypatch.setattr(Trainer, "_train_step", None)
    assert run_recipe(recipe)["rows"] == first["rows"]


def test_a_signal_at_the_end_of_a_run_begins_no_other_one(tmp_path, monkeypatch):
    """After the last evaluation no step asks for signals any more."""
    save = RunFolder.save_summary

    def saved(self, summary):
        save(self, summary)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "save_summary", saved)
    recipe = toy_recipe(tmp_path, seeds=[0])
    for number, name in enumerate(("teacher", "alone/seed0", "distilled/seed0"), 1):
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            run_recipe(recipe)
        assert caught.value.exit_code == 143
        assert (tmp_path / "toys" / name / "summary.json").is_file()
        assert len(list((tmp_path / "toys").rglob("summary.json"))) == number
    assert len(run_recipe(recipe)["rows"]) == 3


def test_a_teacher_is_scored_once_for_all_runs(tmp_path, monkeypatch):
    scored, evaluate = [], Run._evaluate

    def counting(self, network):
        scored.append(isinstance(network, Teachers | SingleTeacher))
        return evaluate(self, network)

    monkeypatch.setattr(Run, "_evaluate", counting)
    recipe, facts = toy_recipe(tmp_path), {}
    summaries = run_recipe(recipe)["runs"].values()
    taught = [summary["teachers"] for summary in summaries if summary["teachers"]]
    assert scored.count(True) == 1 and len(taught) == 2 and taught[0] == taught[1]
    for number, changes in enumerate([{}, {}, {"flip": True}]):
        config = expand(recipe)[-1].config
        others = {"out": tmp_path / str(number), "eval": config.eval.model_copy(update=changes)}
        train_run(config.model_copy(update=others), teacher_facts=facts)
    assert scored.count(True) == 1 + 2, "another evaluation, other scores"


def test_a_run_without_methods_has_no_teacher_of_the_caller(tmp_path):
    runs = {"distilled": {"methods": {"kd": {}}}, "alone": {}}
    plain = {"seeds": [0], "out": str(tmp_path / "own"), "common": TOYS, "runs": runs}
    recipe = load_config(plain, own_parts=True).recipe
    found = run_recipe(recipe, teachers={"main": teacher_net()})["runs"].values()
    assert [list(summary["teachers"]) for summary in found] == [["main"], []]


def test_a_sorted_recipe_shows_the_best_first(tmp_path):
    rows = run_recipe(toy_recipe(tmp_path, seeds=[0], sort=True))["rows"]
    means = [row["miou_mean"] for row in rows]
    assert len(means) == 3 and means == sorted(means, reverse=True)


def test_a_teacher_that_differs_by_seed_has_a_score_of_each(tmp_path):
    trained = {"once": False}
    recipe = toy_recipe(tmp_path, trained=trained, teacher="main")
    plan = expand(recipe)

    def summary(planned):
        cost = {"parameters": 5, "flops": 1.0}
        taught = (
            {"main": {"miou": 0.5 + planned.seed / 10, **cost}} if planned.config.teachers else {}
        )
        times = {"seconds_per_step": 1.0, "peak_memory": 1, "steps": 4}
        return {"miou": 0.3, "student": cost, "teachers": taught, **times}

    by_seed = compare(recipe, [(planned, summary(planned)) for planned in plan])
    assert (by_seed[0].name, by_seed[0].role, by_seed[0].scores) == ("main", "teacher", [0.5, 0.6])
    first = {planned.name: planned for planned in reversed(plan)}
    same = compare(recipe, [(planned, summary(first[planned.name])) for planned in plan])
    assert same[0].scores == [0.5], "one network, one score"


def test_a_student_without_a_score_is_not_the_best_one(tmp_path):
    scores = {"a": 0.4, "b": math.nan, "c": 0.6}
    rows = [ComparisonRow(name, [score]) for name, score in scores.items()]
    recipe = SimpleNamespace(runs=scores)
    shown = recipe_pictures.shown_rows(recipe, [ComparisonRow("t", [0.9], role="teacher"), *rows])
    assert [row.name for row in shown] == ["t", "c", "a"]
