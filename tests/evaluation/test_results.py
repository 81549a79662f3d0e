import csv
import io
import json
import math
import statistics

import pytest
import torch
from rich.console import Console

from segkd.evaluation.comparison_row import gain_over, recovered
from segkd.evaluation.evaluator import Result
from segkd.evaluation.other_sets import OtherRow, other_table, write_other_table
from segkd.evaluation.results import (
    ComparisonRow,
    class_table,
    comparison_table,
    peer_rows,
    write_table,
)
from segkd.evaluation.table import NONE, TextTable

TEACHER = ComparisonRow("big", [0.80], parameters=58_630_000, flops=1.2e12, role="teacher")
ALONE = ComparisonRow("alone", [0.68, 0.70, 0.72], 12_340_000, 3.2e10, 0.31, 2**31, "baseline")
CWD = ComparisonRow("cwd", [0.74, 0.75, 0.76], 12_340_000, 3.2e10, 0.55, 3 * 2**30)
ROWS = [TEACHER, ALONE, CWD]


def cells(table, name):
    (row,) = [row for row in table.rows if row[0] == name]
    return dict(zip(table.header, [cell.strip() for cell in row], strict=True))


def test_peers_have_rows_without_a_time_of_their_own():
    def summary(*scores):
        facts = {"parameters": 7, "flops": 9.0}
        return {
            "peers": {f"dml.{n}": {"score": s, **facts} for n, s in zip("ab", scores, strict=False)}
        }

    first, second = peer_rows("both", [summary(0.5, None), summary(0.7, 0.2)], "mIoU", [3, 4])
    assert (first.name, second.name) == ("both: dml.a", "both: dml.b")
    assert first.mean == pytest.approx(0.6) and math.isnan(second.mean)
    assert first.seeds == [3, 4]
    assert first.parameters == 7 and first.seconds_per_step is None and first.role == ""
    assert peer_rows("alone", [{}], "mIoU", [0]) == peer_rows("none", [], "mIoU", []) == []


def test_mean_and_spread_over_seeds():
    assert pytest.approx(0.75) == CWD.mean
    assert CWD.std == pytest.approx(statistics.stdev([0.74, 0.75, 0.76]))
    assert TEACHER.std is None and math.isnan(ComparisonRow("none", []).mean)


def test_recovered_gap():
    assert recovered(CWD, ALONE, TEACHER) == pytest.approx(0.5)
    assert recovered(ALONE, ALONE, TEACHER) == 0 and recovered(TEACHER, ALONE, TEACHER) == 1
    assert recovered(ALONE, CWD, TEACHER) < 0
    assert recovered(CWD, TEACHER, ALONE) is None and recovered(CWD, ALONE, ALONE) is None


def test_cells():
    table = comparison_table(ROWS)
    assert cells(table, "cwd") == {
        "run": "cwd",
        "mIoU %": "75.00 ± 1.00",
        "gain": "+5.00",
        "gap closed": "50 %",
        "params M": "12.34",
        "GFLOPs": "32.0",
        "s/step": "0.550",
        "peak GiB": "3.00",
    }
    teacher = cells(table, "big")
    assert teacher["mIoU %"] == "80.00" and teacher["gain"] == teacher["s/step"] == "–"
    assert any("3 seeds" in note for note in table.notes)


def test_a_teacher_that_does_not_lead_is_said():
    table = comparison_table([ComparisonRow("big", [0.5], role="teacher"), ALONE, CWD])
    assert cells(table, "cwd")["gap closed"] == "–" and cells(table, "cwd")["gain"] == "+5.00"
    assert any("'big' is not better than 'alone'" in note for note in table.notes)


def test_bold_marks_the_best_student_and_no_loser():
    worse = ComparisonRow("worse", [0.60])
    assert comparison_table(ROWS).strong == {2}
    assert comparison_table([TEACHER, ALONE, worse]).strong == {1}
    assert comparison_table([TEACHER, CWD]).strong == frozenset()
    assert comparison_table([ALONE, CWD, CWD]).strong == {1, 2}
    assert comparison_table([ComparisonRow("a", [math.nan]), CWD]).strong == frozenset()


