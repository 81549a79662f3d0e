import contextlib
import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from segkd import cli
from segkd.commands.score import score
from segkd.errors import DataError
from segkd.metrics.tusimple import evaluate_files, evaluate_image

ROWS = list(range(160, 720, 10))


def lane(x, slant=0.0, first=0):
    """x at each row; absent in the first rows."""
    return [-2 if i < first else x + slant * (y - 160) for i, y in enumerate(ROWS)]


def slow_image(predicted, annotated, rows, run_time=0.0):
    """The rules, one point after another; the line is fitted by numpy."""
    if run_time > 200 or len(predicted) > len(annotated) + 2:
        return 0.0, 0.0, 1.0
    best, missed = [], 0
    for truth in annotated:
        seen = [(x, y) for x, y in zip(truth, rows, strict=True) if x >= 0]
        slope = np.polyfit([y for _, y in seen], [x for x, _ in seen], 1)[0] if seen[1:] else 0.0
        tolerance = 20 / math.cos(math.atan(slope))
        shares = [0.0]
        for guess in predicted:
            right = 0
            for g, t in zip(guess, truth, strict=True):
                right += abs((-100 if g < 0 else g) - (-100 if t < 0 else t)) < tolerance
            shares.append(right / len(rows))
        best.append(max(shares))
        missed += best[-1] < 0.85
    wrong = len(predicted) - len(annotated) + missed
    if len(annotated) > 4:
        missed -= missed > 0
        best.remove(min(best))
    share = max(min(4, len(annotated)), 1)
    return sum(best) / share, wrong / len(predicted) if predicted else 0.0, missed / share


def test_equals_the_slow_reference():
    rng = np.random.default_rng(0)
    for _ in range(60):
        annotated = [
            lane(rng.integers(100, 1200), rng.uniform(-1.5, 1.5), rng.integers(0, 30))
            for _ in range(rng.integers(0, 7))
        ]
        predicted = [
            [x + rng.normal(0, 14) if x >= 0 and rng.random() < 0.97 else -2 for x in truth]
            for truth in annotated[rng.integers(0, 2) :]
        ]
        predicted += [lane(500.0, 0.3)] * int(rng.integers(0, 3))
        expected = slow_image(predicted, annotated, ROWS)
        assert evaluate_image(predicted, annotated, ROWS) == pytest.approx(expected, abs=1e-12)


def test_perfect_and_empty():
    lanes = [lane(300), lane(600, 0.5, 10)]
    assert evaluate_image(lanes, lanes, ROWS) == (1.0, 0.0, 0.0)
    assert evaluate_image([], lanes, ROWS) == (0.0, 0.0, 1.0)
    assert evaluate_image([], [], ROWS) == (0.0, 0.0, 0.0)
    assert evaluate_image(lanes, [], ROWS) == (0.0, 1.0, 0.0)


def test_the_tolerance_is_strict_and_grows_with_the_slant():
    assert evaluate_image([lane(319.9)], [lane(300)], ROWS)[0] == 1.0
    assert evaluate_image([lane(320)], [lane(300)], ROWS) == (0.0, 1.0, 1.0)
    assert evaluate_image([lane(328, 1)], [lane(300, 1)], ROWS)[0] == 1.0  # 20 √2 = 28.28
    assert evaluate_image([lane(328.3, 1)], [lane(300, 1)], ROWS)[0] == 0.0


def test_absent_rows_count_as_right_if_absent_on_both_sides():
    truth, guess = lane(300, first=28), lane(900, first=28)
    assert evaluate_image([guess], [truth], ROWS) == (0.5, 1.0, 1.0)


def test_85_percent_is_found():
    rows = ROWS[:20]
    truth = [300] * 20
    assert evaluate_image([[300] * 17 + [900] * 3], [truth], rows) == (0.85, 0.0, 0.0)
    assert evaluate_image([[300] * 16 + [900] * 4], [truth], rows) == (0.8, 1.0, 1.0)


def test_one_prediction_may_serve_two_lanes():
    assert evaluate_image([lane(300)], [lane(295), lane(305)], ROWS) == (1.0, -1.0, 0.0)


def test_one_of_five_lanes_is_forgiven():
    lanes = [lane(x) for x in (100, 300, 500, 700, 900)]
    assert evaluate_image(lanes[:4], lanes, ROWS) == (1.0, 0.0, 0.0)
    assert evaluate_image(lanes[:3], lanes, ROWS) == (0.75, 0.0, 0.25)


def test_slow_or_too_many():
    lanes = [lane(300)]
    assert evaluate_image(lanes, lanes, ROWS, run_time=200)[0] == 1.0
    assert evaluate_image(lanes, lanes, ROWS, run_time=200.1) == (0.0, 0.0, 1.0)
    assert evaluate_image(lanes * 3, lanes, ROWS) == (1.0, 2 / 3, 0.0)
    assert evaluate_image(lanes * 4, lanes, ROWS) == (0.0, 0.0, 1.0)


def test_lengths_must_agree():
    with pytest.raises(DataError, match="predicted lane 2 has 3 points, but h_samples has 56"):
        evaluate_image([lane(1), [1, 2, 3]], [lane(1)], ROWS)
    with pytest.raises(DataError, match="h_samples is empty"):
        evaluate_image([], [], [])


# Files.


def write(path, items):
    path.write_text(
        "\n".join(item if isinstance(item, str) else json.dumps(item) for item in items)
    )
    return path


@pytest.fixture
def files(tmp_path):
    truth = [{"raw_file": f"{i}.jpg", "lanes": [lane(300)], "h_samples": ROWS} for i in range(2)]
    guess = [
        {"raw_file": "1.jpg", "lanes": [lane(300)], "run_time": 10},
        {"raw_file": "0.jpg", "lanes": [lane(900)], "run_time": 10},
    ]
    return tmp_path, truth, guess


