import signal
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from streams import Camera, picture, read

from segkd.errors import DataError
from segkd.inference.media import Source, shown
from segkd.inference.stopping import Stop, stoppable
from segkd.inference.stream import is_stream, meant_address, open_stream
from segkd.inference.video_writer import VideoWriter


def first(stream, number, pause=0.0):
    found = []
    for frame in stream.frames():
        found.append(frame)
        if len(found) == number:
            break
        time.sleep(pause)
    return found


def test_a_slow_reader_gets_new_frames_and_the_others_are_counted():
    camera = Camera()
    stream = open_stream(camera.address)
    found = first(stream, 5, pause=0.3)
    camera.shutdown()
    shown_numbers, indices = [read(f.image) for f in found], [f.index for f in found]
    assert (np.diff(indices) > 1).any() and stream.dropped > 0
    # The number in the picture and the number of the frame go together: nothing is repeated
    assert np.ptp(np.subtract(shown_numbers, indices)) == 0
    assert [f.name for f in found] == [f"{i:06d}" for i in indices]
    assert np.all(np.diff([f.time for f in found]) > 0)
    left = 1 if stream._newest else 0
    assert stream.dropped + len(found) + left == stream.received
    assert "secret" not in stream.name and stream.path.name == "cam.mjpg"


def test_a_stream_that_breaks_off_is_connected_again_and_then_given_up():
    camera, told = Camera(lengths=(30, 30)), []
    stream = open_stream(camera.address, reconnect=2.0, tell=told.append)
    found = list(stream.frames())
    camera.shutdown()
    numbers = [read(frame.image) for frame in found]
    assert numbers[0] < 30 <= numbers[-1] and numbers == sorted(numbers)
    assert stream.breaks == 2 and stream.ended == "broke off, and was not back within 2 s"
    assert any("is back" in text for text in told) and "secret" not in " ".join(told)


def test_it_ends_when_it_is_stopped():
    camera, stop, found = Camera(), Stop(), []
    for frame in open_stream(camera.address, stop=stop).frames():
        found.append(frame)
        stop.set()
    camera.shutdown()
    assert len(found) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("read http")]


def test_a_video_file_at_an_address_loses_no_frame(tmp_path):
    with VideoWriter(tmp_path / "clip.avi", fps=10) as video:
        for number in range(12):
            video.write(picture(number))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = open_stream(f"http://127.0.0.1:{server.server_address[1]}/clip.avi")
    assert (source.kind, source.count, source.path.name) == ("video", 12, "clip.avi")
    assert [read(frame.image) for frame in source.frames()] == list(range(12))
    server.shutdown()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gopher://camera", r"cannot read 'gopher://'. Known: rtsp://"),
        ("http://u:secret@127.0.0.1:9/x", r"http://127.0.0.1:9/x: nothing answers there"),
        ("987", r"camera 987 cannot be opened.*a file or folder of this name is ./987"),
        ("/dev/video987", "cannot be opened"),
    ],
)
def test_what_cannot_be_opened(source, message):
    with pytest.raises(DataError, match=message) as error:
        open_stream(source)
    assert "secret" not in str(error.value)


def test_what_is_a_stream():
    assert all(map(is_stream, ("0", "12", "/dev/video0", "rtsp://a/b", "HTTP://a")))
    assert meant_address("rtsp:/a/b") == meant_address("rtsp:a/b") == "rtsp://a/b"
    assert not any(map(meant_address, ("rtsp://a/b", "a.mp4", "C:/videos", "C:\\videos", "0")))
    assert not any(map(is_stream, ("./0", "a.mp4", "/data/0", "2024", "C:\\videos")))
    assert shown("rtsp://a:b@c:554/x?y=1") == "rtsp://c:554/x?y=1"


def test_the_first_signal_is_noted_and_a_second_ends():
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop() and stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_passwords_of_a_video_at_an_address_are_not_shown():
    url = "https://user:secret@host/drive.mp4"
    assert Source(Path("drive.mp4"), "video", url=url).name == "https://host/drive.mp4"
    with pytest.raises(DataError) as caught:
        next(
            iter(
                Source(
                    Path("x"), "video", count=1, url="http://u:secret@127.0.0.1:9/x.mp4"
                ).frames()
            )
        )
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)