def test_what_rounds_to_zero_has_no_minus():
    nearly = ComparisonRow("nearly", [ALONE.mean - 4e-5])
    found = cells(comparison_table([TEACHER, ALONE, nearly]), "nearly")
    assert (found["gain"], found["gap closed"]) == ("+0.00", "0 %")

    sets = [
        OtherRow("big", [0.8], {"x": [0.5]}, "teacher"),
        OtherRow("kd", [0.7], {"x": [0.50004]}),
    ]
    assert cells(other_table(sets, score_name="mIoU"), "kd")["gap"] == "+0.00"


def test_gains_are_those_of_equal_seeds():
    """Here a baseline of one more seed, an easy one, would turn a gain into a loss."""
    alone = ComparisonRow("alone", [0.30, 0.40, 0.62], role="baseline", seeds=[0, 1, 2])
    kd = ComparisonRow("kd", [0.43, 0.31], seeds=[1, 0])
    other = ComparisonRow("other", [0.5], seeds=[7])
    lost = ComparisonRow("lost", [math.nan, 0.5], seeds=[0, 1])
    gain = gain_over(kd, alone, TEACHER)
    assert gain.mean == pytest.approx((0.01 + 0.03) / 2)
    assert gain.std == pytest.approx(statistics.stdev([0.01, 0.03]))
    assert gain.closed == pytest.approx(0.02 / (0.80 - 0.35))
    assert gain_over(other, alone).mean == pytest.approx(0.5 - 0.44)
    assert gain_over(other, alone).std is gain_over(other, alone).closed is None
    assert math.isnan(gain_over(lost, alone).mean)
    twice = ComparisonRow("twice", [0.4, 0.5], seeds=[0, 0])  # of two folders
    assert gain_over(twice, alone).mean == pytest.approx(0.45 - 0.44)
    table = comparison_table([TEACHER, alone, kd, other, lost])
    shown = [cells(table, name)["gain"] for name in ("big", "alone", "kd", "other", "lost")]
    assert shown == ["–", "–", "+2.00 ± 1.41", "+6.00", "–"]
    assert table.rows[3][2] == "+6.00" + " " * len(" ± 1.41"), "aligned with the others"
    assert any("'alone', seed by seed. Gap closed" in note for note in table.notes)


def test_no_baseline_no_gain():
    table = comparison_table([TEACHER, CWD])
    assert cells(table, "cwd")["gain"] == cells(table, "cwd")["gap closed"] == "–"
    named = comparison_table([TEACHER, ComparisonRow("x", [0.6]), CWD], baseline="x")
    assert cells(named, "cwd")["gap closed"] == "75 %"


def test_numbers_that_are_missing():
    table = comparison_table([*ROWS, ComparisonRow("broken", [math.nan])])
    broken = cells(table, "broken")
    assert set(broken.values()) == {"broken", "–"}


def test_written_files_agree(tmp_path):
    rows = [*ROWS, ComparisonRow("broken", [math.nan])]
    table = write_table(rows, tmp_path / "report", title="Streets")
    folder = tmp_path / "report"
    assert sorted(file.name for file in folder.iterdir()) == [
        "table.csv",
        "table.json",
        "table.md",
        "table.txt",
    ]
    assert (folder / "table.txt").read_text() == table.text()
    assert (folder / "table.md").read_text() == table.markdown()
    facts = json.loads((folder / "table.json").read_text())
    assert facts["title"] == "Streets" and facts["rows"][2]["gap_closed"] == pytest.approx(0.5)
    assert facts["rows"][3]["miou_mean"] is None
    with open(folder / "table.csv", newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["name"] for record in records] == ["big", "alone", "cwd", "broken"]
    assert float(records[2]["miou_mean"]) == pytest.approx(0.75)
    assert [float(value) for value in records[2]["scores"].split()] == list(CWD.scores)
    assert records[0]["seconds_per_step"] == ""


def test_class_table():
    matrix = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    result = Result(matrix, ("road", "sky", "tram"), images=2, skipped=1)
    table = class_table({"IoU %": result})
    assert [list(row) for row in table.rows] == [
        ["road", "80.00", "66.67"],
        ["sky", "20.00", "25.00"],
        ["tram", "0.00", "absent"],
        ["mean IoU", "", "45.83"],
    ]
    text = "\n".join(table.notes)
    assert "2 images, 1 skipped" in text and "not in the mean: tram" in text
    both = class_table({"alone": result, "distilled": result})
    assert len(both.rows[0]) == 4 and "distilled: absent" in "\n".join(both.notes)


