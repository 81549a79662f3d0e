"""Files that decode lanes themselves: the same lanes as by `segkd lane`."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_lanes import ToyTusimple, oracle, save_student

import segkd
from segkd.api import evaluate
from segkd.config.schema import LaneRules
from segkd.data.lane_base import lane_palette
from segkd.data.lane_masks import arranged, painted
from segkd.data.writing import write_image
from segkd.errors import ConfigError, SegKDError
from segkd.export import to_int8, to_onnx
from segkd.export.bundle import Bundle
from segkd.export.lane_decoder import LaneDecoding
from segkd.export.program import compare
from segkd.inference.lane_detector import stored_rules
from segkd.inference.lane_output import ABSENT
from segkd.lanes import LaneDetector
from segkd.metrics.culane_text import read_lanes
from segkd.models.build import network_from_file
from segkd.models.onnx_network import OnnxNetwork

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(os.environ.get("SEGKD_REAL_DATA", ""))


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    """A student that reads lanes off colours, its set, and its file.

    Its maps have plateaus, whose first maximum depends on the last bit: ``sub_pixel`` takes their
    middle. Other rules are compared in test_lane_points.
    """
    folder, rules = tmp_path_factory.mktemp("lanes"), {"threshold": 0.4, "sub_pixel": True}
    checkpoint, dataset = save_student(folder / "run", rules=rules, cut_top=20)
    path = folder / "lanes.onnx"
    written = to_onnx(network_from_file(checkpoint)[0], path, bake="lanes")
    assert "differing points" in str(written) and written.difference < 1e-3
    return checkpoint, dataset, path


def same(found, expected):
    """The same lanes, points to a thousandth of a pixel."""
    assert [lane.slot for lane in found] == [lane.slot for lane in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.points, other.points, atol=1e-3)
        assert abs(one.score - other.score) < 1e-4


def marked(path):
    """A real frame, its lanes painted in the colours of their slots."""
    import cv2

    image = cv2.imread(str(path.with_suffix("").with_suffix(".jpg")))[..., ::-1]
    label = painted(arranged(read_lanes(path), image.shape[:2], 4), image.shape[:2], 16)
    return np.where(label[..., None] > 0, lane_palette(4)[label], image // 4)


def frame_of(dataset, index):
    """A whole image of a toy set."""
    return dataset.palette[painted(dataset.slots(index), (118, 328), 5, curved=False)]


def test_the_ten_lines_of_the_page_find_the_same_lanes(lanes, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "lanes.md"
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (code,) = [block for block in found if "InferenceSession" in block]
    checkpoint, dataset, path = lanes
    shutil.copy(path, tmp_path / "student.onnx")
    write_image(tmp_path / "road.jpg", frame_of(dataset, 0))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, str(page), "exec"), names)
    expected = LaneDetector(checkpoint)("road.jpg")
    assert len(expected) == 4 == len(names["lanes"])
    for points, lane in zip(names["lanes"], expected, strict=True):
        np.testing.assert_allclose(points, lane.points, atol=2e-3)


@pytest.mark.real
def test_real_frames_of_culane(lanes, tmp_path):
    checkpoint, _, _ = lanes
    path, network = tmp_path / "camera.onnx", network_from_file(checkpoint)[0]
    to_onnx(network, path, bake="lanes", lanes=LaneDecoding.of(network, camera=(590, 1640)))
    files = sorted((ROOT / "culane_sample").rglob("*.lines.txt"))
    own, exported = LaneDetector(checkpoint), LaneDetector(path)
    points = 0
    for file in files:
        image = marked(file)
        expected = own(image)
        same(exported(image), expected)
        points += sum(len(lane.points) for lane in expected)
    assert len(files) > 10 and points > 10 * len(files)


def test_frames_of_other_sizes_are_scaled(lanes):
    """Another camera than the file's: rows and rounding are those of the file's, scaled."""
    checkpoint, dataset, path = lanes
    frame = frame_of(dataset, 0)
    same(LaneDetector(path)(frame), LaneDetector(checkpoint)(frame))
    large = frame.repeat(3, 0).repeat(3, 1)
    tall = np.vstack([np.zeros((60, 984, 3), np.uint8), large])
    expected = LaneDetector(checkpoint)(tall)
    found = LaneDetector(path)(tall)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        x = np.interp(one.points[:, 1], other.points[::-1, 1], other.points[::-1, 0])
        assert np.abs(x - one.points[:, 0]).max() < 9


def test_it_runs_without_segkd(lanes):
    """The example of the documentation."""
    checkpoint, dataset, path = lanes
    image = frame_of(dataset, 0)
    session = onnxruntime.InferenceSession(path)
    batch = image[20:].transpose(2, 0, 1)[None]
    points, existence = session.run(None, {"images": batch})
    assert points.shape == (1, 4, 18, 2) and existence.shape == (1, 4)
    expected = LaneDetector(checkpoint)(image)
    assert len(expected) == 4
    for lane in expected:
        there = points[0, lane.slot][points[0, lane.slot, :, 0] != ABSENT]
        np.testing.assert_allclose(there, lane.points, atol=1e-3)


def test_the_score_is_the_same_before_and_after(lanes, tmp_path):
    checkpoint, dataset, path = lanes
    float_score = evaluate(checkpoint).score
    assert evaluate(path).score == float_score > 0.9
    images = [dataset.read(index).image for index in range(3)]
    quantized = to_int8(path, tmp_path / "lanes.int8.onnx", images, symmetric=True, as_trained=True)
    assert "rows keep their point" in str(quantized) and quantized.agreement > 0.9
    assert evaluate(quantized.path).score > 0.9
    onnx = pytest.importorskip("onnx")
    model = onnx.load(quantized.path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("zero_point"):
            assert not onnx.numpy_helper.to_array(tensor).any()


@pytest.mark.parametrize(
    "how",
    [
        {"bake": "lanes"},
        {"bake": "lanes", "resize": (98, 328)},
        {"bake": "normalize"},
        {"bake": "normalize", "resize": (98, 328)},
    ],
    ids=str,
)
def test_calibration_shows_what_a_student_sees(lanes, tmp_path, monkeypatch, how):
    """Of frames the part that `segkd lane` shows, of a dataset's images all that is left."""
    if how == {"bake": "normalize"} and torch.__version__ < (2, 12):
        pytest.skip("torch.export refuses to halve sides of any length, as this toy's tap does")
    checkpoint, dataset, _ = lanes
    network, path = network_from_file(checkpoint)[0], tmp_path / "x.onnx"
    camera = LaneDecoding.of(network, camera=(266, 656)) if how["bake"] == "lanes" else None
    to_onnx(network, path, lanes=camera, **how)
    frame = frame_of(dataset, 0).repeat(2, 0).repeat(2, 1)
    frame = np.vstack([np.full((30, 656, 3), 255, np.uint8), frame])  # a sky, never seen
    fed, feed = [], OnnxNetwork.feed
    monkeypatch.setattr(
        OnnxNetwork, "feed", lambda self, images: fed.append(images) or feed(self, images)
    )
    assert len(LaneDetector(path)(frame)) == 4
    (shown,) = fed
    fed.clear()
    to_int8(path, tmp_path / "frames.onnx", [frame])
    below = 30 + 40 if shown.shape[2:] == (266, 656) else 0  # a whole image is cut in the file
    expected = shown[:, :, below:].float()
    if how == {"bake": "normalize", "resize": (98, 328)}:  # the file resizes, `lane` did before
        expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(fed[0][:, :, below:].float(), expected)
    fed.clear()
    to_int8(path, tmp_path / "trained.onnx", [dataset.read(0).image], as_trained=True)
    found = fed[0][:, :, below:].float()
    if found.shape == expected.shape:
        assert (found - expected).abs().mean() < 3
    else:
        assert torch.equal(found, shown.float())


