import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from slow_culane import SIZE, slow_ious, straight

from segkd.errors import DataError, MachineError
from segkd.metrics.culane import (
    Counts,
    Rules,
    count_hits,
    evaluate_image,
    evaluate_images,
    read_lanes,
    run_tasks,
)
from segkd.metrics.culane_spans import draw
from segkd.metrics.culane_text import batch_of_lanes


def test_lanes_of_fewer_than_two_points_match_nothing_but_count():
    lane, point, nothing = straight(800, 0.3), np.array([[800.0, 589.0]]), np.empty((0, 2))
    assert evaluate_image([lane], [point, lane]) == (1, 1, 0)
    assert evaluate_image([lane, nothing], [lane]) == (1, 0, 1)
    assert evaluate_image([point], [point]) == (0, 1, 1)
    assert evaluate_image([], [nothing, lane]) == (0, 2, 0)
    assert evaluate_image([lane, point], []) == (0, 0, 2)
    assert evaluate_image([], []) == (0, 0, 0)


def test_two_points_are_a_straight_line():
    assert evaluate_image([straight(800, 0.3)], [[[800, 590], [881, 320]]]) == (1, 0, 0)


def test_the_threshold_is_strict():
    lanes = np.array([[100.0, 500], [100, 100]]), np.array([[110.0, 500], [110, 100]])
    [[iou]] = slow_ious(lanes[:1], lanes[1:])
    assert 0.4 < iou < 0.6
    below = math.nextafter(iou, 0)
    assert evaluate_image(lanes[:1], lanes[1:], iou_threshold=iou) == (0, 1, 1)
    assert evaluate_image(lanes[:1], lanes[1:], iou_threshold=below) == (1, 0, 0)


@pytest.mark.parametrize("x, same", [(100.5, 100), (101.5, 102), (100.500000001, 100), (-0.5, 0)])
def test_rounding_is_half_to_even_after_float32(x, same):
    batch = batch_of_lanes([[straight(x), straight(same)]])
    spans = draw(batch.points, batch.counts, SIZE, 30)
    assert np.array_equal(spans.left[0], spans.left[1]) and spans.area[0] == spans.area[1]


def test_the_first_of_two_close_candidates_is_taken():
    assert count_hits([[0.4984, 0.5009]], 0.5) == 0
    assert count_hits([[0.5009, 0.4984]], 0.5) == 1
    assert count_hits([[0.4984, 0.5100]], 0.5) == 1
    assert count_hits([[0.4984], [0.5009]], 0.5) == 0  # the smaller side chooses


def test_a_pair_outside_the_image_spoils_a_perfect_match():
    lane, left, right = straight(800), straight(-400), straight(2100)
    assert evaluate_image([lane], [left, lane]) == (1, 1, 0)
    assert evaluate_image([left, lane], [right, lane]) == (0, 2, 2)
    assert evaluate_image([left], [right]) == (0, 1, 1)


def test_repeated_points_break_the_spline():
    lane = straight(800, 0.3)
    broken = np.insert(lane, 5, lane[5], 0)
    assert evaluate_image([lane], [broken]) == (0, 1, 1)
    assert evaluate_image([broken], [broken]) == (1, 0, 0)
    assert evaluate_image([lane], [lane[[3, 3]]]) == (0, 1, 1)


@pytest.mark.parametrize("end, sides", [((100, 100), 178), ((800, 300), 599), ((5, 200), 15)])
def test_a_broken_lane_is_painted_as_opencv_4_does(end, sides):
    """A disc of 709 pixels, cut by the image, and two thin lines to the upper left."""
    lane = np.array([[700.0, 500], [700, 500], end])
    batch = batch_of_lanes([[lane], [lane[2:].repeat(2, 0)]])
    broken, disc = draw(batch.points, batch.counts, SIZE, 30).area.tolist()
    assert (disc == 709) == (end[0] > 15)
    assert broken - disc == sides


def test_two_broken_lanes_with_close_ends():
    lane = np.array([[700.0, 500], [700, 500], [800, 300]])
    assert evaluate_image([lane], [lane]) == (1, 0, 0)
    assert evaluate_image([lane], [lane + np.array([[0, 0], [0, 0], [4, -4]])]) == (0, 1, 1)


def test_coordinates_beyond_reason():
    lane = straight(800, 0.3)
    for far in (1e5, -1e5, 1e12, 1e39, math.inf, math.nan):
        wild = lane.copy()
        wild[4, 0] = far
        assert evaluate_image([lane], [wild, lane]) == (1, 1, 0)


def test_undefined_ratios_are_those_of_the_official_program():
    assert Counts(0, 0, 3).precision == -1 and Counts(0, 3, 0).recall == -1
    assert Counts(0, 2, 3).precision == 0 and math.isnan(Counts(0, 2, 3).f1)
    assert Counts(3, 1, 1).f1 == 0.75 and Counts(3, 1, 1).defined
    assert not Counts(0, 3, 0).defined and Counts(1, 2, 3) + Counts(1, 1, 1) == Counts(2, 3, 4)


def test_bad_arguments():
    with pytest.raises(DataError, match=r"shape \(3, 3\)"):
        evaluate_image([np.zeros((3, 3))], [])
    with pytest.raises(DataError, match="1 annotated and 2 predicted"):
        evaluate_images([[]], [[], []])
    for wrong in ({"image_size": (0, 10)}, {"lane_width": 0}, {"iou_threshold": 1.5}):
        with pytest.raises(DataError, match="expected"):
            Rules(**wrong)


def test_metrics_import_without_opencv():
    modules = ("metrics.culane", "evaluation.culane_files", "metrics.tusimple", "metrics.bdd100k")
    code = "import sys; sys.modules['cv2'] = None; import "
    code += ", ".join(f"segkd.{name}" for name in modules)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.real
def test_equals_the_official_program_on_its_cases():
    file = Path(os.environ["SEGKD_REAL_DATA"]) / "culane_metric/official_cases.json.gz"
    data = json.loads(gzip.decompress(file.read_bytes()))
    annotations, predictions, expected = [], [], []
    for case in data["cases"]:
        for text, counts in zip(case["predictions"], case["tp_fp_fn"], strict=True):
            annotations.append(read_lanes(case["annotation"].encode()))
            predictions.append(read_lanes(text.encode()))
            expected.append(counts)
    rules = Rules(tuple(data["image_size"]), data["lane_width"], data["iou_threshold"])
    assert evaluate_images(annotations, predictions, rules).tolist() == expected
    for annotation, prediction, counts in zip(annotations, predictions, expected, strict=True):
        assert list(evaluate_image(annotation, prediction)) == counts


def test_a_process_that_ends_is_told():
    with pytest.raises(MachineError, match=r"one of 2 processes .* was ended.*--workers 1"):
        list(run_tasks(os._exit, [3, 3], 2))
