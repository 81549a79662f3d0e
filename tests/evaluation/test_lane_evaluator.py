"""Official lane scores in memory, equal to those of the written files."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError
from toy_lanes import ToyBdd, ToyLanes, ToyTusimple, oracle, toy_set
from toy_run import Share

from segkd.config.schema import EvalConfig
from segkd.errors import ConfigError, DataError
from segkd.evaluation.culane_files import Scorer
from segkd.evaluation.evaluator import evaluate_network, result_class, result_columns
from segkd.evaluation.lane_evaluator import evaluate_lanes
from segkd.evaluation.lane_pictures import lane_pictures
from segkd.evaluation.lane_result import CulaneResult
from segkd.evaluation.lane_tables import category_table, lane_csv, lane_table
from segkd.inference.lane_files import tusimple_item, write_lines, write_tusimple
from segkd.metrics.culane import Counts, Rules
from segkd.metrics.tusimple import evaluate_files
from segkd.runtime import Runtime


def run(dataset, network=None, runtime=None, on_found=None, **config):
    network = network or oracle(dataset.config.num_lanes)
    return evaluate_lanes(
        network, dataset, EvalConfig(**config), runtime or Runtime.single(), on_found=on_found
    )


@pytest.mark.parametrize("lanes", [{}, {"variant": "matlab"}, {"sub_pixel": True}])
def test_a_network_that_sees_all_lanes_finds_them_all(lanes):
    result = run(toy_set(), lanes=lanes)
    assert (result.total, result.score) == (Counts(tp=19), 1.0)
    assert {name: images for name, (images, _) in result.categories.items()} == {
        "normal": 2,
        "night": 3,
    }
    assert result.categories["night"][1] == Counts(tp=11)


def test_cut_and_resized_images_are_scored_in_stored_pixels():
    dataset, rules = toy_set(cut_top=20, resize=(196, 656)), {"smoothing": 13}
    result = run(dataset, oracle(exist=False), batch_size=2, lanes=rules)
    assert result.total == Counts(tp=19)
    unaware = toy_set(cut_top=20, resize=(196, 656))
    unaware.config = unaware.config.model_copy(update={"cut_top": 0})
    unaware.read = dataset.read
    score = run(unaware, oracle(exist=False), lanes=rules).score
    assert score < 0.5  # points are 20 rows too high


def test_a_blind_network_misses_one_slot_per_image():
    result = run(toy_set(), oracle(blind=[3]))
    assert result.total == Counts(tp=14, fp=0, fn=5)
    assert result.score == pytest.approx(2 * 14 / (2 * 14 + 5))


def test_memory_and_files_agree(tmp_path):
    dataset, found = toy_set(), {}
    network = oracle(blind=[2], exist=False)
    result = run(dataset, network, on_found=found.__setitem__, lanes={"threshold": 0.2})
    entries = [dataset.entry(index).as_posix() for index in range(5)]
    for index, entry in enumerate(entries):
        write_lines(tmp_path / "found", entry, found[index].found)
        write_lines(tmp_path / "truth", entry, dataset.annotation(index).lanes)
    categories = {name: [entries[i] for i in own] for name, own in dataset.categories.items()}
    rules = Rules((118, 328), 6)
    scorer = Scorer(entries, tmp_path / "truth", categories=categories, rules=rules)
    official = scorer.score_files(tmp_path / "found")
    assert result.total == official.total and result.categories == official.categories
    assert result.total.fn == 5


def test_thresholds_in_memory_and_in_files_agree(tmp_path):
    dataset, found = toy_set(), {}
    lanes = {"sub_pixel": True, "iou": [0.7, 0.75]}
    result = run(dataset, oracle(exist=False), on_found=found.__setitem__, lanes=lanes)
    entries = [dataset.entry(index).as_posix() for index in range(5)]
    for index, entry in enumerate(entries):
        write_lines(tmp_path / "found", entry, found[index].found)
        write_lines(tmp_path / "truth", entry, dataset.annotation(index).lanes)
    rules = Rules((118, 328), 6)
    scorer = Scorer(entries, tmp_path / "truth", rules=rules, thresholds=[0.7, 0.75])
    official = scorer.score_files(tmp_path / "found").to_dict()
    shown = result.to_dict()
    assert shown["thresholds"] == official["thresholds"]
    assert shown["mean_f1"] == official["mean_f1"] > 0
    assert shown["thresholds"]["0.7"]["tp"] > shown["thresholds"]["0.75"]["tp"] > 0
    assert result.score == shown["thresholds"]["0.7"]["f1"]
    assert list(result.scalars()) == list(
        result_columns(dataset, EvalConfig(lanes={"iou": [0.7, 0.75]}))
    )
    assert result.scalars()["val/mf1"] == shown["mean_f1"]
    assert lane_table(result).header[-3:] == ["F1@70 %", "F1@75 %", "mF1 %"]
    header, *rows = (line.split(",") for line in lane_csv(result).splitlines())
    assert header[-2:] == ["f1@75", "mf1"] and float(rows[-1][-1]) == shown["mean_f1"]
    with pytest.raises(ValidationError, match="stands twice"):
        EvalConfig(lanes={"iou": [0.5, 0.5]})


def test_tusimple_in_memory_and_in_files_agree(tmp_path):
    dataset, found = toy_set(ToyTusimple), {}
    result = run(dataset, oracle(blind=[1]), on_found=found.__setitem__)
    guesses = [tusimple_item(str(i), lanes) for i, lanes in found.items()]
    truths = []
    for index in range(5):
        truth = dataset.annotation(index)
        lanes = [dict(zip(lane[:, 1], lane[:, 0], strict=True)) for lane in truth.lanes]
        rows = truth.rows.tolist()
        truths.append(
            {
                "raw_file": str(index),
                "h_samples": rows,
                "lanes": [[lane.get(y, -2) for y in rows] for lane in lanes],
            }
        )
    write_tusimple(tmp_path / "found", guesses)
    write_tusimple(tmp_path / "truth", truths)
    official = evaluate_files(tmp_path / "found", tmp_path / "truth")
    assert result.accuracy == pytest.approx(official.accuracy, abs=1e-9)
    assert (result.fp, result.fn) == pytest.approx((official.fp, official.fn), abs=1e-9)
    assert 0.6 < result.score < 0.9 and result.fn > 0.2
    assert run(dataset).score == 1.0


def test_bdd100k_counts_pixels():
    dataset = toy_set(ToyBdd, num_lanes=1)
    result = run(dataset)
    shares = []
    for index in range(5):
        truth = dataset.annotation(index).pixels != 0
        seen = dataset.read(index).label != 0
        both = (truth & seen).sum()
        shares.append((both / truth.sum(), both / (truth | seen).sum()) if truth.any() else (0, 0))
    assert (result.accuracy, result.iou) == pytest.approx(np.mean(shares, 0))
    assert (result.score, result.score_name) == (result.iou, "IoU")
    assert run(toy_set(ToyBdd, num_lanes=1, cut_top=20)).accuracy == pytest.approx(
        np.mean([_cut_recall(dataset, index) for index in range(5)])
    )


def _cut_recall(dataset, index):
    """Nothing is found in the rows that are cut."""
    truth = dataset.annotation(index).pixels != 0
    seen = dataset.read(index).label != 0
    seen[:20] = False
    return (truth & seen).sum() / truth.sum() if truth.any() else 0


@pytest.mark.parametrize("kind", [ToyLanes, ToyTusimple, ToyBdd])
def test_shares_of_processes_add_up(kind):
    lanes = 1 if kind is ToyBdd else 4
    network = oracle(lanes, blind=[0])
    whole = run(toy_set(kind, num_lanes=lanes), network)
    parts = [run(toy_set(kind, num_lanes=lanes), network, Share(rank, 2)) for rank in range(2)]
    assert [part.images for part in parts] == [2, 3]
    if kind is ToyLanes:
        assert parts[0].total + parts[1].total == whole.total
        for name, (images, counts) in whole.categories.items():
            pair = [part.categories[name] for part in parts]
            assert pair[0][0] + pair[1][0] == images and pair[0][1] + pair[1][1] == counts
    else:
        mean = sum(part.score * part.images for part in parts) / 5
        assert mean == pytest.approx(whole.score)


def test_annotations_are_read_once_for_all_evaluations():
    dataset = toy_set()
    first = run(dataset)
    read = len(dataset.read_annotations)
    assert read == 5
    assert run(dataset) == first and len(dataset.read_annotations) == read


def test_limit_and_categories_of_what_is_left():
    result = run(toy_set(), limit=3)
    assert result.images == 3 and result.categories["night"][0] == 1
    assert result.total == Counts(tp=11)


def test_broken_images_are_skipped_or_raised():
    result = run(toy_set(broken=1, on_error="skip"))
    assert (result.images, result.skipped) == (4, 1) and result.total.tp == 15
    with pytest.raises(DataError, match="image 1 is broken"):
        run(toy_set(broken=1))


def test_mistakes_are_refused():
    with pytest.raises(DataError, match="has no annotation"):
        run(toy_set(unlabelled=True))
    with pytest.raises(ConfigError, match="network has 3 classes, but the dataset has 5"):
        run(toy_set(), oracle(2))
    for options in ({"flip": True}, {"scales": [0.5, 1.0]}, {"sliding": 64}):
        with pytest.raises(ConfigError, match="lanes are read off the whole image"):
            run(toy_set(), **options)
    with pytest.raises(ConfigError, match="no boundary IoU"):
        run(toy_set(), boundary=True)


def test_the_evaluator_chooses_by_task():
    result = evaluate_network(oracle(), toy_set(), EvalConfig(), Runtime.single())
    assert isinstance(result, CulaneResult) and result_class(toy_set()) is CulaneResult
    assert set(result.scalars()) == set(result.columns)
    network = oracle().train()
    evaluate_network(network, toy_set(), EvalConfig(), Runtime.single())
    assert network.training


def test_undefined_numbers():
    nothing = CulaneResult(images=2)
    assert math.isnan(nothing.score) and nothing.to_dict()["f1"] is None
    json.dumps(nothing.to_dict(), allow_nan=False)
    missed = CulaneResult(images=2, total=Counts(0, 3, 4))
    assert missed.score == 0.0
    only_false = CulaneResult(images=2, total=Counts(0, 3, 0))
    assert only_false.to_dict()["recall"] is None and only_false.scalars()["val/recall"] == 0


def test_runs_beside_each_other_by_category():
    def summary(normal: tuple, cross: tuple) -> dict:
        return {
            "categories": {"normal": Counts(*normal).to_dict(), "cross": Counts(*cross).to_dict()}
        }

    table = category_table(
        {
            "enet": [summary((3, 1, 1), (0, 2, 0)), summary((1, 3, 3), (0, 5, 0))],
            "sad": [summary((0, 0, 4), (0, 0, 0))],
        }
    )
    assert table.header == ["run", "normal", "cross (FP)"]
    assert table.rows == [["enet", "50.00", "7"], ["sad", "–", "0"]]


def test_predictions_replace_no_annotations(tmp_path):
    """With the folder of the set itself they did, so that the score became perfect."""
    given = EvalConfig(), Runtime.single()
    (tmp_path / "drive").mkdir()
    annotation = tmp_path / "drive" / "00000.lines.txt"
    annotation.write_text("1 2 3 4\n")
    (tmp_path / "drive" / "00000.jpg").write_bytes(b"image")
    with pytest.raises(ConfigError, match=r"is the folder of 'toy_lanes' itself .*00000\.jpg"):
        evaluate_network(oracle(4), toy_set(), *given, predictions=tmp_path)
    assert annotation.read_text() == "1 2 3 4\n"
    evaluate_network(oracle(4), toy_set(), *given, predictions=tmp_path / "found")
    assert (tmp_path / "found" / "drive" / "00000.lines.txt").is_file()


def test_a_sheet_leaves_out_what_an_evaluation_skips():
    sizes = [
        lane_pictures(toy_set(broken=broken, on_error="skip"), [0, 1, 2], {}, EvalConfig()).shape
        for broken in (-1, 1)
    ]
    assert sizes[1][0] < sizes[0][0] and sizes[1][1] == sizes[0][1]
    with pytest.raises(DataError, match="image 1 is broken"):
        lane_pictures(toy_set(broken=1), [0, 1, 2], {}, EvalConfig())
