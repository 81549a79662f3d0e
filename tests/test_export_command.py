"""`segkd export`: files, defaults, and mistakes."""

import json
import shlex
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from exported import pictures, toy_onnx, toy_student

import segkd
from segkd import cli
from segkd.commands.export import default_path
from segkd.commands.export_options import PICTURES
from segkd.data.base import Sample
from segkd.errors import DataError
from segkd.export.calibration import CALIBRATION_IMAGES, spread_frames, spread_images
from segkd.inference import media
from segkd.inference.video_writer import VideoWriter
from segkd.models.build import network_from_file
from segkd.models.onnx_network import OnnxNetwork

pytest.importorskip("onnxruntime")


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", *map(str, arguments)])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_a_run_is_exported_quantised_scored_and_timed(call, tmp_path):
    shutil.copytree(toy_student(), tmp_path / "run")
    code, out, _ = call("run", "--int8", "--size", 32, 48, "--repeats", 2, "--pictures", 3)
    assert code == 0
    folder = tmp_path / "run" / "export"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["student.int8.onnx", "student.json", "student.onnx"]
    facts = json.loads((folder / "student.json").read_text())
    assert facts["difference"] < 1e-4
    assert facts["scores"]["ONNX fp32"] == pytest.approx(segkd.evaluate(tmp_path / "run").miou)
    engines = [row["name"] for row in facts["latency"] if not row["name"].startswith("OpenVINO")]
    assert engines == [
        "PyTorch eager",
        "ONNX fp32",
        "ONNX int8",
    ]
    assert "cannot take student.int8.onnx, which has zero points: add --symmetric" in out
    assert "largest difference from PyTorch" in out and "mIoU %" in out and "parameters" in out
    assert OnnxNetwork(folder / "student.int8.onnx").exported["quantized"]["pictures"] == 3


def test_everything_can_be_baked_in(call, tmp_path):
    for number, picture in enumerate(pictures(2)):
        (tmp_path / "frames").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), picture)
    options = ("--bake", "labels", "--resize", 32, 48, "--no-latency", "--no-score")
    code, out, _ = call(
        toy_student(), *options, "--out", "x.onnx", "--int8", "--calibration", "frames"
    )
    assert code == 0 and "share of differing pixels" in out and "calibrated on 2" in out
    exported = OnnxNetwork(tmp_path / "x.onnx").exported
    assert exported["resize"] == [32, 48] and exported["outputs"] == ["labels"]
    assert exported["divisor"] == 1


def test_overrides_and_limit_reach_the_scores(call, monkeypatch):
    class Found:
        score, score_name = 0.25, "F1"

    asked = []

    def evaluate(source, overrides, progress):
        asked.append(overrides)
        return Found

    monkeypatch.setattr("segkd.api.evaluate", evaluate)
    code, out, _ = call(
        *(toy_student(), "--out", "x.onnx", "--int8", "--no-latency", "--size", 32, 48),
        *("--limit", 2, "eval.flip=true"),
    )
    assert code == 0 and "ONNX int8: F1 25.00 %" in out
    assert asked == [["eval.flip=true", "eval.limit=2"]] * 2


def test_the_calibration_split_does_not_hinder_the_scores(call):
    code, out, err = call(
        *(toy_student(), "--out", "x.onnx", "--int8", "--no-latency", "--size", 32, 48),
        *("--pictures", 2, "data.train_split=val"),
    )
    assert code == 0 and "ONNX int8: mIoU" in out and "no score" not in err


def test_a_network_of_one_size_takes_no_other(call, monkeypatch):
    def fixed(source):
        network, payload = network_from_file(source)
        network.fixed_size = (32, 48)
        return network, payload

    monkeypatch.setattr("segkd.inference.foreign_student.network_from_file", fixed)
    code, _, err = call(toy_student(), "--size", 64, 48)
    assert code == 2 and "size: got 64x48, but the file takes images of 32x48 only" in err


@pytest.mark.parametrize("more", [(), ("--static",)])
def test_a_size_that_the_network_cannot_take_is_not_changed_in_silence(call, more):
    options = ("--size", 30, 50, "--out", "x.onnx", "--no-latency", *more)
    code, out, _ = call(toy_student(), *options)
    assert code == 0
    assert "WARNING: --size: this network cannot take 30x50, so the file is of 32x48" in out
    code, out, _ = call(toy_student(), "--size", 32, 48, "--out", "x.onnx", "--no-latency")
    assert code == 0 and "WARNING" not in out


def test_without_labels_there_is_a_warning_instead_of_scores(call, monkeypatch):
    def evaluate(source, overrides, progress):
        raise DataError("no such set")

    monkeypatch.setattr("segkd.api.evaluate", evaluate)
    options = ("--out", "x.onnx", "--int8", "--no-latency", "--size", 32, 48)
    code, out, err = call(toy_student(), *options)
    assert code == 0 and "calibrated" in out and "warning: no score: no such set" in err


