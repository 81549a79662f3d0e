import sys

import cv2
import numpy as np
import pytest
import torch

from segkd.evaluation.assistants import Lesson, assistants_plot
from segkd.evaluation.evaluator import Result
from segkd.evaluation.label_plot import LabelPoint, labels_plot
from segkd.evaluation.plots import (
    ACCENT,
    BASELINE,
    TEACHER,
    comparison_limits,
    comparison_plot,
    per_class_plot,
    run_colors,
)
from segkd.evaluation.results import ComparisonRow

ROWS = [
    ComparisonRow("teacher", [0.78], role="teacher"),
    ComparisonRow("alone", [0.69, 0.70], seconds_per_step=0.3, role="baseline"),
    ComparisonRow("cwd", [0.72, 0.73], seconds_per_step=0.5),
]


def pixels(path, color):
    """How many pixels have exactly a colour, e.g. "#0072b2"."""
    picture = cv2.imread(str(path))[..., ::-1]
    return int((picture == np.array(list(bytes.fromhex(color[1:])))).all(2).sum())


def test_each_row_is_marked_in_its_colour(tmp_path):
    comparison_plot(ROWS, tmp_path / "all.png", title="streets")
    comparison_plot(ROWS[:1], tmp_path / "one.png")
    for color, alone_too in ((TEACHER, True), (ACCENT, False), (BASELINE, False)):
        assert pixels(tmp_path / "all.png", color) > 50
        assert (pixels(tmp_path / "one.png", color) > 50) == alone_too


@pytest.mark.parametrize("scores", [[], [float("nan")]])
def test_rows_without_a_number_are_left_out(tmp_path, scores):
    comparison_plot([*ROWS, ComparisonRow("defect", scores)], tmp_path / "with.png")
    comparison_plot(ROWS, tmp_path / "without.png")
    pictures = [cv2.imread(str(tmp_path / f"{name}.png")) for name in ("with", "without")]
    assert (pictures[0] == pictures[1]).all()


def test_vector_formats(tmp_path):
    comparison_plot(ROWS, tmp_path / "plot.svg")
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()


def test_per_class_plot_has_room_for_every_class(tmp_path):
    heights = []
    for classes in (3, 30):
        matrix = torch.eye(classes, dtype=torch.int64) * 9 + 1
        matrix[1] = matrix[:, 1] = 0
        names = tuple(f"class {number}" for number in range(classes))
        results = {name: Result(matrix, names, 1) for name in ("alone", "distilled")}
        per_class_plot(results, tmp_path / f"{classes}.png", title="streets")
        heights.append(cv2.imread(str(tmp_path / f"{classes}.png")).shape[0])
    assert heights[1] > heights[0] + 27 * 40
    assert not np.isnan(heights).any()


def test_a_network_whose_name_begins_with_an_underscore_is_in_the_legend(tmp_path):
    result = Result(torch.eye(2, dtype=torch.int64), ("road", "car"), 1)
    names = ("_alone", "distilled")
    per_class_plot(dict.fromkeys(names, result), tmp_path / "plot.svg")
    assert all(f"{name} (100.00)" in (tmp_path / "plot.svg").read_text() for name in names)
    points = {name: [LabelPoint("a", 37, [0.3])] for name in names}
    labels_plot(points, tmp_path / "labels.svg", teacher=ComparisonRow("_big", [0.4]))
    assert all(
        f"-- {name} -->" in (tmp_path / "labels.svg").read_text() for name in (*names, "_big")
    )
    lesson = Lesson("taught", "big", 10**6, [0.5], [0.4], assistant=False)
    alone = ComparisonRow("_alone", [0.3], role="baseline")
    assistants_plot([lesson], tmp_path / "sizes.svg", baseline=alone)
    assert "_alone, labels only" in (tmp_path / "sizes.svg").read_text()


def test_the_axis_is_made_for_the_students():
    low, high = comparison_limits(ROWS)
    assert (low, high) == pytest.approx((68.462, 73.538), abs=1e-3)  # 71 ± 1.15 · (1.5 + √½)
    near = ComparisonRow("teacher", [0.74], role="teacher")
    assert comparison_limits([near, *ROWS[1:]]) == pytest.approx((68.402, 74.391), abs=1e-3)
    assert comparison_limits(ROWS[:1]) == pytest.approx((77, 79))


def test_a_run_keeps_its_colour_in_any_order(tmp_path):
    names = ["cwd", "alone", "kd", "at"]
    roles = {"alone": "baseline"}
    assert run_colors(names, roles) == run_colors(sorted(names), roles)
    rows = [*ROWS, ComparisonRow("kd", [0.71])]
    comparison_plot(rows, tmp_path / "plot.png")
    palette = run_colors([row.name for row in rows], {row.name: row.role for row in rows})
    assert len(set(palette.values())) == 4
    assert all(pixels(tmp_path / "plot.png", color) > 50 for color in palette.values())


def test_no_global_state(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    comparison_plot(ROWS, tmp_path / "plot.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded
