import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from segkd.errors import ConfigError
from segkd.inference.viewers import Server, Window


@pytest.fixture
def server():
    server = Server(0)
    yield server
    server.close()


def get(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read()


def colour(level):
    return np.full((40, 60, 3), (level, 0, 255 - level), np.uint8)


def test_the_newest_picture_and_a_page(server):
    for level in (10, 200):
        assert server.show(colour(level))
    kind, data = get(f"{server.address}/frame.jpg")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert kind == "image/jpeg" and np.abs(image.mean((0, 1)) - (200, 0, 55)).max() < 4
    kind, data = get(server.address)
    assert kind.startswith("text/html") and b'src="/stream"' in data


def test_the_stream_is_a_video_for_others(server):
    """OpenCV reads it as the stream of a camera."""
    done = threading.Event()

    def show():
        level = 0
        while not done.wait(0.02):
            server.show(colour(level % 250))
            level += 10

    thread = threading.Thread(target=show)
    thread.start()
    capture = cv2.VideoCapture(f"{server.address}/stream", cv2.CAP_FFMPEG)
    reds = [capture.read()[1][..., 2].mean() for _ in range(5)]
    capture.release()
    done.set()
    thread.join()
    assert len({round(red) for red in reds}) > 1


def test_only_this_machine_and_no_foreign_name(server):
    assert server._server.server_address[0] == "127.0.0.1"
    for headers, path, code in (
        ({"Host": "evil.example:80"}, "/frame.jpg", 403),
        ({}, "/etc/passwd", 404),
        ({}, "/frame.jpg", 503),  # no picture yet
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(server.address + path, **headers)
        assert error.value.code == code


def test_a_port_that_is_taken(server):
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"--serve {port}: .*Give another port"):
        Server(port)
    with pytest.raises(ConfigError, match="1 to 65535"):
        Server(70000)


def test_a_window_where_there_is_none(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:    NONE\n")
    with pytest.raises(ConfigError, match="--serve 8080 and open"):
        Window("x")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:    GTK3\n")
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no display"):
        Window("x")


def test_a_window_that_was_closed_by_its_cross(monkeypatch):
    def gone(*_):
        raise cv2.error("NULL window")

    window = Window.__new__(Window)
    window.title = "x"
    monkeypatch.setattr(cv2, "destroyWindow", gone, raising=False)
    window.close()
    monkeypatch.setattr(cv2, "imshow", lambda *_: None, raising=False)
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1, raising=False)
    monkeypatch.setattr(cv2, "getWindowProperty", gone, raising=False)
    assert not window.show(colour(3))
