"""Scores against the number of labelled images: points, table, and the recipe that asks for it."""

import csv
import math

import cv2
import numpy as np
import pytest
from toy_recipes import toy_recipe

from segkd.engine.recipe import run_recipe
from segkd.errors import ConfigError
from segkd.evaluation.label_plot import LabelPoint, labels_plot, write_labels
from segkd.evaluation.plots import TEACHER
from segkd.evaluation.results import ComparisonRow

SERIES = {
    "alone": [LabelPoint("b", 92, [0.4, 0.5]), LabelPoint("a", 37, [0.3, math.nan])],
    "taught": [LabelPoint("c", 0, [0.42])],
}


@pytest.fixture
def drawn(monkeypatch):
    """What is given to matplotlib: lines by name, and the positions of ticks."""
    from matplotlib.axes import Axes

    seen, errorbar, ticks = {}, Axes.errorbar, Axes.set_xticks

    def noted(self, x, y, yerr=None, **options):
        seen[options["label"]] = (list(x), list(y), list(yerr))
        return errorbar(self, x, y, yerr=yerr, **options)

    def ticked(self, places, *rest, **options):
        seen["ticks"] = list(places)
        return ticks(self, places, *rest, **options)

    monkeypatch.setattr(Axes, "errorbar", noted)
    monkeypatch.setattr(Axes, "set_xticks", ticked)
    return seen


def test_points_are_means_in_order_of_their_labels(tmp_path, drawn):
    teacher = ComparisonRow("city", [0.43], 1, 1, role="teacher")
    labels_plot(SERIES, tmp_path / "labels.png", title="Few", teacher=teacher)
    spread = np.std([40, 50], ddof=1)
    assert drawn["alone"] == (
        [37, 92],
        pytest.approx([30, 45]),
        pytest.approx([math.nan, spread], nan_ok=True),
    )
    assert drawn["taught"][:2] == ([0], [42]) and math.isnan(drawn["taught"][2][0])
    assert drawn["ticks"] == [0, 37, 92]
    assert cv2.imread(str(tmp_path / "labels.png")).std() > 5


def test_a_run_without_a_score_is_left_out(tmp_path, drawn):
    series = {"alone": [LabelPoint("a", 37, [math.nan]), LabelPoint("b", 92, [0.4])]}
    labels_plot(series, tmp_path / "labels.svg")
    assert drawn["alone"][:2] == ([92], [40])


def test_the_numbers_are_a_file(tmp_path):
    write_labels(SERIES, tmp_path / "labels.csv")
    with open(tmp_path / "labels.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["alone", "a", "37", "0.300000 "],
            ["alone", "b", "92", "0.400000 0.500000"],
            ["taught", "c", "0", "0.420000"],
        ]


def test_a_recipe_with_series_draws_its_labelled_images(tmp_path):
    series = {"labels": ["alone"], "taught": ["distilled"], "not run": ["teacher"]}
    unlabelled = {"labels": "none", "name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48]}
    recipe = toy_recipe(
        tmp_path,
        seeds=[0],
        series=series,
        distilled={"data": unlabelled, "task": {"weight": 0.0}},
    )
    rows = {row["name"]: row for row in run_recipe(recipe)["rows"]}
    report = tmp_path / "toys" / "report"
    with open(report / "labels.csv", newline="") as file:
        found = {row["run"]: row for row in csv.DictReader(file)}
    assert found["alone"]["labelled_images"] == found["teacher"]["labelled_images"] == "7"
    assert found["distilled"]["labelled_images"] == "0"
    assert float(found["alone"]["scores"]) == pytest.approx(rows["alone"]["miou_mean"], abs=1e-6)
    assert (report / "labels.png").exists()


def test_only_some_runs_draw_only_these(tmp_path):
    series = {"labels": ["alone"], "taught": ["distilled"]}
    recipe = toy_recipe(tmp_path, seeds=[0], series=series, only=["alone"], teacher=None)
    run_recipe(recipe)
    text = (tmp_path / "toys/report/labels.csv").read_text()
    assert "labels,alone,7" in text and "taught" not in text


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"series\.labels\.0: there is no run 'alon'. Did you"):
        toy_recipe(tmp_path, series={"labels": ["alon"]})


def test_what_an_earlier_call_wrote_goes(tmp_path):
    series = {"labels": ["alone"]}
    run_recipe(toy_recipe(tmp_path, seeds=[0], series=series))
    report = tmp_path / "toys" / "report"
    assert (report / "labels.png").exists()
    run_recipe(toy_recipe(tmp_path, seeds=[0]))
    assert not (report / "labels.png").exists() and not (report / "labels.csv").exists()


def test_no_line_looks_like_a_teacher(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    seen, errorbar = [], Axes.errorbar

    def noted(self, *values, **options):
        seen.append((options["color"], options["marker"]))
        return errorbar(self, *values, **options)

    monkeypatch.setattr(Axes, "errorbar", noted)
    points = [LabelPoint("a", 37, [0.3])]
    labels_plot({str(number): points for number in range(9)}, tmp_path / "labels.png")
    assert len(set(seen)) == 5 and TEACHER not in {color for color, _ in seen}
