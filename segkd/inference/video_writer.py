"""A writer of videos, whose file appears when it is complete."""

import contextlib
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from segkd.errors import ConfigError, DataError
from segkd.files import make_folder
from segkd.inference.media import quiet

if TYPE_CHECKING:
    import cv2

_CODECS = {  # all others: MJPG
    **dict.fromkeys((".mp4", ".m4v", ".mov"), "mp4v"),
    **dict.fromkeys((".mpg", ".mpeg"), "MPG2"),  # MJPG opens there, and nothing can read the file
    ".webm": "VP80",
}
_FALLBACK = ".avi"  # every build of OpenCV writes Motion JPEG into it
_TRIAL_SIZE, _TRIAL_FRAMES = (64, 48), 3  # width, height of a video that shows what can be read
_RESERVE = 4 << 20  # bytes of disk that are left for the index which ends a file


class VideoWriter:
    """Writes frames to a video file, which appears when it is complete.

    ``with VideoWriter(path, fps=25) as video: video.write(frame)``. The first frame determines the
    size, rounded down to even sides for the codecs; later ones are resized. After an exception no
    file is left, but if the disk is full: then there is a video of the frames until then.

    Args:
        path: of the video.
        fps: frames per second.

    Attributes:
        path: of the video, see ``video_path``.
        frames: number of frames written.

    Raises:
        ConfigError: see ``video_path``.
    """

    def __init__(self, path: str | Path, *, fps: float) -> None:
        self.path, self.fps, self.frames = video_path(path, fps), fps, 0
        self._size = (0, 0)  # width, height
        self._writer: cv2.VideoWriter | None = None
        self._full = False  # the disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        whole = _can_be_read(self._scratch) if kind is None or self._full else False
        if whole:
            os.replace(self._scratch, self.path)
            return
        with contextlib.suppress(OSError):
            self._scratch.unlink(missing_ok=True)
        if kind is None:
            raise DataError(
                f"{self.path}: the {self.frames} frames could not be written, and there is no "
                "video. Look whether the disk is full, or give an output on another one"
            )

    def write(self, image: np.ndarray) -> None:
        """Appends (H, W, 3) uint8 RGB.

        Raises:
            DataError: no video can be written there, or the disk is full.
        """
        import cv2

        self._require_space()
        if self._writer is None:
            height, width = image.shape[:2]
            self._size = (max(2, width - width % 2), max(2, height - height % 2))
            self._writer = self._opened()
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _require_space(self) -> None:
        """OpenCV goes on without a word where nothing more can be written."""
        folder = self.path.parent
        if not folder.is_dir() or shutil.disk_usage(folder).free > _RESERVE:
            return
        self._full = True
        kept = f" after {self.frames} frames, which are in the video" if self.frames else ""
        raise DataError(
            f"{self.path}: the disk is full{kept}. Free some space, or give an output on another "
            "disk"
        )

    @property
    def _scratch(self) -> Path:
        # OpenCV chooses the container by the ending, so it stays last
        return self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")

    def _opened(self) -> "cv2.VideoWriter":
        make_folder(self.path.parent)
        writer = _encoder(self._scratch, self.fps, self._size)
        if writer.isOpened():
            return writer
        writer.release()
        self._scratch.unlink(missing_ok=True)
        raise DataError(
            f"{self.path}: OpenCV cannot write a video here. Check that the folder is writable, or "
            "give an output without a video ending to get images"
        )


def video_path(path: str | Path, fps: float) -> Path:
    """The file that a ``VideoWriter`` writes for a name; nothing is written yet.

    Args:
        path: the name. Its ending becomes .avi if OpenCV cannot write and read its format.
        fps: frames per second.

    Raises:
        ConfigError: there is a file of the name with .avi, which nobody gave.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == _FALLBACK or (suffix and _is_readable(suffix, fps)):
        return path.with_suffix(suffix)
    other = path.with_suffix(_FALLBACK)
    if other.exists():
        why = f"OpenCV cannot write {suffix} here" if suffix else "it has no ending of a video"
        raise ConfigError(
            f"{path}: {why}, and {other}, which would be written instead, is there already. Give "
            f"another name, or that one with {_FALLBACK} to replace it"
        )
    return other


@functools.cache
def _is_readable(suffix: str, fps: float) -> bool:
    """Whether a video that OpenCV writes with an ending can be read back.

    Some formats can be opened for writing, and take frames, but nothing can read the file.
    """

    with tempfile.TemporaryDirectory() as folder, quiet():
        trial = Path(folder, f"trial{suffix}")
        writer = _encoder(trial, fps, _TRIAL_SIZE)
        if writer.isOpened():
            for _ in range(_TRIAL_FRAMES):
                writer.write(np.zeros((*_TRIAL_SIZE[::-1], 3), np.uint8))
        writer.release()
        return _can_be_read(trial)


def _can_be_read(path: Path) -> bool:
    """Whether there is a frame in a video, and a number of them in its header, if any."""
    import cv2

    with quiet():
        capture = cv2.VideoCapture(str(path))
        try:  # a header without end has 0 frames; one of MPEG streams has no number, which is < 0
            has_frames = bool(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            return has_frames and capture.isOpened() and bool(capture.read()[0])
        finally:
            capture.release()


def _encoder(path: Path, fps: float, size: tuple[int, int]) -> "cv2.VideoWriter":
    """Of frames of (width, height), for the ending of ``path``."""
    import cv2

    code = cv2.VideoWriter.fourcc(*_CODECS.get(path.suffix, "MJPG"))
    with quiet():
        return cv2.VideoWriter(str(path), code, fps, size)