def test_classes_that_are_only_predicted_are_told():
    matrix = torch.tensor([[6, 2, 1], [1, 1, 0], [0, 0, 0]])
    table = class_table({"IoU %": Result(matrix, ("road", "sky", "tram"), images=2)})
    assert table.rows[-1][-1] == "28.33"  # (6/10 + 1/4 + 0) / 3
    assert "nowhere labelled: tram. Mean IoU without: 42.50" in "\n".join(table.notes)


def test_text_is_aligned():
    lines = TextTable(["a", "number"], [["long name", "1"], ["b", "22"]], footer=True).text()
    assert lines.splitlines() == [
        "a           number",
        "──────────────────",
        "long name        1",
        "──────────────────",
        "b               22",
    ]


def test_markdown_is_escaped():
    text = TextTable(["a"], [["x|y"]], title="T", notes=["n"], strong=frozenset({0})).markdown()
    assert text == "## T\n\n| a |\n| :-- |\n| **x\\|y** |\n\nn\n"


def printed(table, **options):
    file = io.StringIO()
    Console(file=file, highlight=False, soft_wrap=True, **options).print(table)
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    table = comparison_table(ROWS, title="Streets")
    assert printed(table, width=30) == table.text()
    narrow = printed(table, width=30, force_terminal=True, color_system=None)
    assert narrow == table.text()
    wide = printed(table, width=140, force_terminal=True)
    assert "Streets" in wide and "\x1b[1m" in wide and "75.00 ± 1.00" in wide


def test_boundary_iou_is_a_column_of_the_class_table():
    matrix = torch.tensor([[6, 2], [1, 1]])
    edges = torch.tensor([[3, 0], [4, 0]])
    table = class_table({"IoU %": Result(matrix, ("road", "sky"), 2, boundary=edges)})
    assert table.header == ["class", "pixels %", "IoU %", "boundary IoU %"]
    assert [row[-1] for row in table.rows] == ["75.00", "absent", "75.00"]


def test_an_undefined_score_of_one_seed_leaves_no_spread(tmp_path):
    lost = ComparisonRow("lost", [math.nan, 0.7], 12_340_000, 3.2e10)
    table = write_table([TEACHER, ALONE, lost], tmp_path)
    assert lost.std is None and cells(table, "lost")[f"{lost.score_name} %"] == NONE
    assert json.loads((tmp_path / "table.json").read_text())["rows"][-1]["miou_std"] is None


OTHERS = [
    OtherRow("big", [0.8], {"x": [0.72], "y": [0.6]}, "teacher"),
    OtherRow("all", [0.7], {"x": [0.7, 0.68], "y": [math.nan, 0.1]}),
    OtherRow("both", [0.7], {"x": [0.7], "y": [0.1]}),
    OtherRow("one", [0.7], {"x": [0.6]}),
]


def test_only_rows_with_all_other_sets_have_a_mean_and_a_gap(tmp_path):
    write_other_table(OTHERS, tmp_path, score_name="mIoU")
    with open(tmp_path / "others.csv", newline="") as file:
        means = {row["name"]: row["mean"] for row in csv.DictReader(file)}
    assert float(means["both"]) == pytest.approx(0.4) and means["one"] == ""
    table = other_table(OTHERS, score_name="mIoU")
    both, one = cells(table, "both"), cells(table, "one")
    assert (both["mean"], both["gap"]) == ("40.00", "+26.00")
    assert (one["x"], one["mean"], one["gap"]) == ("60.00", NONE, NONE)
    assert "of rows that have them all" in table.notes[1]
    assert "of rows" not in other_table(OTHERS[:3], score_name="mIoU").notes[1]


def test_an_undefined_score_on_another_set_leaves_no_spread():
    table = other_table(OTHERS, score_name="F1")
    assert cells(table, "all")["y"] == NONE and cells(table, "all")["x"] == "69.00 ± 1.41"
