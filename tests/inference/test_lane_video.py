import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_lanes import SIZE, toy_set

from segkd.errors import ConfigError, DataError
from segkd.inference.lane_detector import LaneDetector
from segkd.inference.lane_target import Target
from segkd.inference.lane_video import detect_files
from segkd.inference.media import BrokenFrame, Frame, Source, VideoWriter, open_source
from segkd.metrics.culane_text import read_lanes


@pytest.fixture
def detector(student):
    return LaneDetector(student(options={"exist": False})[0], "cpu")


def pictures(count=3):
    return [toy_set().read(index).image for index in range(count)]


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def go(detector, source, out, **options):
    source = open_source(source)
    return detect_files(detector, source, Target.of(Path(out), source), **options)


def test_a_folder(detector, tmp_path):
    for number, image in enumerate(pictures()):
        write_image(tmp_path / f"in/a/{number}.png", image)
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    seen = []
    drive = go(
        detector,
        tmp_path / "in",
        tmp_path / "out",
        points="both",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (drive.frames, list(drive.broken)) == (3, ["broken.png"])
    assert seen == [(n, 4) for n in range(1, 5)] and drive.fps > 0
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    names = [f"a/{n}.{ending}" for n in range(3) for ending in ("lines.txt", "png")]
    assert found == [*names, "lanes.json"]
    facts = json.loads((tmp_path / "out/lanes.json").read_text())
    for number, item in enumerate(facts["frames"]):
        lanes = detector(pictures()[number])
        assert item["name"] == f"a/{number}.png"
        assert [lane["slot"] for lane in item["lanes"]] == [lane.slot for lane in lanes]
        lines = read_lanes(tmp_path / f"out/a/{number}.lines.txt")
        for lane, line, plain in zip(lanes, lines, item["lanes"], strict=True):
            np.testing.assert_allclose(line, lane.points)
            np.testing.assert_allclose(plain["points"], lane.points)
    drawn = cv2.imread(str(tmp_path / "out/a/0.png"))
    assert drawn.shape == (*SIZE, 3)
    assert (drawn[..., ::-1] != pictures()[0]).any()


def test_an_image_to_a_file_or_a_folder(detector, tmp_path):
    image = write_image(tmp_path / "road.png", pictures(1)[0])
    drive = go(detector, image, tmp_path / "found.jpg")
    assert drive.written == [tmp_path / "found.jpg", tmp_path / "found.lanes.json"]
    go(detector, image, tmp_path / "all", points="none")
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["road.png"]


def clip(path, frames):
    with VideoWriter(path, fps=10) as video:
        for image in frames:
            video.write(image)
    return path


def test_a_video(detector, tmp_path):
    source = clip(tmp_path / "drive.avi", pictures())
    drive = go(detector, source, tmp_path / "lanes.mp4", points="both")
    assert drive.written == [
        tmp_path / "lanes.mp4",
        tmp_path / "lanes_lines",
        tmp_path / "lanes.lanes.json",
    ]
    assert len(list(open_source(tmp_path / "lanes.mp4").frames())) == 3
    assert len(list((tmp_path / "lanes_lines").glob("00000*.lines.txt"))) == 3


class Broken(Source):
    """Five frames: the first and the third cannot be read."""

    def frames(self):
        for index in range(5):
            if index in (0, 2):
                yield BrokenFrame(index, f"{index:06d}", f"frame {index} is broken")
            else:
                yield Frame(index, f"{index:06d}", pictures(1)[0])


def test_broken_frames_do_not_end_a_video(detector, tmp_path):
    source = Broken(tmp_path / "drive.mp4", "video", count=5)
    drive = detect_files(detector, source, Target.of(tmp_path / "out.avi", source))
    assert (drive.frames, len(drive.broken)) == (3, 2)
    # The third is shown by the second again; the first has nothing to be shown by.
    assert len(list(open_source(tmp_path / "out.avi").frames())) == 4
    facts = json.loads((tmp_path / "out.lanes.json").read_text())
    assert [item["index"] for item in facts["frames"]] == [1, 3, 4]
    assert list(facts["broken"]) == ["000000", "000002"]


def test_nothing_readable_is_an_error(detector, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image of .*in has a prediction; the first: .*a\.png"):
        go(detector, tmp_path / "in", tmp_path / "out")


def test_attention_stands_beside_the_picture(student, tmp_path):
    image = write_image(tmp_path / "road.png", pictures(1)[0])
    detector = LaneDetector(student()[0], stages=("all",))
    go(detector, image, tmp_path / "found.png", points="none")
    height, width = cv2.imread(str(tmp_path / "found.png")).shape[:2]
    assert height == SIZE[0] and width == SIZE[1] + SIZE[1] // 2


@pytest.mark.parametrize(
    ("kind", "out", "message"),
    [
        ("folder", "x.png", "is a folder of images. Give a folder"),
        ("video", "x.png", "is a video. Give a folder or a file .mp4"),
        ("image", "x.mp4", "is an image. Give a folder or a file .png"),
        ("folder", "notes", "Give a folder"),
    ],
)
def test_targets_that_do_not_fit(tmp_path, kind, out, message):
    (tmp_path / "notes").write_text("x")
    with pytest.raises(ConfigError, match=message):
        Target.of(tmp_path / out, Source(tmp_path / "in", kind))


def test_a_picture_that_the_network_refuses_ends_nothing(detector, tmp_path, monkeypatch):
    from segkd.commands.lane import _tell

    for name, side in (("a", 72), ("b", 9), ("c", 72)):
        write_image(tmp_path / f"in/{name}.png", np.zeros((side, 2 * side, 3), np.uint8))
    detect = detector.detect

    def choosy(image):
        if image.shape[0] < 10:
            raise RuntimeError("too small")
        return detect(image)

    monkeypatch.setattr(detector, "detect", choosy)
    source = open_source(tmp_path / "in")
    target = Target.of(tmp_path / "out", source)
    drive = detect_files(detector, source, target)
    assert drive.frames == 2 and drive.broken == {"b.png": "b.png: too small"}
    with pytest.raises(DataError, match="1 of 3 images have no prediction"):  # exit code 2
        _tell(drive, source)
