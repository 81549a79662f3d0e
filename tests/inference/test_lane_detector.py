import cv2
import numpy as np
import pytest
import torch
from toy_lanes import SIZE, ToyBdd, ToyTusimple, toy_set
from toy_run import teacher_net, toy_config

import segkd
from segkd.config.schema import LaneRules
from segkd.engine.run_folder import RunFolder
from segkd.errors import CheckpointError, ConfigError
from segkd.evaluation.evaluator import Result
from segkd.inference.lane_pixels import lanes_of_pixels
from segkd.lanes import LaneDetector
from segkd.metrics.culane import evaluate_image


def frame_of(dataset, index):
    """The whole stored image, before ``cut_top``."""
    full = toy_set(type(dataset), num_lanes=dataset.config.num_lanes)
    return full.read(index).image


@pytest.mark.parametrize(("cut_top", "lanes"), [(0, 4), (20, 4), (0, 3), (20, 5)])
def test_a_frame_gives_its_lanes(student, cut_top, lanes):
    path, dataset = student(lanes=lanes, cut_top=cut_top)
    detect = LaneDetector(path, "cpu")
    for index in (0, 2):
        found = detect(frame_of(dataset, index))
        slots = [slot for slot, lane in enumerate(dataset.slots(index)) if lane is not None]
        assert [lane.slot for lane in found] == slots
        assert [lane.name for lane in found] == [dataset.classes[slot + 1] for slot in slots]
        assert all(0.9 < lane.score <= 1 for lane in found)
        truth = [lane for lane in dataset.slots(index) if lane is not None]
        counts = evaluate_image(
            truth, [lane.points for lane in found], image_size=SIZE, lane_width=10
        )
        assert counts == (len(truth), 0, 0)


def test_a_higher_frame_loses_rows_at_its_top(student):
    path, dataset = student()
    frame = frame_of(dataset, 0)
    sky = np.zeros((70, frame.shape[1], 3), np.uint8)
    plain, shifted = LaneDetector(path)(frame), LaneDetector(path)(np.vstack([sky, frame]))
    for lane, lower in zip(plain, shifted, strict=True):
        np.testing.assert_array_equal(lane.points + np.array([0, 70]), lower.points)
    chosen = LaneDetector(path, top=70).detect(np.vstack([sky, frame]))
    assert chosen.top == 70 and len(chosen.lanes) == 4


@pytest.mark.parametrize(("rows", "top"), [(0, 0), (40, 0), (81, 22)])
def test_a_set_with_squeezed_images_squeezes_a_higher_frame_before_it_cuts(student, rows, top):
    path, dataset = student(squeeze=1.5)
    frame = frame_of(dataset, 0)
    height, width = SIZE  # up to 1.5 · 118 = 177 rows are squeezed
    tall = cv2.resize(frame, (width, height + rows))
    found = LaneDetector(path).detect(tall)
    assert found.top == top and len(found.lanes) == 4
    if top == 0:
        plain = LaneDetector(path)(frame)
        for lane, one in zip(found.lanes, plain, strict=True):
            factor = np.array([1.0, (height + rows) / height])
            assert np.abs((lane.points + 0.5) / factor - 0.5 - one.points).max() < 1.5


def test_a_larger_frame_has_larger_coordinates(student):
    path, dataset = student()
    frame = frame_of(dataset, 0)
    large = frame.repeat(3, 0).repeat(3, 1)
    detect, seen = LaneDetector(path), []
    detect.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    plain, tripled = detect(frame), detect(large)
    assert seen == [(1, 3, *SIZE)] * 2, "the student sees what it was trained on"
    for lane, other in zip(plain, tripled, strict=True):
        assert np.abs(other.points - 3 * lane.points).max() <= 6


def test_tusimple_students_answer_at_its_rows(student):
    path, dataset = student(ToyTusimple)
    lanes = LaneDetector(path)(frame_of(dataset, 0))
    rows = np.arange(160, 720, 10) / 720 * SIZE[0]
    assert len(lanes) == 4
    assert set(lanes[1].points[:, 1]) <= set(rows)


def test_students_without_identities_give_pixels_and_their_lines(student):
    path, dataset = student(ToyBdd, lanes=1)
    frame = frame_of(dataset, 0)
    found = LaneDetector(path).detect(frame)
    np.testing.assert_array_equal(found.pixels, dataset.read(0).label)
    (lane,) = found.lanes
    truth = dataset.slots(0)[0]
    x = np.interp(lane.points[:, 1], truth[::-1, 1], truth[::-1, 0])
    inside = (lane.points[:, 1] > 35) & (lane.points[:, 1] < 110)
    assert inside.sum() > 20 and np.abs(lane.points[:, 0] - x)[inside].max() < 2