def test_another_size_is_refused_with_what_helps_for_a_file(lanes):
    with pytest.raises(SegKDError, match="score the student from which this file was exported"):
        evaluate(lanes[2], overrides=["data.resize=[64,64]", "eval.limit=1"])


def test_curves_are_fitted_outside(lanes):
    checkpoint, dataset, path = lanes
    image = frame_of(dataset, 1)
    wanted = ["eval.lanes.fit=poly"]
    same(*(LaneDetector(one, overrides=wanted)(image) for one in (path, checkpoint)))


def test_rules_inside_a_file_are_not_changed(lanes):
    _, _, path = lanes
    with pytest.raises(ConfigError, match=r"with 0\.4; got 0\.6"):
        LaneDetector(path, overrides=["eval.lanes.threshold=0.6"])
    with pytest.raises(ConfigError, match=r"eval\.lanes\.threshold"):
        evaluate(path, overrides=["eval.lanes.threshold=0.6"])
    with pytest.raises(ConfigError, match="--smooth"):
        LaneDetector(path, smoothing=0.5)
    with pytest.raises(SegKDError, match="decodes lanes itself"):
        network_from_file(path)[0](torch.zeros(1, 3, 98, 328, dtype=torch.uint8))


@pytest.mark.parametrize("of_earlier_version", [False, True])
def test_rules_of_the_export_are_no_contradiction(lanes, tmp_path, of_earlier_version):
    """The student's file has 0.4, the exported one 0.3: nobody asked for 0.4."""
    checkpoint, dataset, _ = lanes
    network, path = network_from_file(checkpoint)[0], tmp_path / "own.onnx"
    rules = stored_rules(network.info.payload).model_copy(update={"threshold": 0.3})
    to_onnx(network, path, bake="lanes", lanes=LaneDecoding.of(network, rules))
    if of_earlier_version:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(path)
        texts = {entry.key: entry.value for entry in model.metadata_props}
        texts["segkd.config"] = json.dumps(network.info.payload["config"])
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)
    else:
        properties = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        config = yaml.safe_load(json.loads(properties["segkd.config"]))
        assert config["eval"]["lanes"]["threshold"] == 0.3
    assert evaluate(path).score > 0.9
    assert evaluate(path, overrides=["eval.lanes.threshold=0.3", "eval.limit=1"]).score > 0.9
    image, fit = frame_of(dataset, 0), ["eval.lanes.fit=poly"]
    assert len(LaneDetector(path, overrides=fit)(image)) == 4
    assert len(LaneDetector(path, rules=LaneRules(fit="poly"))(image)) == 4
    for given in ({"overrides": ["eval.lanes.threshold=0.4"]}, {"rules": LaneRules(threshold=0.4)}):
        with pytest.raises(ConfigError, match=r"with 0\.3; got 0\.4"):
            LaneDetector(path, **given)


