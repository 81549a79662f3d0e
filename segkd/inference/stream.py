"""Cameras and network streams: the newest frame at any time, and a new connection after a break.

A thread reads all frames and keeps the newest. A detector that is slower than the camera thus
misses frames, which are counted, and is never late.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import numpy as np

from segkd.errors import DataError
from segkd.inference.media import DEFAULT_FPS, BrokenFrame, Frame, Source, quiet, shown
from segkd.inference.stopping import Stop

if TYPE_CHECKING:
    import cv2

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp", "srt")
_TIMEOUT = 8.0  # seconds without an answer after which a connection has broken off
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds between attempts to connect
_FASTEST = 120.0  # frames per second; more is an error of the header
_POLL = 0.1  # seconds


def is_stream(source: str) -> bool:
    """Whether a source is a camera number, a device such as /dev/video0, or an address."""
    if re.fullmatch(r"\d{1,3}", source) or re.fullmatch(r"/dev/video\d+", source):
        return True
    return re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE) is not None


def meant_address(source: str) -> str:
    """The address that a source with a missing slash may mean; empty for anything else."""
    match = re.fullmatch(r"([a-z]+):/?([^/].*)", source, re.IGNORECASE)
    if match is None or match[1].lower() not in SCHEMES or Path(source).exists():
        return ""
    return f"{match[1]}://{match[2]}"


class Stream:
    """A camera or network stream that is read in the background; made by ``open_stream``.

    Args:
        address: camera number, device, or address.
        capture: opened.
        reconnect: seconds for which a stream that broke off is tried again.
        stop: ends ``frames`` when set.
        tell: gets a sentence about each break.

    Attributes:
        name: the address without a password.
        path: file name for results.
        fps: frames per second that the stream states, or 25.
        received, dropped: frames so far, and those of them that were not handed over.
        breaks: number of times that the connection broke off.
        ended: why there are no more frames, or "".
    """

    kind: Literal["stream"] = "stream"
    count = 0

    def __init__(
        self,
        address: str,
        capture: "cv2.VideoCapture",
        *,
        reconnect: float = 60.0,
        stop: Stop | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name, self.path = shown(address), Path(_file_name(address))
        self.fps = _rate(capture)
        self.received = self.dropped = self.breaks = 0
        self.ended = ""
        self._address, self._capture, self._reconnect = address, capture, reconnect
        self._stop, self._tell, self._closed = stop or Stop(), tell, Stop()
        self._ready, self._start = threading.Condition(), time.monotonic()
        self._newest: tuple[int, float, np.ndarray] | None = None

    def frames(self) -> Iterator[Frame | BrokenFrame]:
        """The newest frame each time, until the stream ends or is stopped; RGB uint8 (H, W, 3).

        Frames are numbered as they arrive, so that numbers of dropped ones are missing.
        """
        import cv2

        reader = threading.Thread(target=self._read, name=f"read {self.name}", daemon=True)
        reader.start()
        try:
            while not self._stop():
                with self._ready:
                    self._ready.wait_for(lambda: self._newest or self.ended, timeout=_POLL)
                    newest, self._newest = self._newest, None
                if newest is not None:
                    number, when, image = newest
                    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                    yield Frame(number, f"{number:06d}", rgb, when)
                elif self.ended:
                    return
        finally:
            self._closed.set()
            reader.join(_TIMEOUT)

    def _read(self) -> None:
        """The thread: reads and reconnects until closed, or the stream is gone for good."""
        try:
            while not self._closed():
                good, image = self._capture.read()
                if good:
                    self._keep(image)
                elif not self._closed() and not self._connected_again():
                    break
        except Exception as error:  # of OpenCV; the other thread must learn that no frame comes
            self._end(f"{type(error).__name__}: {error}")
        finally:
            self._capture.release()

    def _keep(self, image: np.ndarray) -> None:
        with self._ready:
            self.dropped += self._newest is not None
            self._newest = (self.received, time.monotonic() - self._start, image)
            self.received += 1
            self._ready.notify_all()

    def _connected_again(self) -> bool:
        """Tries to connect, with growing pauses, for as long as ``reconnect`` says."""
        self.breaks += 1
        begin, wait = time.monotonic(), _FIRST_WAIT
        while (left := begin + self._reconnect - time.monotonic()) > 0:
            self._tell(
                f"{self.name} broke off after {self.received} frames; next try in {wait:g} s"
            )
            if self._closed.wait(min(wait, left)):
                return False
            wait = min(2 * wait, _LONGEST_WAIT)
            self._capture.release()
            capture = _capture(self._address)
            good, image = capture.read() if capture.isOpened() else (False, None)
            self._capture = capture
            if good and image is not None:
                self._keep(image)
                self._tell(f"{self.name} is back")
                return True
        self._end(f"broke off, and was not back within {self._reconnect:g} s")
        return False

    def _end(self, why: str) -> None:
        with self._ready:
            self.ended = why
            self._ready.notify_all()


def open_stream(
    source: str,
    *,
    reconnect: float = 60.0,
    stop: Stop | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Stream | Source:
    """Connects to a camera number, a device or an address.

    A video file at an address, which has a known length, becomes a ``Source`` of kind video: none
    of its frames is dropped.

    Args:
        source: see ``is_stream``.
        reconnect, stop, tell: see ``Stream``.

    Raises:
        DataError: there is no such camera, nothing answers, or the scheme is unknown.
    """
    scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    if scheme and scheme not in SCHEMES:
        raise DataError(
            f"{shown(source)}: cannot read '{scheme}://'. Known: "
            f"{', '.join(f'{one}://' for one in SCHEMES)}, a camera number, or a file"
        )
    capture = _capture(source)
    if not capture.isOpened():
        capture.release()
        raise DataError(_no_stream(source, scheme))
    length = _length(capture) if scheme in ("http", "https") else 0
    if length > 0:
        fps = _rate(capture)
        capture.release()
        return Source(Path(_file_name(source)), "video", fps=fps, count=length, url=source)
    return Stream(source, capture, reconnect=reconnect, stop=stop, tell=tell)


def _file_name(source: str) -> str:
    if source.isdecimal():
        return f"camera{source}"
    parts = urlsplit(source)
    last = Path(parts.path).name if "://" in source else Path(source).name
    return re.sub(r"[^\w.-]+", "_", last or parts.hostname or "stream").lstrip(".") or "stream"


def _capture(source: str) -> "cv2.VideoCapture":
    """Opened, or not."""
    import cv2

    with quiet():
        if "://" not in source:
            return cv2.VideoCapture(int(source) if source.isdecimal() else source)
        milliseconds = round(1000 * _TIMEOUT)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
        limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)


def _rate(capture: "cv2.VideoCapture") -> float:
    import cv2

    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 1 <= fps <= _FASTEST else DEFAULT_FPS


def _length(capture: "cv2.VideoCapture") -> int:
    import cv2

    length = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(length) if 0 < length < 1e9 else 0


def _no_stream(source: str, scheme: str) -> str:
    if scheme:
        return (
            f"{shown(source)}: nothing answers there, or it is no video. Check the address with: "
            f"ffplay '{shown(source)}'"
        )
    cameras = (
        sorted(f"/dev/{name}" for name in os.listdir("/dev") if name.startswith("video"))
        if (os.path.isdir("/dev"))
        else []
    )
    found = f"Cameras here: {', '.join(cameras)}" if cameras else "No camera is found here"
    return f"{shown(source)} cannot be opened. {found}. Check that no other program uses it" + (
        f"; a file or folder of this name is ./{source}" if source.isdecimal() else ""
    )