def scored(folder, truth, guess):
    return evaluate_files(write(folder / "guess.json", guess), write(folder / "truth.json", truth))


def test_files_are_joined_by_name(files):
    result = scored(*files)
    assert (result.accuracy, result.fp, result.fn, result.images) == (0.5, 0.5, 0.5, 2)


def test_missing_predictions_are_scored_and_reported(files):
    folder, truth, guess = files
    result = scored(folder, truth, [*guess[:1], ""])
    assert (result.accuracy, result.fp, result.fn) == (0.5, 0.0, 0.5)
    assert result.missing_predictions == ["0.jpg"] and result.to_dict()["missing_predictions"] == 1


def test_bad_files_name_the_line(files):
    folder, truth, guess = files
    for wrong, message in (
        ([], "has no prediction"),
        ([guess[0], "{"], "guess.json, line 2: is not valid JSON"),
        ([guess[0], "[]"], "line 2: expected an object .* got a list"),
        ([guess[0], {"raw_file": "0.jpg", "lanes": []}], "line 2: the key run_time is missing"),
        ([guess[0], guess[0]], "line 2: 1.jpg is already in line 1"),
        ([{**guess[0], "raw_file": "7.jpg"}], "line 1: 7.jpg is not annotated in .*truth.json"),
        ([{**guess[0], "lanes": [[1]]}], "guess.json, line 1.*has 1 points"),
        ([{**guess[0], "lanes": [3]}], "guess.json, line 1"),
        ([{**guess[0], "lanes": None}], "guess.json, line 1"),
        ([{**guess[0], "run_time": "fast"}], "guess.json, line 1"),
    ):
        with pytest.raises(DataError, match=message):
            scored(folder, truth, wrong)
    with pytest.raises(DataError, match=r"truth\.json, line 1: the key h_samples is missing"):
        scored(folder, guess, guess)
    with pytest.raises(DataError, match=r"truth\.json: has no image"):
        scored(folder, [], guess)
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        evaluate_files(write(folder / "a.json", guess), folder / "none.json")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "true or false"),
        ("7", "a text"),
        ({}, "an object"),
        ([], "a list"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (10**400, "10000"),
    ],
    ids=str,
)
def test_values_of_a_wrong_type_are_named_with_file_line_and_key(files, value, name):
    folder, truth, guess = files
    shorter = [value, *lane(300)[1:]]
    for key, wrong, what in (
        ("lanes", [lane(300), shorter], "value 1 of lane 2"),
        ("h_samples", [*ROWS[:-1], value], f"value {len(ROWS)} of h_samples"),
        ("run_time", value, "run_time"),
    ):
        items = guess if key == "run_time" else truth
        place = "guess" if key == "run_time" else "truth"
        changed = [items[0], {**items[1], key: wrong}]
        both = (truth, changed) if key == "run_time" else (changed, guess)
        with pytest.raises(DataError, match=rf"{place}\.json, line 2: {what} is {name}"):
            scored(folder, *both)
    with pytest.raises(DataError, match=r"guess\.json, line 1: value 1 of lane 1 is "):
        scored(folder, truth, [{**guess[0], "lanes": [shorter]}])


@pytest.mark.parametrize("key", ["raw_file", "lanes", "h_samples"])
@pytest.mark.parametrize("value", [None, 7, True, {}])
def test_keys_of_a_wrong_type_are_named(files, key, value):
    folder, truth, guess = files
    with pytest.raises(DataError, match=rf"truth\.json, line 2: {key} is .*; expected"):
        scored(folder, [truth[0], {**truth[1], key: value}], guess)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"lanes": ' + "9" * 5000 + "}", "nul", "{"])
def test_what_is_no_json_ends_the_command_with_one_message(files, text, capfd):
    folder, truth, _ = files
    with contextlib.suppress(DataError):
        scored(folder, truth, [text])
    arguments = ["--annotations", f"{folder}/truth.json", "--predictions", f"{folder}/guess.json"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["score", "tusimple", *arguments])
    told = " ".join(capfd.readouterr().err.split())
    assert stop.value.code == 2 and "guess.json, line 1: " in told and "JSON" in told
    assert "Traceback" not in told


def test_the_command(files):
    folder, truth, guess = files
    scored(folder, truth, guess[:1])
    arguments = ["tusimple", "--annotations", f"{folder}/truth.json"]
    arguments += ["--predictions", f"{folder}/guess.json"]
    shown = CliRunner().invoke(score, arguments, catch_exceptions=False)
    assert "accuracy 50.00 %" in shown.output and "1 images have no prediction" in shown.output
    data = json.loads(CliRunner().invoke(score, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert data["accuracy"] == 0.5 and data["missing_predictions"] == 1


@pytest.mark.real
def test_equals_the_official_script_on_its_cases(tmp_path):
    file = Path(os.environ["SEGKD_REAL_DATA"]) / "tusimple_metric/official_cases.json.gz"
    data = json.loads(gzip.decompress(file.read_bytes()))
    for case in data["cases"]:
        found = evaluate_image(
            case["predicted_lanes"], case["lanes"], case["h_samples"], case["run_time"]
        )
        assert found == pytest.approx(case["accuracy_fp_fn"], abs=1e-9)
    result = scored(
        tmp_path,
        data["cases"],
        [{**case, "lanes": case["predicted_lanes"]} for case in data["cases"]],
    )
    assert (result.accuracy, result.fp, result.fn) == pytest.approx(data["mean"], abs=1e-9)