@pytest.mark.parametrize("name", ["x.pt2", "X.PT2"])
def test_pt2_and_default_names(call, tmp_path, name):
    code, out, _ = call(
        toy_student(), "--format", "pt2", "--out", name, "--size", 32, 48, "--repeats", 1
    )
    assert code == 0 and "torch.export" in out
    assert (tmp_path / name).exists()
    run = toy_student()
    assert default_path(str(run), "onnx") == run / "export" / "student.onnx"
    name = "pretrained:streets_fpn_mobilenetv3_large"
    assert str(default_path(name, "pt2")) == "streets_fpn_mobilenetv3_large.pt2"
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "mine.pt")
    assert default_path("mine.pt", "onnx").name == "mine.onnx"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "tflite"), "got 'tflite'. Known: onnx, pt2"),
        (("--bake", "all"), "got 'all'. Known: none, normalize, labels, lanes"),
        (("--format", "pt2", "--int8"), "--int8 needs --format onnx"),
        (("--out", "folder"), "--out: got 'folder', expected a file that ends with .onnx"),
        (("--out", "x.onnx", "--format", "pt2"), "expected a file that ends with .pt2"),
        (("--bake", "soup"), "--bake: got 'soup'. Known: none, normalize, labels, lanes"),
        (("--calibration", "x"), "--calibration needs --int8"),
        (("--pictures", "3"), "--pictures needs --int8"),
        (("--no-latency", "--repeats", "50"), "--repeats is for the times of the files"),
        (("--no-latency", "--threads", "1"), "--threads is for the times of the files"),
        (("--no-latency", "--compile"), "--compile is for the times of the files"),
        (("--int8", "data.crop=[32,48]"), "data.crop would change nothing"),
        (("--int8", "runtime.device=cuda"), "runtime.device would change nothing"),
        (("--int8", "--no-score", "data.batch_size=1"), "data.batch_size would change nothing"),
        (
            ("--int8", "--calibration", "frames", "data.train_split=val"),
            "data.train_split would change nothing",
        ),
        (("--int8", "--calibration", "nowhere"), "there is no such file or folder"),
        (("--int8", "data.name=camvid"), "Give --calibration FOLDER"),
        (("--resize", "30", "48"), "multiples of 8, e.g. 32 48"),
        (("--resize", "0", "48"), "resize: got 0x48, expected a height"),
        (("--size", "-8", "48"), "size: got -8x48, expected a height"),
        (("eval.flip=true",), "eval.flip=true would change nothing here"),
        (("--limit", "3"), "--limit is for scores of --int8"),
        (("--int8", "--no-score", "--limit", "3"), "--limit is for scores of --int8"),
        (("--int8", "optim.lr=1"), "optim.lr would change nothing: this export reads only data, "),
        (("--int8", "--no-score", "eval.flip=true"), "this export reads only data"),
        (("--bake", "lanes", "data.name=culane"), "this export reads only eval.lanes"),
        (("--bake", "lanes", "eval.lanes.fit=poly"), "eval.lanes.fit would change nothing"),
        (("--bake", "lanes", "eval.lanes.iou=[0.7]"), "eval.lanes.iou would change nothing"),
    ],
)
def test_mistakes_say_what_to_do_and_write_nothing(call, tmp_path, options, message):
    code, _, err = call(toy_student(), "--out", "x.onnx", *options)
    assert code == 2 and message in " ".join(err.split())
    assert not list(tmp_path.iterdir())


def test_a_place_for_no_file_is_refused_first(call, tmp_path, monkeypatch):
    monkeypatch.setattr("segkd.commands.export._write", lambda *_: pytest.fail("was exported"))
    (tmp_path / "notes.txt").touch()
    code, _, err = call(toy_student(), "--out", "notes.txt/deep/x.onnx")
    assert code == 2 and "this is a file, where a folder is needed" in err and "notes.txt" in err
    (tmp_path / "y.onnx").mkdir()
    code, _, err = call(toy_student(), "--out", "y.onnx")
    assert code == 2 and "y.onnx is a folder" in err


