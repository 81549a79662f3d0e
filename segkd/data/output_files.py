"""Stored outputs of a teacher: a file for each view of an image, complete or not there at all.

Several processes may use a folder at once, and any of them may be killed. A file knows the image
that it belongs to by its content, so that outputs are never used for another one.
"""

import contextlib
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkd.data.reading import DAMAGED_ARRAYS

_MAGIC = b"segkd outputs 1\n"
_OUTPUTS, _LOCK, _PART = "outputs", "lock", ".part"
_PER_FOLDER = 256  # images
_MOST_VIEWS = 2**16
_LEFT_OVER = 3600.0  # seconds after which a partial file belongs to no running process
_PATIENCE = 60.0  # seconds; a process that computes outputs for longer hangs


@dataclass(frozen=True)
class Stored:
    """The outputs of a teacher for one image.

    Attributes:
        logits: (K, h, w) float16 logits or log-probabilities.
        exist: (L,) float32 logits of lane existence, or None.
        extent: rows and columns of ``logits`` that the image covers; the rest is padding.
        known: (h, w) bool, False where there is no output; None: everywhere True.
    """

    logits: np.ndarray
    exist: np.ndarray | None = None
    extent: tuple[float, float] = (0.0, 0.0)
    known: np.ndarray | None = None


def fingerprint(image: np.ndarray) -> int:
    """A number of 32 bits that images (H, W, 3) uint8 of other contents hardly have."""
    return zlib.crc32(np.ascontiguousarray(image).data, zlib.crc32(repr(image.shape).encode()))


class OutputFolder:
    """The stored outputs of one teacher for one set of images.

    Args:
        path: of the folder; it is created with the first file.

    Attributes:
        unfit: number of files that this object found to be damaged, or of another image.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.unfit = path, 0

    def file(self, index: int, view: int) -> Path:
        """The file of a view of the image at an index of the dataset."""
        return self.path / _OUTPUTS / f"{index // _PER_FOLDER:05d}" / f"{index}-{view}.bin"

    def read(self, index: int, view: int, image: int | None) -> Stored | None:
        """What is stored of a view; None if there is nothing, or nothing that fits.

        Args:
            index: of the image in its dataset.
            view: number of the view.
            image: ``fingerprint`` of what the teacher sees; None: of any image.
        """
        try:
            with open(self.file(index, view), "rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError
                marks, logits, exist, extent = (np.load(file, allow_pickle=False) for _ in range(4))
            seen, check = marks.tolist()
            if check != zlib.crc32(logits.data) or image not in (None, seen):
                raise ValueError
        except FileNotFoundError:
            return None
        except DAMAGED_ARRAYS:  # torn by a crash of the machine, or outdated
            self.unfit += 1
            return None
        rows, columns = extent.tolist()
        return Stored(logits, exist if exist.size else None, (rows, columns))

    def write(self, index: int, view: int, image: int, stored: Stored) -> None:
        """Writes the file of a view. Raises OSError; a partial file is removed."""
        path = self.file(index, view)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_PART}")
        logits = np.ascontiguousarray(stored.logits, np.float16)
        exist = np.empty(0) if stored.exist is None else stored.exist
        marks = np.array([image, zlib.crc32(logits.data)], np.int64)
        try:
            with open(scratch, "wb") as file:  # not synced: `read` knows a torn file
                file.write(_MAGIC)
                for array in (marks, logits, exist.astype(np.float32), np.array(stored.extent)):
                    np.save(file, array, allow_pickle=False)
            os.replace(scratch, path)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise

    def size(self) -> tuple[int, int]:
        """Number of files and their bytes; partial files of dead processes are removed."""
        count = total = 0
        for folder in self._folders():
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat()
                    if not entry.name.endswith(_PART):
                        count, total = count + 1, total + facts.st_size
                    elif time.time() - facts.st_mtime > _LEFT_OVER:
                        os.unlink(entry.path)
        return count, total

    @contextlib.contextmanager
    def claimed(self, views: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Within the context no other process computes these (index, view).

        Claims are byte ranges of a lock file: the system drops them if this process is killed. A
        process that holds one for very long is not waited for: double work does no harm.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        end = time.monotonic() + _PATIENCE
        try:
            for start in sorted({index * _MOST_VIEWS + view for index, view in views}):
                while True:  # in one order, so that no two processes wait for each other
                    try:
                        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
                        break
                    except (BlockingIOError, PermissionError):
                        if time.monotonic() > end:
                            break
                        time.sleep(0.005)
                    except OSError:  # a file system without locks
                        break
            yield
        finally:
            os.close(handle)

    def _folders(self) -> list[str]:
        try:
            return [entry.path for entry in os.scandir(self.path / _OUTPUTS) if entry.is_dir()]
        except OSError:  # not there yet, or not readable, which the first file will tell
            return []