def test_lines_of_pixels_are_split_and_small_pieces_left_out():
    pixels = np.zeros((144, 100), np.uint8)
    pixels[40:, 20:23], pixels[60:, 70:71], pixels[10:13, 50:60] = 1, 1, 1
    lanes = lanes_of_pixels(pixels)
    assert [lane[0].tolist() for lane in lanes] == [[21, 143], [70, 143]]
    assert (np.diff(lanes[0][:, 1]) == -2).all()
    assert lanes_of_pixels(np.zeros((20, 20))) == []


def test_smoothing_remembers_earlier_frames_of_the_same_size(student):
    path, dataset = student(options={"exist": False})
    frame = frame_of(dataset, 0)
    dark = np.zeros_like(frame)
    assert LaneDetector(path)(dark) == []
    steady = LaneDetector(path, smoothing=0.8)
    steady(frame)
    assert len(steady(dark)) == 4
    steady.forget()
    assert steady(dark) == []
    steady(frame)
    assert steady(dark[:-10]) == []  # another size begins anew


def test_rules_come_from_the_run_and_can_be_overridden(student):
    path, _ = student(rules={"threshold": 0.45, "variant": "matlab"})
    assert LaneDetector(path).rules == LaneRules(threshold=0.45, variant="matlab")
    changed = LaneDetector(path, overrides=["eval.lanes.threshold=0.2"])
    assert changed.rules == LaneRules(threshold=0.2, variant="matlab")
    with pytest.raises(ConfigError, match=r"eval\.lanes\.thresold"):
        LaneDetector(path, overrides=["eval.lanes.thresold=0.2"])
    for key in ("data.size=[192,480]", "eval.flip=true", "runtime.precision=bf16"):
        with pytest.raises(
            ConfigError, match=r"nothing.* only eval\.lanes\.variant, .*, runtime\.device"
        ):
            LaneDetector(path, overrides=[key])


def test_attention_of_stages(student):
    path, dataset = student()
    found = LaneDetector(path, stages=("all",)).detect(frame_of(dataset, 0))
    assert list(found.attention) == ["stage1", "stage2"]
    assert found.attention["stage2"].shape == (59, 164)
    assert found.attention["stage1"].min() == 0 and found.attention["stage1"].max() == 1
    with pytest.raises(ConfigError, match=r"no stage 'stage9'"):
        LaneDetector(path, stages=("stage9",))


def test_the_checkpoint_says_how_lanes_are_found(student):
    from segkd.models.weights import load_student_file

    path, _ = student(cut_top=20)
    payload = load_student_file(path)
    assert payload["lanes"] == {
        "metric": "culane",
        "cut_top": 20,
        "size": list(SIZE),
        "squeeze": 1.0,
    }
    assert payload["score_name"] == "F1" and "miou" not in payload
    assert segkd.load_student(path).network.info.payload["lanes"]["metric"] == "culane"


def test_a_segmentation_student_is_refused(tmp_path):
    from toy_run import ToyData

    config = toy_config(tmp_path)
    folder, data = RunFolder(config), ToyData(config.data, "val")
    result = Result(torch.eye(4, dtype=torch.int64), data.classes, 1)
    folder.save_best(teacher_net(), data, step=1, result=result)
    with pytest.raises(CheckpointError, match=r"student of 'toy', .* Use `segkd predict`"):
        LaneDetector(folder.best)


@pytest.mark.parametrize("options", [{"smoothing": 1.0}, {"smoothing": -0.1}, {"top": -1}])
def test_options_out_of_range(student, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LaneDetector(student()[0], **options)


def test_top_beyond_the_picture(student):
    path, dataset = student()
    with pytest.raises(ConfigError, match="500 rows leave nothing"):
        LaneDetector(path, top=500)(frame_of(dataset, 0))


def test_rules_and_device_are_not_lost_beside_overrides(student):
    path, _ = student()
    keys = ["eval.lanes.threshold=0.2"]
    with pytest.raises(ConfigError, match=r"rules: overrides replace them.*eval\.lanes\.KEY"):
        LaneDetector(path, rules=LaneRules(threshold=0.4), overrides=keys)
    with pytest.raises(ConfigError, match=r"runtime\.device.*abacus"):
        LaneDetector(path, device="abacus", overrides=keys)
    assert LaneDetector(path, device="cpu", overrides=keys).rules.threshold == 0.2
