"""A camera for tests: Motion JPEG over HTTP."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

BITS, SIDE = 12, 16


def picture(number):
    """An image that shows a number, as black and white squares."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    return np.repeat(np.array(bits, np.uint8), SIDE)[None, :, None].repeat(48, 0).repeat(3, 2)


def read(image):
    bits = image[24, SIDE // 2 :: SIDE, 0] > 127
    return sum(1 << bit for bit in range(BITS) if bits[bit])


class Camera(ThreadingHTTPServer):
    """Motion JPEG over HTTP: connection n ends after lengths[n] pictures.

    ``draw`` makes the picture of a number; by default it shows the number.
    """

    daemon_threads = True

    def __init__(self, lengths=(10**6,), pause=0.01, draw=picture):
        self.draw = draw
        super().__init__(("127.0.0.1", 0), _Pictures)
        self.lengths, self.pause, self.sent, self.connections = lengths, pause, 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://user:secret@127.0.0.1:{self.server_address[1]}/cam.mjpg"


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self):
        camera = self.server
        number, camera.connections = camera.connections, camera.connections + 1
        if number >= len(camera.lengths):
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        try:
            for _ in range(camera.lengths[number]):
                jpeg = cv2.imencode(".jpg", camera.draw(camera.sent))[1].tobytes()
                head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                camera.sent += 1
                time.sleep(camera.pause)
        except OSError:
            pass

    def log_message(self, *_):
        pass
