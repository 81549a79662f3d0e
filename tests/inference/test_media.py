from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from segkd.errors import ConfigError, DataError
from segkd.inference import media, video_writer
from segkd.inference.media import VIDEO_ENDINGS, open_source
from segkd.inference.video_writer import VideoWriter


def clip(path, frames=6, size=(48, 64)):
    with VideoWriter(path, fps=10) as video:
        for number in range(frames):
            video.write(np.full((*size, 3), (40 * number, 0, 255 - 40 * number), np.uint8))
    return video.path


@pytest.mark.parametrize("name", [f"a{ending}" for ending in VIDEO_ENDINGS])
def test_a_video_is_written_and_read(tmp_path, name):
    source = open_source(clip(tmp_path / name))
    frames = list(source.frames())
    assert (source.kind, source.fps) == ("video", pytest.approx(10))
    if not name.endswith(("mpg", "mpeg")):  # whose headers have no number of frames
        assert source.count == 6
    assert [frame.name for frame in frames] == [f"{n:06d}" for n in range(6)]
    for number, frame in enumerate(frames):
        mean = frame.image.reshape(-1, 3).mean(0)
        np.testing.assert_allclose(mean, (40 * number, 0, 255 - 40 * number), atol=12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_format_that_cannot_be_written_becomes_avi(tmp_path):
    assert clip(tmp_path / "a.xyz") == tmp_path / "a.avi"


@pytest.mark.parametrize("name", ["a.xyz", "a.webm", "a"])
def test_a_file_that_nobody_named_is_not_replaced(tmp_path, monkeypatch, name):
    monkeypatch.setattr(video_writer, "_is_readable", lambda suffix, fps: False)
    (tmp_path / "a.avi").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"a\.avi, which would be written instead, is there"):
        clip(tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    assert clip(tmp_path / "a.avi") == tmp_path / "a.avi"  # this name was given


def test_a_format_that_opens_and_cannot_be_read_is_not_written(tmp_path, monkeypatch):
    """Motion JPEG in an MPEG stream takes frames, and the file has none."""
    monkeypatch.setattr(video_writer, "_CODECS", {})
    video_writer._is_readable.cache_clear()
    try:
        assert len(list(open_source(clip(tmp_path / "a.mpg")).frames())) == 6
    finally:
        video_writer._is_readable.cache_clear()


def test_odd_and_changing_sizes(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=5) as video:
        for size in ((47, 63), (30, 90)):
            video.write(np.zeros((*size, 3), np.uint8))
    assert [f.image.shape for f in open_source(video.path).frames()] == [(46, 62, 3)] * 2


def test_an_error_inside_leaves_no_file(tmp_path):
    video = VideoWriter(tmp_path / "a.mp4", fps=5)
    with pytest.raises(RuntimeError), video:
        video.write(np.zeros((48, 64, 3), np.uint8))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [0, 3])
def test_a_full_disk_is_told_and_keeps_what_was_written(tmp_path, monkeypatch, room):
    """``room``: frames until the disk is full."""
    left = iter([2**40] * room + [0] * 10)
    usage = lambda folder: SimpleNamespace(free=next(left))  # noqa: E731
    monkeypatch.setattr(video_writer.shutil, "disk_usage", usage)
    kept = " after 3 frames, which are in the video" if room else ""
    with pytest.raises(DataError, match=f"the disk is full{kept}. Free some space"):
        clip(tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == (["a.mp4"] if room else [])
    if room:
        assert len(list(open_source(tmp_path / "a.mp4").frames())) == 3


@pytest.mark.parametrize("name", [f"a{ending}" for ending in VIDEO_ENDINGS])
def test_a_video_that_could_not_be_written_is_an_error(tmp_path, name):
    """As on a disk with a quota, where OpenCV writes nothing without a word."""
    with pytest.raises(DataError, match="the 2 frames could not be written"):  # noqa: SIM117
        with VideoWriter(tmp_path / name, fps=10) as video:
            for _ in range(2):
                video.write(np.zeros((48, 64, 3), np.uint8))
            video._writer.release()
            video._scratch.write_bytes(b"")
    assert not list(tmp_path.iterdir())


def test_a_cut_off_video_gives_what_there_is(tmp_path):
    path = tmp_path / "a.avi"
    draw = np.random.default_rng(0)
    with VideoWriter(path, fps=5) as video:
        for _ in range(40):
            video.write(draw.integers(0, 255, (48, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = list(open_source(path).frames())
    assert 10 < len(frames) < 30 and all(frame.image is not None for frame in frames)


class Stuttering:
    """A capture whose frames 1 and 2 cannot be decoded."""

    def __init__(self):
        self.at = -1

    def read(self):
        self.at += 1
        good = self.at < 5 and self.at not in (1, 2)
        return good, np.zeros((4, 4, 3), np.uint8) if good else None

    def release(self):
        pass


def test_broken_frames_are_handed_over_without_pixels(tmp_path, monkeypatch):
    source = open_source(clip(tmp_path / "a.avi", frames=5))
    monkeypatch.setattr("segkd.inference.media._opened", lambda path: Stuttering())
    frames = list(source.frames())
    assert [frame.image is None for frame in frames] == [False, True, True, False, False]
    assert [frame.index for frame in frames] == list(range(5))
    assert "frame 2 cannot be decoded" in frames[1].error


def test_images_and_folders(tmp_path):
    for name in ("b.png", "sub/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((8, 9, 3), (10, 20, 200), np.uint8))
    (tmp_path / "c.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(tmp_path)
    frames = list(source.frames())
    assert [frame.name for frame in frames] == ["b.png", "c.png", "sub/a.jpg"]
    assert frames[1].image is None and "c.png" in frames[1].error
    assert frames[0].image[0, 0].tolist() == [200, 20, 10]
    one = open_source(tmp_path / "b.png")
    assert (one.kind, one.count) == ("image", 1) and next(one.frames()).name == "b.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file or folder"),
        (lambda path: path.mkdir(), "no image in this folder"),
        (lambda path: path.write_bytes(b""), "cannot be read as a video: it is empty"),
        (lambda path: path.write_text("hello" * 99), "OpenCV finds no video in it"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, make, message):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(DataError, match=message) as error:
        open_source(path)
    assert str(path) in str(error.value)


def test_a_single_broken_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        open_source(tmp_path / "a.png")


def test_no_message_tells_the_password_of_an_address():
    message = str(media._no_video("http://me:secret@camera", "it is empty"))
    assert "camera" in message and "secret" not in message