@pytest.mark.parametrize(
    "given", [{"device": "cuda"}, {"overrides": ["runtime.device=cuda"]}], ids=str
)
def test_it_is_not_moved_to_another_device(lanes, given):
    with pytest.raises(ConfigError, match=r"runtime.device=cuda would change nothing: lanes\.onnx"):
        LaneDetector(lanes[2], **given)


def test_a_file_of_lanes_has_one_size(lanes, tmp_path):
    checkpoint, path = lanes[0], tmp_path / "x.onnx"
    with pytest.raises(ConfigError, match=r"size: got 118x328, but the file takes .* 98x328 only"):
        segkd.export(checkpoint, path, bake="lanes", size=(118, 328))
    assert not list(tmp_path.glob("*.onnx"))


def test_the_difference_is_that_of_the_first_output():
    network = oracle()

    def run(images):
        labels, exist = (tensor.numpy() for tensor in bundle(images))
        return labels, exist + add

    bundle, shapes, add = Bundle(network, "labels"), [(1, 3, 118, 328)], 5e-6
    assert bundle.output_names == ["labels", "exist"]
    assert compare(bundle, run, shapes) == 0
    add = 1.0
    with pytest.raises(SegKDError, match="exist by 1"):
        compare(bundle, run, shapes)


def test_whole_images_at_tusimples_rows(tmp_path):
    checkpoint, dataset = save_student(tmp_path / "run", ToyTusimple, rules={"sub_pixel": True})
    network, path = network_from_file(checkpoint)[0], tmp_path / "whole.onnx"
    decoding = LaneDecoding.of(network, camera=(236, 656))
    to_onnx(network, path, bake="lanes", resize=(118, 328), lanes=decoding)
    frame = frame_of(dataset, 0)
    frame = frame.repeat(2, 0).repeat(2, 1)
    found, expected = LaneDetector(path)(frame), LaneDetector(checkpoint)(frame)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.points[:, 1], other.points[:, 1], atol=1e-3)
        assert np.abs(one.points - other.points).max() < 3
    with pytest.raises(ConfigError, match="--camera 300 656"):
        LaneDetector(path)(np.zeros((300, 656, 3), np.uint8))
