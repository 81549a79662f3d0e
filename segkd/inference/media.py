"""Pictures in a row: an image, the images of a folder, or the frames of a video; and a writer.

What cannot be read does not end a run: it is handed over as a Frame without pixels.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from segkd.data.label_maps import without_label_maps
from segkd.data.paired import IMAGE_ENDINGS, images_below
from segkd.data.reading import read_image
from segkd.errors import DataError

if TYPE_CHECKING:
    import cv2

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
_PATIENCE = 30  # broken frames in a row before a video counts as ended
_FPS = 25.0  # where a file says none that makes sense
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v"}  # all others: MJPG
_FALLBACK = ".avi"  # every build of OpenCV writes Motion JPEG into it


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        index: from 0, broken ones counted.
        name: path below the folder, file name, or ``000012`` in a video.
        image: (H, W, 3) uint8 RGB; None if it cannot be read.
        error: why it cannot be read.
    """

    index: int
    name: str
    image: np.ndarray | None
    error: str = ""


@dataclass(frozen=True)
class Source:
    """Something to go through picture by picture; ``open_source`` makes it.

    Attributes:
        path: the file or folder.
        kind: what it is.
        files: of an image or a folder.
        fps: frames per second of a video.
        count: pictures; what a video's header says, which may be wrong, and 0 if it says nothing.
    """

    path: Path
    kind: Literal["image", "folder", "video"]
    files: tuple[Path, ...] = ()
    fps: float = _FPS
    count: int = 0

    def frames(self) -> Iterator[Frame]:
        return self._video_frames() if self.kind == "video" else self._file_frames()

    def _file_frames(self) -> Iterator[Frame]:
        root = self.path if self.kind == "folder" else self.path.parent
        for index, file in enumerate(self.files):
            name = file.relative_to(root).as_posix()
            try:
                yield Frame(index, name, read_image(file))
            except DataError as error:
                yield Frame(index, name, None, str(error))

    def _video_frames(self) -> Iterator[Frame]:
        import cv2

        capture = _opened(self.path)
        index, broken = 0, []
        try:
            while len(broken) < _PATIENCE:
                read, image = capture.read()
                index += 1
                if not read and index > self.count:
                    return
                if not read:
                    why = f"{self.path}: frame {index} cannot be decoded"
                    broken.append(Frame(index - 1, f"{index - 1:06d}", None, why))
                    continue
                yield from broken
                broken = []
                yield Frame(index - 1, f"{index - 1:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        finally:
            capture.release()


def open_source(path: str | Path) -> Source:
    """The pictures of an image file, a folder with images (also in folders below), or a video.

    Label maps that lie beside their images, as in the root of a data set, are none of them; nor
    are legends of earlier predictions.

    Raises:
        DataError: there is nothing, a folder without images, or a file that is no video.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        images = [file for file in images_below(path) if not _is_legend(file)]
        files = tuple(without_label_maps(images, path))
        if not files:
            raise DataError(
                f"{path}: no image in this folder. Looked for {', '.join(IMAGE_ENDINGS)}, also in "
                "folders below. Give an image, a folder with images, or a video"
            )
        return Source(path, "folder", files, count=len(files))
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file or folder. Give an image, a folder with images, or a "
            "video"
        )
    if path.name.lower().endswith(IMAGE_ENDINGS):
        read_image(path)  # a single image that cannot be read is an error, not a broken frame
        return Source(path, "image", (path,), count=1)
    return _video(path)


def _is_legend(file: Path) -> bool:
    """Whether `segkd predict` wrote this file beside its pictures."""
    return file.name == "legend.png" and file.with_name("classes.json").is_file()


def _video(path: Path) -> Source:
    import cv2

    capture = _opened(path)
    try:
        fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not capture.read()[0]:
            raise _no_video(path, "none of its frames can be decoded")
    finally:
        capture.release()
    sane = 0 < fps <= 1000  # NaN, 0 and 90000 occur in headers
    return Source(path, "video", fps=float(fps) if sane else _FPS, count=max(0, int(count)))


def _opened(path: Path) -> "cv2.VideoCapture":
    import cv2

    if not path.stat().st_size:
        raise _no_video(path, "it is empty")
    with _quiet():
        capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        capture.release()
        raise _no_video(path, "OpenCV finds no video in it")
    return capture


def _no_video(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: cannot be read as a video: {reason}. Check that it plays, or convert it: "
        f"ffmpeg -i {path.name} -c:v libx264 converted.mp4"
    )


class VideoWriter:
    """Writes frames to a video, which appears under its name once it is complete.

    ``with VideoWriter(path, fps=25) as video: video.write(frame)``. The first frame decides the
    size, even sides as codecs ask for; later ones are brought to it. An error inside leaves no
    file.

    Attributes:
        path: of the video. Where OpenCV cannot write the wanted format, its suffix becomes .avi.
        frames: number written so far.
    """

    def __init__(self, path: str | Path, *, fps: float) -> None:
        self.path, self.fps, self.frames = Path(path), fps, 0
        self._size: tuple[int, int] | None = None
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._scratch, self.path)
        else:
            with contextlib.suppress(OSError):
                self._scratch.unlink(missing_ok=True)

    def write(self, image: np.ndarray) -> None:
        """Appends (H, W, 3) uint8 RGB. Raises DataError if no video can be written there."""
        import cv2

        if self._writer is None:
            self._open(image)
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.frames += 1

    @property
    def _scratch(self) -> Path:
        # codecs go by the suffix, so it stays last
        return self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")

    def _open(self, image: np.ndarray) -> None:
        import cv2

        height, width = image.shape[:2]
        self._size = (max(2, width - width % 2), max(2, height - height % 2))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in dict.fromkeys((self.path.suffix.lower() or _FALLBACK, _FALLBACK)):
            self.path = self.path.with_suffix(suffix)
            code = cv2.VideoWriter.fourcc(*_CODECS.get(suffix, "MJPG"))
            with _quiet():
                writer = cv2.VideoWriter(str(self._scratch), code, self.fps, self._size)
            if writer.isOpened():
                self._writer = writer
                return
            writer.release()
            self._scratch.unlink(missing_ok=True)
        raise DataError(
            f"{self.path}: OpenCV cannot write a video here. Check that the folder may be written "
            "to, or give an output without a video suffix to get images"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV says nothing of the formats that it tries in vain."""
    import cv2

    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is None:
        yield
        return
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