@pytest.mark.parametrize("text", ['["road", "sky"]', '{"source": "camera"}', "{", ""])
def test_a_json_file_of_the_user_is_not_replaced(call, tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    code, _, err = call(toy_student(), "--out", "labels.onnx")
    assert code == 2 and "labels.json is there already" in " ".join(err.split())
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_the_numbers_of_an_earlier_export_are_replaced(call, tmp_path):
    for source in ("first", "second"):
        shutil.copytree(toy_student(), tmp_path / source)
        code, _, err = call(source, "--out", "x.onnx", "--no-latency", "--size", 32, 48)
        assert code == 0, err
    assert json.loads((tmp_path / "x.json").read_text())["source"] == "second"


def test_formats_side_by_side_keep_their_numbers(call, tmp_path):
    for format in ("onnx", "pt2"):
        options = ("--format", format, "--out", f"x.{format}", "--size", 30, 50, "--no-latency")
        assert call(toy_student(), *options)[0] == 0
    for name, file in (("x.json", "x.onnx"), ("x.pt2.json", "x.pt2")):
        facts = json.loads((tmp_path / name).read_text())
        assert list(facts["files"].values()) == [file]
        assert facts["size"] == [32, 48]  # that was traced


def test_a_crash_leaves_no_numbers_of_an_earlier_export(call, tmp_path, monkeypatch):
    options = ("--out", "x.onnx", "--int8", "--no-latency", "--size", 32, 48, "--pictures", 2)
    assert call(toy_student(), *options)[0] == 0
    assert "scores" in json.loads((tmp_path / "x.json").read_text())

    def evaluate(source, overrides, progress):
        raise RuntimeError("out of order")

    monkeypatch.setattr("segkd.api.evaluate", evaluate)
    assert call(toy_student(), *options)[0] == 1
    facts = json.loads((tmp_path / "x.json").read_text())
    assert facts.keys() == {"source", "size", "difference", "files"}


def test_no_readable_image_is_told_before_a_file_is_written(call, tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "a.png").write_bytes(b"no image")
    options = ("--out", "x.onnx", "--int8", "--calibration", "frames")
    code, _, err = call(toy_student(), *options)
    assert code == 2 and "int8 needs calibration images" in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_the_line_for_tensorrt_can_be_typed(call):
    options = ("--out", "my net.int8.onnx", "--no-latency", "--size", 32, 48)
    code, out, _ = call(toy_student(), *options)
    line = next(line for line in out.splitlines() if line.startswith("TensorRT: "))
    words = shlex.split(line.removeprefix("TensorRT: "))
    assert code == 0 and "--onnx=my net.int8.onnx" in words and "--int8" not in words


@pytest.mark.parametrize("name", ["model.onnx", "MODEL.ONNX"])
def test_an_exported_file_is_no_checkpoint(call, tmp_path, name):
    shutil.copy(toy_onnx(), tmp_path / name)
    code, _, err = call(tmp_path / name, "--out", "x.onnx")
    assert code == 2 and "is an exported file" in err


@pytest.mark.parametrize("name", ["model.onnx", "model.ONNX"])
def test_eval_scores_an_exported_file_beside_it(capfd, tmp_path, name):
    shutil.copy(toy_onnx(), tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", str(tmp_path / name), "--json"])
    assert not stop.value.code
    found = json.loads(capfd.readouterr().out)
    assert found["miou"] == pytest.approx(segkd.evaluate(toy_student()).miou)
    assert (tmp_path / "model" / "eval.json").exists()


@pytest.mark.parametrize("broken", [(), (0,), (2, 3), (8, 9)])
def test_calibration_leaves_out_images_that_the_training_skips(broken):
    class Data:
        def __len__(self):
            return 10

        def read_unlabelled(self, index):
            if index in broken:
                raise DataError(f"{index} is broken")
            return Sample(index, None, str(index))

    found = spread_images(Data(), 5, skip=True)
    expected = {
        (): [0, 2, 4, 6, 8],
        (0,): [1, 2, 4, 6, 8],
        (2, 3): [0, 4, 6, 8],
        (8, 9): [0, 2, 4, 6],
    }
    assert found == expected[broken]
    if set(broken) & {0, 2, 4, 6, 8}:
        with pytest.raises(DataError, match="is broken"):
            spread_images(Data(), 5, skip=False)


def shown_number(image) -> int:
    """The index of a frame whose brightness is three times that."""
    return round(float(np.mean(image)) / 3)


def test_calibration_frames_are_spread_over_a_folder(tmp_path):
    for number in range(10):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), 3 * number, np.uint8))
    (tmp_path / "4.png").write_bytes(b"no image")
    assert [shown_number(one) for one in spread_frames(tmp_path, 5)] == [0, 2, 5, 6, 8]
    assert len(spread_frames(tmp_path)) == 9
    assert len(spread_frames(tmp_path / "3.png")) == 1


@pytest.mark.parametrize("known", [True, False])
def test_calibration_frames_are_spread_over_a_video(known, tmp_path, monkeypatch):
    writer = VideoWriter(tmp_path / "drive.avi", fps=10.0)
    with writer:
        for number in range(60):
            writer.write(np.full((48, 64, 3), 3 * number, np.uint8))
    if not known:  # a stream, or a header without their number
        opened = replace(media.open_source(writer.path), count=0)
        monkeypatch.setattr("segkd.export.calibration.open_source", lambda path: opened)
    found = [shown_number(one) for one in spread_frames(writer.path, 6)]
    assert found == ([0, 10, 20, 30, 40, 50] if known else [0, 1, 2, 3, 4, 5])


def test_the_command_and_the_function_take_as_many_frames():
    assert PICTURES == CALIBRATION_IMAGES
