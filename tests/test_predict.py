"""`segkd predict`: what is written, in which size and name, and what is refused."""

import json
import os
import signal

import cv2
import numpy as np
import pytest
from exported import pictures, toy_onnx, toy_student
from toy_run import CLASSES

import segkd
from segkd import cli
from segkd.data.predictions import read_prediction
from segkd.data.reading import read_image, read_mask
from segkd.errors import SegKDError
from segkd.inference.media import open_source
from segkd.inference.prediction_files import PredictionFiles
from segkd.inference.predictor import Predictor
from segkd.inference.video_writer import VideoWriter


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """``call(source, *options)``: exit code and output of a prediction of the toy student."""
    monkeypatch.chdir(tmp_path)

    def run(source, *options, student=None):
        arguments = ["predict", str(student or toy_student()), str(source), *map(str, options)]
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    """Three pictures of two sizes, one of them in a folder below."""
    first, second = pictures(2)
    save(tmp_path / "in" / "a.png", first)
    save(tmp_path / "in" / "b.png", second)
    save(tmp_path / "in" / "sub" / "c.bmp", pictures(1, (21, 35), seed=1)[0])
    return tmp_path / "in"


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1])


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_keeps_its_folders_and_sizes(call, folder, tmp_path):
    code, out, err = call(folder, "--out", "out", "--batch-size", "2")
    assert code == 0 and "3 of 3 images" in out and "3/3" in err
    assert files(tmp_path / "out") == [
        "classes.json",
        "format.json",
        "labels/a.png",
        "labels/b.png",
        "labels/sub/c.png",
        "legend.png",
        "overlays/a.jpg",
        "overlays/b.jpg",
        "overlays/sub/c.jpg",
    ]
    student = segkd.load_student(toy_student())
    for name, source in (("a.png", "a.png"), ("b.png", "b.png"), ("sub/c.png", "sub/c.bmp")):
        label = read_mask(tmp_path / "out" / "labels" / name)
        assert np.array_equal(label, student.predict(folder / source))
    facts = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [row["name"] for row in facts] == list(CLASSES)
    assert facts[1] == {"id": 1, "name": "road", "color": [128, 64, 128]}


