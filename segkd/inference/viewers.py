"""Pictures to watch while they are made: in a window, or as Motion JPEG in a browser here."""

import contextlib
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import numpy as np

from segkd.errors import ConfigError

HOST = "127.0.0.1"  # other machines cannot connect
_QUALITY = 85  # of JPEG
_WAIT = 1.0  # seconds after which a connection looks whether the server closes
_BOUNDARY = "frame"
_PAGE = b"""<!doctype html><meta charset="utf-8"><title>segkd</title>
<body style="margin:0;background:#111"><img src="/stream" style="width:100%" alt="lanes">"""


class Viewer(Protocol):
    """Shows one picture after the other."""

    def show(self, image: np.ndarray) -> bool:
        """Shows (H, W, 3) uint8 RGB. Returns False when the viewer was closed."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Window:
    """A window; q or Esc closes it.

    Args:
        title: of the window.

    Raises:
        ConfigError: this OpenCV has no windows, or there is no display.
    """

    def __init__(self, title: str) -> None:
        import cv2

        gui = next((x for x in cv2.getBuildInformation().splitlines() if "GUI:" in x), "")
        reason = ""
        if "NONE" in gui:
            reason = "this OpenCV is built without windows (opencv-python has them)"
        elif sys.platform == "linux" and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            reason = "there is no display here"
        if reason:
            raise ConfigError(
                f"--show: {reason}. Use --serve 8080 and open http://{HOST}:8080 in a browser, "
                "or write a video with --out lanes.mp4"
            )
        self.title = title

    def show(self, image: np.ndarray) -> bool:
        """Shows (H, W, 3) uint8 RGB. Returns False after q, Esc, or a click on the cross."""
        import cv2

        cv2.imshow(self.title, image[..., ::-1])
        key = cv2.waitKey(1) & 0xFF
        if key in (ord("q"), 27):
            return False
        with contextlib.suppress(cv2.error):  # raised by some systems for a window that is gone
            return cv2.getWindowProperty(self.title, 4) >= 1
        return False

    def close(self) -> None:
        """Closes the window, if it is still there."""
        import cv2

        with contextlib.suppress(cv2.error):
            cv2.destroyWindow(self.title)


class Server:
    """Serves pictures on this machine alone: a page at ``/``, Motion JPEG at ``/stream``, and the
    newest picture at ``/frame.jpg``.

    Pictures are compressed only while somebody watches; a slow browser misses some of them.

    Args:
        port: of 127.0.0.1; 0: any that is free.

    Attributes:
        address: to open in a browser.

    Raises:
        ConfigError: the port is taken, or out of range.
    """

    def __init__(self, port: int) -> None:
        if not 0 <= port < 2**16:
            raise ConfigError(f"--serve: got {port}, expected a port, 1 to 65535, e.g. 8080")
        try:
            self._server = _Http((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--serve {port}: {error.strerror or error}. Give another port, e.g. {port + 1}"
            ) from None
        self.address = f"http://{HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def show(self, image: np.ndarray) -> bool:
        """Hands (H, W, 3) uint8 RGB to all who watch. Always True."""
        self._server.put(image)
        return True

    def close(self) -> None:
        """Ends all connections."""
        self._server.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    # A second server on the same port would get a part of the connections
    allow_reuse_address = os.name != "nt"

    def __init__(self, *given: Any) -> None:
        self._changed = threading.Condition()
        self._image: np.ndarray | None = None
        self._jpeg: bytes | None = None
        self._number, self.closing = 0, False
        super().__init__(*given)

    def put(self, image: np.ndarray | None) -> None:
        """The next picture; None: there will be no more."""
        with self._changed:
            self.closing |= image is None
            self._image, self._jpeg = image, None
            self._number += 1
            self._changed.notify_all()

    def next(self, after: int) -> tuple[int, bytes | None]:
        """Number and JPEG of a picture later than number ``after``; None if there is none yet."""
        import cv2

        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self.closing, timeout=_WAIT)
            if self._number <= after or self._image is None:
                return after, None
            if self._jpeg is None:
                quality = (cv2.IMWRITE_JPEG_QUALITY, _QUALITY)
                self._jpeg = cv2.imencode(".jpg", self._image[..., ::-1], quality)[1].tobytes()
            return self._number, self._jpeg


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    timeout = 10.0  # of a browser that no longer takes anything

    def do_GET(self) -> None:
        # Pages of other sites reach 127.0.0.1 through a name of theirs, which stands in Host
        name = (self.headers.get("Host") or "").partition(":")[0]
        if name not in (HOST, "localhost"):
            self.send_error(403, "only http://127.0.0.1 and http://localhost")
            return
        found = {"/": self._page, "/stream": self._stream, "/frame.jpg": self._frame}.get(self.path)
        if found is None:
            self.send_error(404)
            return
        try:
            found()
        except OSError:  # the browser is gone
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Requests are not printed."""

    def _head(self, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _page(self) -> None:
        self._head("text/html; charset=utf-8", len(_PAGE))
        self.wfile.write(_PAGE)

    def _frame(self) -> None:
        _, jpeg = self.server.next(0)
        if jpeg is None:
            self.send_error(503, "no picture yet")
            return
        self._head("image/jpeg", len(jpeg))
        self.wfile.write(jpeg)

    def _stream(self) -> None:
        self._head(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        number = 0
        while not self.server.closing:
            number, jpeg = self.server.next(number)
            if jpeg is not None:
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}"
                self.wfile.write(f"{head}\r\n\r\n".encode() + jpeg + b"\r\n")
