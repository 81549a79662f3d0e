import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from streams import Camera
from toy_lanes import SIZE, toy_set

from segkd import cli
from segkd.commands.lane import _target
from segkd.errors import ConfigError, DataError
from segkd.inference.bird import BirdView
from segkd.inference.lane_detector import LaneDetector
from segkd.inference.lane_results import JsonLines
from segkd.inference.lane_target import Target
from segkd.inference.lane_track import LaneTracker
from segkd.inference.lane_video import Extras, detect_files
from segkd.inference.media import BrokenFrame, Frame, Source, open_source
from segkd.inference.video_writer import VideoWriter
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


def test_images_of_one_stem_have_a_file_of_lines_each(detector, tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        write_image(tmp_path / "in/sub" / name, pictures(1)[0])
    go(detector, tmp_path / "in", tmp_path / "out", points="lines")
    found = sorted(path.name for path in (tmp_path / "out/sub").glob("*.txt"))
    assert found == ["a.jpg.lines.txt", "a.png.lines.txt", "b.lines.txt"]


def test_an_image_to_a_file_or_a_folder(detector, tmp_path):
    image = write_image(tmp_path / "road.png", pictures(1)[0])
    drive = go(detector, image, tmp_path / "found.jpg")
    assert drive.written == [tmp_path / "found.jpg", tmp_path / "found.lanes.json"]
    (tmp_path / "road.lines.txt").write_text("annotation")
    go(detector, image, tmp_path / "found.jpg", points="lines")
    assert (tmp_path / "found.lines.txt").is_file()
    assert (tmp_path / "road.lines.txt").read_text() == "annotation"
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
        ("video", "x.gif", r"file .mp4. Files can be .mp4, .*end it with a slash: .*x.gif/"),
        ("image", "x.gif", r"Files can be .png, .*x.gif/"),
        ("folder", "x.gif", r"Give a folder. If x.gif is to be a folder"),
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


def test_folders_may_have_dots(tmp_path):
    video = Source(tmp_path / "in.mp4", "video")
    for out in ("lanes_v1.2", "x.gif/", "found"):
        assert Target.of(f"{tmp_path}/{out}", video).overlay.name == "in.mp4"
    (tmp_path / "old.gif").mkdir()
    assert Target.of(tmp_path / "old.gif", video).folder == tmp_path / "old.gif"


def test_a_folder_that_holds_all_is_named_once(detector, tmp_path):
    write_image(tmp_path / "in/a.png", pictures(1)[0])
    drive = go(detector, tmp_path / "in", tmp_path / "out", points="both")
    assert drive.written == [tmp_path / "out", tmp_path / "out/lanes.json"]


def test_advice_for_training_is_not_given(detector, tmp_path):
    for name in ("one", "in/a"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"one.png: cannot be read") as single:
        open_source(tmp_path / "one.png")
    with pytest.raises(DataError, match=r"a.png: cannot be read") as several:
        go(detector, tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match=r"one.png: cannot be read") as called:
        detector(tmp_path / "one.png")
    for error in (single, several, called):
        assert "on_error" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("in/drive.mp4", "in"),
        ("in/drive.mp4", "in/drive.mp4"),
        ("in/a.png", "in"),
        ("in/a.png", "in/a.png"),
        ("in", "in"),
        ("frames", "."),
    ],
)
def test_no_overlay_replaces_what_is_read(detector, tmp_path, monkeypatch, source, out):
    write_image(tmp_path / "in/a.png", pictures(1)[0])
    clip(tmp_path / "in/drive.mp4", pictures(1))
    (tmp_path / "frames").symlink_to(tmp_path / "a")
    write_image(tmp_path / "a/b.png", pictures(1)[0])
    (tmp_path / "b.png").symlink_to(tmp_path / "a/b.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr(detector, "detect", None)  # nothing is computed
    with pytest.raises(ConfigError, match=r"is read, and a result would replace it"):
        go(detector, tmp_path / source, tmp_path / out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_overlays_of_an_earlier_run_below_the_images_are_no_source(detector, tmp_path):
    write_image(tmp_path / "in/a.png", pictures(1)[0])
    for _ in range(2):
        drive = go(detector, tmp_path / "in", tmp_path / "in/found")
        assert drive.frames == 1
        names = sorted(path.name for path in (tmp_path / "in/found").rglob("*"))
        assert names == ["a.png", "lanes.json"]
    for text in ("{", "[]", '{"frames": [3, {}]}'):  # then nobody knows whose images they are
        (tmp_path / "in/found/lanes.json").write_text(text)
        with pytest.raises(ConfigError, match=r"in/found/a.png is read, .* an earlier result"):
            go(detector, tmp_path / "in", tmp_path / "in/found")


def test_lines_of_json_replace_no_video(detector, tmp_path):
    path = clip(tmp_path / "drive.mp4", pictures(1))
    source = open_source(path)
    with pytest.raises(ConfigError, match=r"drive.mp4 is read"):
        detect_files(detector, source, None, extras=Extras(json=path))


ROAD = BirdView([[20, 117], [140, 50], [188, 50], [308, 117]], [[-2, 4], [-2, 20], [2, 20], [2, 4]])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tracks_metres_and_a_line_per_frame(detector, tmp_path):
    source = Broken(tmp_path / "drive.mp4", "video", fps=10, count=5)
    extras = Extras(tracker=LaneTracker(), bird=ROAD, json=tmp_path / "lanes.jsonl")
    drive = detect_files(detector, source, Target.of(tmp_path / "out.avi", source), extras=extras)
    found = lines_of(tmp_path / "lanes.jsonl")
    assert [item["index"] for item in found] == list(range(5))
    assert found[0] == {"name": "000000", "index": 0, "error": "frame 0 is broken"}
    assert set(found[1]) == {"name", "index", "lanes", "road"}
    assert set(found[1]["road"]) == {"offset_m", "width_m", "curvature_per_m"}
    keys = "slot name score points track seen age side_m curvature_per_m"
    assert all(set(lane) == set(keys.split()) for lane in found[1]["lanes"])
    page = (Path(__file__).parents[2] / "docs/lanes.md").read_text()
    for key in {*found[0], *found[1], *found[1]["road"], *keys.split()}:
        assert f"`{key}`" in page
    assert [lane["track"] for lane in found[4]["lanes"]] == [1, 2, 3, 4]
    facts = json.loads((tmp_path / "out.lanes.json").read_text())
    assert facts["frames"] == [item for item in found if "error" not in item]
    assert drive.written[-1] == tmp_path / "lanes.jsonl"
    height, width = next(open_source(tmp_path / "out.avi").frames()).image.shape[:2]
    assert (height, width) == (SIZE[0], (SIZE[1] + round(0.55 * SIZE[0])) // 2 * 2)


def test_tracks_of_single_images_are_refused(detector, tmp_path):
    write_image(tmp_path / "in/a.png", pictures(1)[0])
    with pytest.raises(ConfigError, match=r"--track: .*in is no video"):
        go(detector, tmp_path / "in", tmp_path / "out", extras=Extras(tracker=LaneTracker()))


def test_what_is_written_when_it_is_stopped_is_complete(detector, tmp_path):
    source = open_source(clip(tmp_path / "drive.avi", pictures()))
    asked = []

    def stop():
        asked.append(1)
        return len(asked) >= 2

    extras = Extras(json=tmp_path / "lanes.jsonl", stop=stop)
    target = Target.of(tmp_path / "out.avi", source)
    drive = detect_files(detector, source, target, extras=extras)
    assert drive.stopped and drive.frames == 2
    assert len(list(open_source(tmp_path / "out.avi").frames())) == 2
    assert len(lines_of(tmp_path / "lanes.jsonl")) == 2
    assert len(json.loads((tmp_path / "out.lanes.json").read_text())["frames"]) == 2


class Live:
    """A stream of 10 frames per second of which some were dropped."""

    kind, name, path, fps, count = "stream", "rtsp://x", Path("x"), 10.0, 0
    ended, dropped, breaks = "", 3, 0

    def frames(self):
        for when in (0.0, 0.1, 0.5, 0.6, 9.0):
            yield Frame(round(10 * when), f"{round(10 * when):06d}", pictures(1)[0], when)


def test_the_video_of_a_stream_keeps_its_time(detector, tmp_path):
    source = Live()
    extras = Extras(json=tmp_path / "lanes.jsonl")
    target = Target.of(tmp_path / "out.avi", source)
    detect_files(detector, source, target, points="none", extras=extras)
    frames = len(list(open_source(tmp_path / "out.avi").frames()))
    assert frames == 7 + 21  # 0.7 s, then a gap that is cut to two seconds, and the last frame
    assert [item["time"] for item in lines_of(tmp_path / "lanes.jsonl")] == [0, 0.1, 0.5, 0.6, 9]
    assert lines_of(tmp_path / "lanes.jsonl")[0]["dropped"] == 3
    with pytest.raises(ConfigError, match="--points json: rtsp://x has no end"):
        detect_files(detector, source, target, points="json")


def test_viewers_see_each_picture_and_can_end_it(detector, tmp_path):
    class Closed:
        shown, closed = 0, False

        def show(self, image):
            self.shown += 1
            return self.shown < 3

        def close(self):
            self.closed = True

    viewer = Closed()
    drive = detect_files(detector, Live(), None, points="none", extras=Extras(viewers=[viewer]))
    assert (viewer.shown, viewer.closed, drive.stopped) == (3, True, True)


def test_the_command_has_all_of_it(student, tmp_path, monkeypatch, capsys):
    """A fit, tracks, metres and lines of JSON on standard output, and mistakes."""
    monkeypatch.chdir(tmp_path)
    run = str(student(options={"exist": False})[0])
    clip(tmp_path / "drive.avi", pictures())
    points = {"image": [[20, 117], [140, 50], [188, 50], [308, 117]]}
    points["road"] = [[-2, 4], [-2, 20], [2, 20], [2, 4]]
    (tmp_path / "road.yaml").write_text(json.dumps(points))
    write_image(tmp_path / "frames/1.png", pictures(1)[0])
    options = ["--fit", "poly", "--track", "--bird", "road.yaml", "--json", "-"]
    assert command("lane", run, "drive.avi", "--out", "x.avi", *options) == 0
    out, err = capsys.readouterr()
    items = [json.loads(line) for line in out.splitlines()]
    assert [len(item["lanes"]) for item in items] == [4, 4, 4]
    assert items[0]["time"] == 0 and "Written: x.avi" in err
    for arguments, message in (
        (["drive.avi", "--out", "x.gif"], "end it with a slash"),
        (["drive.avi", "--bird", "no.yaml"], "no.yaml: cannot be read"),
        (["gopher://x"], "cannot read 'gopher://'"),
        (["rtsp:/me:secret@camera/1"], "Did you mean rtsp://camera/1?"),
        (["drive.avi", "--serve", "99999"], "1 to 65535"),
        (["drive.avi", "--serve", "0"], "1 to 65535"),
        (["frames", "--smooth", "0.5"], "--smooth: frames is no video"),
        (["drive.avi", "eval.lanes.iou=[0.7]"], "eval.lanes.iou would change nothing"),
        (
            ["drive.avi", "--fit", "poly", "eval.lanes.fit=spline"],
            "--fit means eval.lanes.fit=poly, and eval.lanes.fit=spline is given, too",
        ),
        (["drive.avi", "eval.lanes.fit=cubic"], "eval.lanes.fit"),
    ):
        assert command("lane", run, *arguments) == 2
        assert message in " ".join("".join(capsys.readouterr()).split())


def test_a_camera_until_ctrl_c(student, tmp_path, monkeypatch, capsys):
    """From the command line: what is recorded and written is complete, and it is no failure."""
    monkeypatch.chdir(tmp_path)
    run = str(student(options={"exist": False})[0])
    image = np.ascontiguousarray(pictures(1)[0][..., ::-1])
    detect = LaneDetector.detect

    def slow(self, frame):
        time.sleep(0.06)  # the camera has 100 frames a second
        return detect(self, frame)

    monkeypatch.setattr(LaneDetector, "detect", slow)
    camera = Camera(lengths=(10**6, 10**6), draw=lambda number: image)
    address = camera.address
    assert command("lane", run, address) == 2  # it would never end, and nobody would see anything
    assert "--serve 8080 shows them" in " ".join(capsys.readouterr().err.split())

    def stop():
        lines = tmp_path / "lanes.jsonl"
        while not lines.is_file() or lines.read_text().count("\n") < 5:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    files = ["--json", "lanes.jsonl", "--out", "seen.avi"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])  # free as soon as it is closed
    assert command("lane", run, address, "--track", "--serve", port, *files) == 0
    camera.shutdown()
    items = lines_of(tmp_path / "lanes.jsonl")
    assert len(items) >= 5 and items[-1]["dropped"] > 0
    assert [lane["track"] for lane in items[-1]["lanes"]] == [1, 2, 3, 4]
    assert len(list(open_source("seen.avi").frames())) >= 1  # as many as its time has, see above
    out, err = capsys.readouterr()
    assert "frames dropped" in out and "Written: seen.avi" in out and "lanes at http" in err
    assert "secret" not in out + err + (tmp_path / "lanes.jsonl").read_text()


def test_a_drive_is_drawn_and_its_lanes_are_detected(student, tmp_path, capsys):
    run = str(student(options={"exist": False})[0])
    short = ["--seconds", "1", "--fps", "3", "--size", "60x160"]
    assert command("demo", "lanes", "--out", str(tmp_path / "d"), "--run", run, *short) == 0
    for name in ("drive.mp4", "lanes.mp4"):
        frames = [frame.image for frame in open_source(tmp_path / "d" / name).frames()]
        assert [image.shape for image in frames] == [(60, 160, 3)] * 3
        assert np.abs(frames[0].astype(int) - frames[2]).mean() > 1
    assert len(json.loads((tmp_path / "d/lanes.lanes.json").read_text())["frames"]) == 3
    only = str(tmp_path / "e")
    assert command("demo", "lanes", "--out", only, "--run", "none", *short) == 0
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["drive.mp4"]
    assert command("demo", "lanes", "--size", "large") == 2
    assert "--size: got 'large'" in capsys.readouterr().err
    wrong = ["--out", str(tmp_path / "f"), "--run", "runs/nothing"]
    assert command("demo", "lanes", *wrong, *short) == 2
    assert "there is no checkpoint runs/nothing" in capsys.readouterr().err
    assert not (tmp_path / "f").exists(), "a wrong run is told before the drive is drawn"


def test_only_a_camera_is_connected_to_again(student, capsys):
    assert command("lane", str(student()[0]), "drive.mp4", "--reconnect", "60") == 2
    assert "--reconnect is for cameras and addresses, and drive.mp4" in capsys.readouterr().err


def test_the_network_that_ships_finds_the_lanes_of_a_drawn_drive(tmp_path):
    given = ["--seconds", "2", "--fps", "4", "--size", "180x320", "--out", str(tmp_path / "d")]
    assert command("demo", "lanes", *given) == 0
    frames = json.loads((tmp_path / "d/lanes.lanes.json").read_text())["frames"]
    names = [{lane["name"] for lane in frame["lanes"]} for frame in frames]
    both = [{"left", "right"} <= found for found in names]  # lines of the own lane
    assert len(both) == 8 and sum(both) >= 6  # not while the car changes lanes


def command(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code or 0


def test_a_command_that_is_stopped_names_what_is_left_and_what_is_broken(
    student, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        write_image(tmp_path / f"in/{number}.png", pictures(1)[0])
    (tmp_path / "in/0.png").write_bytes(b"no image")
    detect = LaneDetector.detect

    def stopped(self, frame):
        os.kill(os.getpid(), signal.SIGINT)
        return detect(self, frame)

    monkeypatch.setattr(LaneDetector, "detect", stopped)
    assert command("lane", str(student(options={"exist": False})[0]), "in") == 130
    err = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 images have no prediction" in err and "0.png" in err, err
    assert "2 of 4 images are left: the same command predicts all of them anew" in err, err


def test_files_that_would_be_lost_are_refused(detector, tmp_path):
    write_image(tmp_path / "in/0.png", pictures(1)[0])
    source = open_source(tmp_path / "in")
    target = Target.of(tmp_path / "out", source)
    for points, name in (("json", "lanes.json"), ("none", "0.png")):
        with pytest.raises(ConfigError, match="this file is written for --out as well"):
            extras = Extras(json=tmp_path / "out" / name)
            detect_files(detector, source, target, points=points, extras=extras)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"--points lines: they need a folder\. Add --out"):
        detect_files(detector, source, None, points="lines", extras=Extras(json=tmp_path / "x"))


@pytest.mark.parametrize(
    ("name", "folder"), [("2024.05.01", "2024.05.01"), (".", "here"), ("a.b.png", "a.b")]
)
def test_results_of_folders_with_dots_have_folders_of_their_own(
    name, folder, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_image(Path(name) / "0.png" if "png" not in name else Path(name), pictures(1)[0])
    target, _ = _target(open_source(name), None, None, shown=False)
    assert target.folder == Path("lanes") / folder


def test_a_file_where_a_folder_is_needed_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with (
        pytest.raises(OSError, match=r"a file, where a folder is needed.*Remove it") as caught,
        VideoWriter(file / "lanes.mp4", fps=5) as video,
    ):
        video.write(pictures(1)[0])
    assert caught.value.filename == str(file)
    with pytest.raises(DataError, match=r"--json .*a file, where a folder is needed"):
        JsonLines(file / "lanes.jsonl")
