"""Lanes in the engine: the official score decides, in a run, a recipe and on the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from toy_lanes import ToyLanes, ToyTusimple, save_student, toy_set
from toy_run import toy_config

import segkd
from segkd import cli
from segkd.config.load import load_config
from segkd.data.reading import read_image
from segkd.engine.recipe import run_recipe
from segkd.engine.run import Run, train_run
from segkd.engine.run_folder import _lane_facts
from segkd.errors import ConfigError, DataError
from segkd.evaluation.culane_files import Scorer
from segkd.evaluation.lane_result import CulaneResult
from segkd.metrics.culane import Counts, Rules

DATA = {
    "name": "toy_lanes",
    "batch_size": 2,
    "workers": 0,
    "flip": 0.0,
    "scale": [1.0, 1.0],
    "resize": [64, 160],
}


def lane_config(out, **changes):
    changes = {"steps": 2, "data": DATA, "eval": {"every": 1}, **changes}
    return toy_config(out, **changes)


@pytest.mark.parametrize("slots", [{}, {"num_lanes": 3}, {"num_lanes": 5}])
def test_a_run_is_judged_by_f1(tmp_path, slots):
    summary = train_run(lane_config(tmp_path, data=DATA | slots))
    assert summary["score_name"] == "F1" and "miou" not in summary
    assert set(summary["categories"]) == {"normal", "night"}
    assert {"score", "best_score", "tp", "fp", "fn"} <= summary.keys()
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val/f1"]) == summary["score"] and "val/miou" not in rows[0]
    result = segkd.evaluate(tmp_path)
    assert result.score == summary["best_score"]
    assert "F1" in (tmp_path / "log.txt").read_text()


def test_the_best_checkpoint_is_the_one_of_the_highest_f1(tmp_path, monkeypatch):
    scores = iter([Counts(1, 9, 9), Counts(5, 5, 5), Counts(3, 7, 7)])
    result = lambda *_: CulaneResult(images=5, total=next(scores))  # noqa: E731
    monkeypatch.setattr(Run, "_evaluate", result)
    summary = train_run(lane_config(tmp_path, steps=3))
    best = torch.load(tmp_path / "checkpoints/best.pt", weights_only=True)
    assert (best["step"], best["score"]) == (2, 0.5)
    assert (summary["best_score"], summary["score"]) == (0.5, 0.3)


def test_options_that_lanes_do_not_have_are_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="lanes are read off the whole image"):
        train_run(lane_config(tmp_path, eval={"flip": True}))


def test_a_recipe_compares_by_f1(tmp_path):
    teacher, _ = save_student(tmp_path / "teacher", options={"exist": False})
    recipe = {
        "title": "Toy lanes",
        "out": str(tmp_path / "toys"),
        "baseline": "alone",
        "teacher": "main",
        "common": {
            "steps": 1,
            "data": DATA | {"resize": [240, 656]},
            "eval": {"lanes": {"smoothing": 13}},
            "student": {"arch": "toy"},
            "log": {"tensorboard": False},
            "runtime": {"device": "cpu", "threads": 1},
        },
        "runs": {
            "alone": {},
            "distilled": {
                "teachers": {"main": {"checkpoint": str(teacher)}},
                "methods": {"kd": {}},
            },
        },
    }
    result = run_recipe(load_config(recipe).recipe)
    report = tmp_path / "toys/report"
    assert "F1 %" in (report / "table.txt").read_text()
    header, _, alone, distilled = (report / "categories.md").read_text().splitlines()[2:6]
    assert header == "| run | normal | night |"
    assert alone.startswith("| alone |") and distilled.startswith("| distilled |")
    assert [row["score_name"] for row in result["rows"]] == ["F1"] * 3
    assert result["rows"][0]["scores"][0] > 0.9  # it finds all lanes
    picture = read_image(report / "pictures.png")
    red = (np.abs(picture.astype(int) - toy_set().palette[1]) < 30).all(2)
    assert red.sum() > 100  # annotated lanes in the colour of the first slot


def call(capfd, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return stop.value.code or 0, out, err


def test_eval_prints_categories_and_writes_official_files(tmp_path, capfd):
    path, dataset = save_student(tmp_path / "run")
    found = tmp_path / "found"
    code, out, _ = call(capfd, "eval", path, "--predictions", found)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "100.00" in line] == [
        "normal",
        "night",
        "total",
    ]
    entries = [dataset.entry(index).as_posix() for index in range(5)]
    from segkd.inference.lane_files import write_lines

    for index, entry in enumerate(entries):
        write_lines(tmp_path / "truth", entry, dataset.annotation(index).lanes)
    scorer = Scorer(entries, tmp_path / "truth", rules=Rules((118, 328), 6))
    assert scorer.score_files(found).total == Counts(tp=19)
    facts = json.loads((path.parent / "eval.json").read_text())
    assert facts["score"] == 1.0 and facts["categories"]["night"]["images"] == 3
    table = (path.parent / "eval.csv").read_text().splitlines()
    assert table[-1] == "total,5,19,0,0,1.0,1.0,1.0"


def test_eval_of_tusimple_writes_json_lines(tmp_path, capfd):
    path, _ = save_student(tmp_path / "run", ToyTusimple)
    code, out, _ = call(capfd, "eval", path, "--predictions", tmp_path / "found", "--json")
    assert code == 0 and json.loads(out)["accuracy"] == 1.0
    lines = (tmp_path / "found/predictions.json").read_text().splitlines()
    names = [json.loads(line)["raw_file"] for line in lines]
    assert names == [f"drive/{index:05d}.jpg" for index in range(5)]


def test_only_an_f1_has_thresholds(tmp_path, capfd):
    path, _ = save_student(tmp_path / "tusimple", ToyTusimple)
    code, _, err = call(capfd, "eval", path, "--iou", "0.3")
    assert code == 2 and "eval.lanes.iou would change nothing: an evaluation on" in err
    assert call(capfd, "eval", path, "eval.lanes.threshold=0.4")[0] == 0
    path, _ = save_student(tmp_path / "culane")
    assert call(capfd, "eval", path, "--iou", "0.3")[0] == 0


def test_lane_on_the_command_line(tmp_path, capfd):
    import cv2

    path, dataset = save_student(tmp_path / "run", ToyLanes)
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"in{index}.png"), dataset.read(index).image[..., ::-1])
    source = tmp_path / "in0.png"
    code, out, err = call(capfd, "lane", path, source, "--out", tmp_path / "x.png", "--attention")
    assert code == 0, err
    assert "1 of 1 images" in out and (tmp_path / "x.png").is_file()
    facts = json.loads((tmp_path / "x.lanes.json").read_text())
    assert len(facts["frames"][0]["lanes"]) == 4
    code, _, err = call(capfd, "lane", path, tmp_path / "nothing.mp4")
    assert code == 2 and "there is no such file or folder" in err and "Traceback" not in err
    code, _, err = call(capfd, "lane", path, source, "eval.lanes.threshold=7")
    assert code == 2 and "eval.lanes.threshold" in err
    code, out, _ = call(capfd, "lane", "--help")
    assert code == 0 and "Example: segkd lane" in out


def test_the_size_of_a_lane_set_is_that_of_the_first_image_that_can_be_read(monkeypatch):
    """The first one may be broken, and be left out (``data.on_error: skip``)."""
    data = toy_set()
    expected = _lane_facts(data)["lanes"]["size"]
    annotation = ToyLanes.annotation

    def broken(self, index):
        if index == 0:
            raise DataError("broken")
        return annotation(self, index)

    monkeypatch.setattr(ToyLanes, "annotation", broken)
    assert _lane_facts(data)["lanes"]["size"] == expected is not None