def test_a_broken_picture_is_named_counted_and_passed_over(call, folder, tmp_path):
    (folder / "aa.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    code, out, err = call(folder, "--out", "out", "--batch-size", "4")
    assert code == 2 and "3 of 4 images" in out
    assert "1 of 4 images have no prediction" in err and "aa.png" in err
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 3


def test_files_that_another_prediction_has_left_are_told(call, folder, tmp_path):
    options = ("--out", "out", "--probabilities", "npz")
    assert "earlier prediction" not in call(folder, *options)[2]
    assert "earlier prediction" not in call(folder, *options)[2]  # all of them are replaced
    (folder / "a.png").unlink()
    code, _, err = call(folder, *options)
    assert code == 0 and "files of an earlier prediction (2, e.g. out/labels/a.png)" in err


def test_a_single_picture_goes_into_a_file_without_legend_or_with(call, folder, tmp_path):
    assert call(folder / "a.png", "--out", "x.png", "--no-legend", "--strength", "0")[0] == 0
    assert np.array_equal(read_image(tmp_path / "x.png"), read_image(folder / "a.png"))
    assert call(folder / "a.png", "--out", "y.png")[0] == 0
    assert read_image(tmp_path / "y.png").shape[1] > 400  # enlarged, for the names
    assert files(tmp_path) == ["in/a.png", "in/b.png", "in/sub/c.bmp", "x.png", "y.png"]


def test_by_default_it_goes_below_predictions(call, folder, tmp_path):
    assert call(folder / "a.png", "--no-overlays")[0] == 0
    assert files(tmp_path / "predictions" / "a") == [
        *("classes.json", "format.json", "labels/a.png", "legend.png")
    ]


def test_formats_and_probabilities(call, folder, tmp_path):
    options = ("--format", "palette", "--probabilities", "npz", "--no-overlays", "--out", "out")
    assert call(folder, *options, "eval.flip=true")[0] == 0
    scores = np.load(tmp_path / "out" / "probabilities" / "sub" / "c.npz")["probabilities"]
    label = read_mask(tmp_path / "out" / "labels" / "sub" / "c.png")
    assert scores.shape == (4, 21, 35) and scores.dtype == np.float16
    assert (scores.argmax(0) == label).mean() > 0.99  # but for ties after rounding
    assert call(folder / "a.png", "--probabilities", "png", "--out", "p")[0] == 0
    assert files(tmp_path / "p" / "probabilities" / "a") == [
        f"{number:03d}_{name}.png" for number, name in enumerate(CLASSES)
    ]


def test_pictures_of_the_same_stem_keep_their_ending(call, folder, tmp_path):
    save(folder / "a.bmp", pictures(1)[0])
    assert call(folder, "--out", "out", "--no-overlays")[0] == 0
    names = [path.name for path in (tmp_path / "out" / "labels").glob("*.png")]
    assert sorted(names) == ["a.bmp.png", "a.png.png", "b.png"]


def test_its_own_earlier_answers_are_no_source(call, folder):
    for _ in range(2):
        code, out, _ = call(folder, "--out", folder / "out")
        assert code == 0 and "3 of 3" in out


def test_a_video_becomes_a_video(call, tmp_path):
    with VideoWriter(tmp_path / "v.avi", fps=10) as video:
        for picture in pictures(5, (32, 48)):
            video.write(picture)
    assert call("v.avi", "--out", "out.mp4", "--no-legend", "--batch-size", "2")[0] == 0
    frames = [frame.image for frame in open_source(tmp_path / "out.mp4").frames()]
    assert len(frames) == 5 and frames[0].shape == (32, 48, 3)
    assert call("v.avi", "--out", "out", "--labels")[0] == 0
    found = files(tmp_path / "out")
    assert "v.mp4" in found and "labels/000004.png" in found and "overlays" not in str(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_written_when_it_is_stopped_is_complete(call, tmp_path, monkeypatch, number):
    with VideoWriter(tmp_path / "v.avi", fps=10) as video:
        for picture in pictures(5, (32, 48)):
            video.write(picture)
    overlay = PredictionFiles.overlay
    seen = []

    def stopped(self, *arguments):
        seen.append(overlay(self, *arguments))
        if len(seen) == 2:
            os.kill(os.getpid(), number)
        return seen[-1]

    monkeypatch.setattr(PredictionFiles, "overlay", stopped)
    code, out, err = call("v.avi", "--out", "out.avi")
    assert code == 128 + number and "2 of 2 images" in out
    assert "v.avi: not finished; what is written is complete" in " ".join(err.split())
    assert len(list(open_source(tmp_path / "out.avi").frames())) == 2


def test_a_command_that_is_stopped_names_the_images_without_prediction(
    call, folder, tmp_path, monkeypatch
):
    (tmp_path / "in/0.png").write_bytes(b"no image")
    write = PredictionFiles.write

    def stopped(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return write(self, *arguments)

    monkeypatch.setattr(PredictionFiles, "write", stopped)
    code, _, err = call("in", "--out", "out", "--batch-size", 1)
    assert code == 130 and "1 of 2 images have no prediction" in err and "0.png" in err, err
    said = " ".join(err.split())
    assert "2 of 4 images are left: the same command predicts all of them anew" in said, err


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("x/v.mp4", "x/"),
        ("x/v.mp4", "x/v.mp4"),
        ("in/a.png", "in/a.png"),
        ("overlays/a.jpg", "."),
        ("labels/a.png", "."),
        ("labels", "."),
        ("in", "."),
    ],
)
def test_no_result_replaces_what_is_read(call, folder, tmp_path, source, out):
    (tmp_path / "x").mkdir()
    with VideoWriter(tmp_path / "x/v.mp4", fps=10) as video:
        video.write(pictures(1, (32, 48))[0])
    for name in ("overlays/a.jpg", "labels/a.png"):
        save(tmp_path / name, pictures(1)[0])
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    code, _, err = call(source, "--out", out)
    assert code == 2 and "Give another" in " ".join(err.split())
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_the_end_of_a_video_that_is_cut_off_is_told(call, tmp_path):
    path, draw = tmp_path / "v.avi", np.random.default_rng(0)
    with VideoWriter(path, fps=10) as video:
        for _ in range(20):
            video.write(draw.integers(0, 255, (32, 48, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    seen = len(list(open_source(path).frames()))
    assert 5 < seen < 15
    code, _, err = call("v.avi", "--out", "out")
    assert code == 0 and f"warning: v.avi ends after {seen} of 20 frames" in " ".join(err.split())
    with pytest.warns(UserWarning, match=f"v.avi ends after {seen} of 20 frames"):
        assert len(segkd.load_student(toy_student()).predict(path)) == seen
    path.write_bytes(whole)
    assert "warning" not in call("v.avi", "--out", "out")[2]


def test_an_onnx_file_predicts_the_same(call, folder, tmp_path):
    for student, out in ((toy_student(), "one"), (toy_onnx(), "two"), (toy_onnx("labels"), "3")):
        assert call(folder, "--out", out, "--no-overlays", student=student)[0] == 0
    one, two = (read_mask(tmp_path / out / "labels" / "sub" / "c.png") for out in ("one", "two"))
    assert np.array_equal(one, two)


def test_neighbours_of_one_size_are_asked_together(folder):
    student = segkd.load_student(toy_student()).network
    seen = []
    student.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    found = list(Predictor(student, batch_size=4).predictions(open_source(folder)))
    assert seen == [2, 1]
    assert [one.frame.name for one in found] == ["a.png", "b.png", "sub/c.bmp"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nowhere.png",), "there is no such file or folder"),
        (("empty",), "no image in this folder"),
        (("note.txt",), "cannot be read as a video"),
        (("in", "--out", "x.mp4"), "give a folder"),
        (("in/a.png", "--out", "x.mp4"), "give a folder or a file with the ending .png"),
        (("in/a.png", "--out", "x.png", "--labels"), "is for the overlay only"),
        (("in", "--out", "in"), "is the folder of the images itself"),
        (("in", "--format", "voc"), "21 classes"),
        (("in", "--no-labels", "--format", "palette"), "--format is of label maps"),
        (("in", "--no-overlays", "--strength", "0.6"), "--strength is for overlays"),
        (("in", "--no-overlays", "--no-legend"), "--no-legend is for overlays"),
        (("in", "--format", "grey"), "got 'grey'. Known: labels, palette"),
        (("in", "--probabilities", "csv"), "got 'csv'. Known: npz, png"),
        (("in", "--no-overlays", "--no-labels"), "nothing of in would be written. Add --labels"),
        (("v.avi", "--no-overlays"), "nothing of v.avi would be written. Add --labels"),
        (("in", "eval.flp=true"), "eval.flp would change nothing: `segkd predict` reads only"),
        (("in", "eval.batch_size=4"), "eval.batch_size would change nothing"),
        (("in", "eval.scales=big"), "eval.scales"),
    ],
)
def test_mistakes_say_what_to_do_and_write_nothing(call, folder, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no video")
    with VideoWriter(tmp_path / "v.avi", fps=10) as video:
        video.write(pictures(1, (32, 48))[0])
    before = files(tmp_path)
    code, _, err = call(*options)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err
    assert files(tmp_path) == before


def test_label_files_have_no_probabilities(call, folder):
    code, _, err = call(folder, "--probabilities", "npz", student=toy_onnx("labels"))
    assert code == 2 and "argmax is baked into" in err


def test_what_the_network_refuses_is_passed_over_like_what_cannot_be_read(
    call, folder, tmp_path, monkeypatch
):
    """Also one of a batch: the others of it are answered."""
    from toy_run import ToyNet

    toy_student()  # trained before its network becomes choosy
    compute = ToyNet.compute

    def choosy(self, images, keep):
        if images.shape[0] > 1 and images.shape[2] == 32:
            raise RuntimeError("Given input size: (1x1x1). Output size is too small\nmore")
        if images.shape[2] == 8:
            raise SegKDError("too small")
        return compute(self, images, keep)

    monkeypatch.setattr(ToyNet, "compute", choosy)
    save(folder / "tiny.png", np.full((8, 8, 3), 255, np.uint8))
    code, out, err = call(folder, "--out", "out", "--batch-size", "2")
    assert code == 2 and "3 of 4 images" in out and "Traceback" not in err
    assert "1 of 4 images have no prediction" in err and "tiny.png: too small" in err
    assert len(list((tmp_path / "out/labels").rglob("*.png"))) == 3


def test_stored_probabilities_are_means_of_cells_and_the_top_of_classes(call, folder, tmp_path):
    code, _, _ = call(
        *(folder, "--out", "out", "--no-overlays", "--probabilities", "npz"),
        *("--stride", "4", "--top-k", "2"),
    )
    assert code == 0
    scores = segkd.load_student(toy_student()).predict_scores(folder / "sub/c.bmp")  # 21 x 35
    found = read_prediction(tmp_path / "out/probabilities/sub/c.npz", len(CLASSES))
    assert found.size == (6, 9)
    for i, j in np.ndindex(6, 9):
        rows = slice(i * 21 // 6, -(-(i + 1) * 21 // 6))  # a sixth of the height, in whole rows
        columns = slice(j * 35 // 9, -(-(j + 1) * 35 // 9))
        mean = scores[:, rows, columns].mean(axis=(1, 2))
        np.testing.assert_allclose(found.values[:, i, j], np.sort(mean)[:-3:-1], atol=2e-3)
    code, _, err = call(folder, "--out", "out", "--top-k", "2")
    assert code == 2 and "--top-k and --stride are for --probabilities npz" in err


def test_more_classes_to_keep_than_there_are_is_told(call, folder, tmp_path):
    stored = (folder, "--no-overlays", "--probabilities", "npz")
    code, _, err = call(*stored, "--out", "all", "--top-k", len(CLASSES) + 1)
    assert (
        code == 0 and f"note: --top-k {len(CLASSES) + 1}: there are {len(CLASSES)} classes" in err
    )
    assert read_prediction(tmp_path / "all/probabilities/a.npz", len(CLASSES)).ids is None
    code, _, err = call(*stored, "--out", "exact", "--top-k", len(CLASSES))
    assert code == 0 and "note:" not in err
