"""Sources of images: an image file, a folder of images, or a video.

An unreadable image does not end a run: it is yielded as a ``BrokenFrame``.
"""

import contextlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from segkd.data.label_maps import without_label_maps
from segkd.data.paired import IMAGE_ENDINGS, images_below
from segkd.data.reading import SampleError, read_image
from segkd.errors import DataError

if TYPE_CHECKING:
    import cv2

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
_PATIENCE = 30  # consecutive broken frames after which a video has ended
DEFAULT_FPS = 25.0  # for files without a plausible rate


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        index: from 0, including broken ones.
        name: path below the folder, file name, or ``000012`` in a video.
        image: (H, W, 3) uint8 RGB.
        time: seconds from the beginning of a video or stream, or None.
    """

    index: int
    name: str
    image: np.ndarray
    time: float | None = None


@dataclass(frozen=True)
class BrokenFrame:
    """An image of a source that cannot be read.

    Attributes:
        index, name: as of ``Frame``.
        error: why it cannot be read.
        image: always None.
    """

    index: int
    name: str
    error: str
    image: None = field(default=None, init=False)


class Frames(Protocol):
    """Images to iterate over."""

    @property
    def count(self) -> int:
        """Their number; of a video an estimate, or 0 if unknown."""
        ...

    def frames(self) -> Iterator[Frame | BrokenFrame]:
        """The images, in order."""
        ...


@dataclass(frozen=True)
class Source:
    """An image file, a folder of images, or a video; made by ``open_source``.

    Attributes:
        path: the file or folder.
        kind: of the source.
        files: of an image or a folder.
        fps: frames per second of a video.
        count: number of images; of a video that of its header, which may be wrong, or 0.
        url: address of a video that is no file; ``path`` is then a name for results.
    """

    path: Path
    kind: Literal["image", "folder", "video"]
    files: tuple[Path, ...] = ()
    fps: float = DEFAULT_FPS
    count: int = 0
    url: str = ""

    @property
    def name(self) -> str:
        """For messages and files."""
        return shown(self.url) if self.url else str(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images of a file or folder: their paths below the folder."""
        root = self.path if self.kind == "folder" else self.path.parent
        return tuple(file.relative_to(root).as_posix() for file in self.files)

    @property
    def originals(self) -> tuple[Path, ...]:
        """The files that are read; none of an address."""
        return self.files or (() if self.url else (self.path,))

    def frames(self) -> Iterator[Frame | BrokenFrame]:
        """The images, in order; unreadable ones as ``BrokenFrame``."""
        return self._video_frames() if self.kind == "video" else self.frames_at(range(self.count))

    def frames_at(self, indices: Iterable[int]) -> Iterator[Frame | BrokenFrame]:
        """The images of these numbers; of a video, those that its decoder finds there."""
        if self.kind != "video":
            yield from self._file_frames(indices)
            return
        import cv2

        capture = _opened(self.url or self.path)
        try:
            for index in indices:
                capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                yield self._video_frame(index, *capture.read())
        finally:
            capture.release()

    def _file_frames(self, indices: Iterable[int]) -> Iterator[Frame | BrokenFrame]:
        names = self.names
        for index in indices:
            try:
                yield Frame(index, names[index], read_image(self.files[index]))
            except SampleError as error:
                yield BrokenFrame(index, names[index], error.reason)

    def _video_frame(self, index: int, read: bool, image: np.ndarray | None) -> Frame | BrokenFrame:
        """What a video's decoder returned for a frame."""
        import cv2

        name = f"{index:06d}"
        if not read or image is None:
            why = f"{self.name}: frame {index + 1} cannot be decoded"
            return BrokenFrame(index, name, why)
        return Frame(index, name, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index / self.fps)

    def _video_frames(self) -> Iterator[Frame | BrokenFrame]:
        capture = _opened(self.url or self.path)
        index = 0
        broken: list[BrokenFrame] = []
        try:
            while len(broken) < _PATIENCE:
                frame = self._video_frame(index, *capture.read())
                index += 1
                if isinstance(frame, BrokenFrame):
                    if index > self.count:
                        return
                    broken.append(frame)
                    continue
                yield from broken
                broken = []
                yield frame
        finally:
            capture.release()


def open_source(path: str | Path) -> Source:
    """The images of an image file, a folder (searched recursively), or a video.

    Label maps next to their images, as in the root of a dataset, are not included, nor are legends
    of earlier predictions.

    Raises:
        DataError: there is no such file or folder, no image in the folder, or the file is not a
            video.
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
            f"{path}: there is no such file or folder. Give an image, a folder with images, "
            "or a video"
        )
    if path.name.lower().endswith(IMAGE_ENDINGS):
        try:
            read_image(path)  # an unreadable single image is an error, not a broken frame
        except SampleError as error:
            raise DataError(f"{error.reason}. Fetch it again, or give another image") from None
        return Source(path, "image", (path,), count=1)
    return _video(path)


def _is_legend(file: Path) -> bool:
    """Whether `segkd predict` wrote this file, next to its other files."""
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
    return Source(path, "video", fps=float(fps) if sane else DEFAULT_FPS, count=max(0, int(count)))


def _opened(path: str | Path) -> "cv2.VideoCapture":
    import cv2

    if isinstance(path, Path) and not path.stat().st_size:
        raise _no_video(path, "it is empty")
    with quiet():
        capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        capture.release()
        raise _no_video(path, "OpenCV finds no video in it")
    return capture


def shown(source: str) -> str:
    """A source for messages and files: addresses without user name and password."""
    if "@" not in source or "://" not in source:
        return f"camera {source}" if source.isdecimal() else source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _no_video(path: str | Path, reason: str) -> DataError:
    name = shown(path) if isinstance(path, str) else path
    return DataError(
        f"{name}: cannot be read as a video: {reason}. Check that it plays, or convert it: "
        f"ffmpeg -i {shlex.quote(Path(str(name)).name)} -c:v libx264 converted.mp4"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences OpenCV's messages about formats that it cannot open."""
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
