"""Arrays as LZ4 blocks of rows: a window of an image needs only the blocks of its own rows.

LZ4 (package ``lz4``, extra ``fast``) is chosen by measurement, see benchmarks/decoded_cache.py.
Label maps shrink to a hundredth and are unpacked faster than they are checked. Photographs shrink
to four fifths, and a window of them takes 2.5 times as long as from a plain array, so they are
packed only where memory is scarce (``data.cache``). zstd and QOI take twice as long again.
"""

import functools
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from segkd.errors import DataError

_ROWS = 64  # of a block: it stays in a core's own cache while it is unpacked
WORTH = 1 / 3  # share of the bytes above which packing is not worth the time
SCARCE = 0.95  # the same, where what is not kept has to be decoded again

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Layout:
    """What is needed to read packed bytes.

    Attributes:
        shape: of the array.
        dtype: of the array, as text.
        lengths: bytes of each block; empty: the array as it is.
        rows: of a block.
    """

    shape: tuple[int, ...]
    dtype: str
    lengths: tuple[int, ...] = ()
    rows: int = _ROWS

    @property
    def size(self) -> int:
        """Number of bytes."""
        plain = np.dtype(self.dtype).itemsize * int(np.prod(self.shape))
        return sum(self.lengths) if self.lengths else plain


class Packed:
    """A packed array (H, W, …); ``packed[a:b, c:d]`` is the array of a window.

    Args:
        layout: of the bytes.
        data: the blocks, one after the other.
    """

    def __init__(self, layout: Layout, data: Buffer) -> None:
        self.layout, self.data = layout, data
        self.shape, self.dtype = layout.shape, np.dtype(layout.dtype)
        self.ndim = len(layout.shape)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """The window (h, w, …) as a new array; slices have steps of 1."""
        first, stop, _ = window[0].indices(self.shape[0])
        return self._unpacked(first, stop, window[1])

    def whole(self) -> np.ndarray:
        """The array (H, W, …) itself."""
        return self._unpacked(0, self.shape[0], slice(None))

    def _unpacked(self, first: int, stop: int, columns: slice) -> np.ndarray:
        """Rows from ``first`` to ``stop``, of which only these columns are copied."""
        unpack = _lz4().decompress
        rows, (height, *others) = self.layout.rows, self.shape
        width = len(range(*columns.indices(others[0])))
        found = np.empty((max(stop - first, 0), width, *others[1:]), self.dtype)
        at = sum(self.layout.lengths[: first // rows])
        per_row = self.dtype.itemsize * int(np.prod(others))
        for top in range(first - first % rows, stop, rows):
            block = self.data[at : at + self.layout.lengths[top // rows]]
            at += len(block)
            size = per_row * (min(top + rows, height) - top)
            try:
                values = np.frombuffer(unpack(block, uncompressed_size=size), self.dtype)
                values = values.reshape(-1, *others)[max(first - top, 0) : stop - top, columns]
                found[max(top - first, 0) :][: len(values)] = values
            except (_lz4().LZ4BlockError, ValueError) as error:
                raise DataError(
                    f"a decoded image of {self.shape[0]}x{self.shape[1]} is damaged ({error}). "
                    "Delete the folder of data.decoded and run `segkd data make cityscapes "
                    "--cache`, or set data.decoded=false"
                ) from None
        return found


def packs() -> bool:
    """Whether ``lz4`` is installed."""
    return _lz4_or_none() is not None


def pack(array: np.ndarray, worth: float = WORTH) -> tuple[Layout, list[Buffer]]:
    """The bytes of an array (H, W, …) in blocks; without ``lz4``, or above ``worth``, as they are.

    Args:
        array: of any type of numbers.
        worth: share of the bytes above which they stay as they are.

    Returns:
        The layout, and the parts whose concatenation ``unpack`` reads.
    """
    array = np.ascontiguousarray(array)
    whole: Buffer = array.reshape(-1).view(np.uint8).data
    plain = Layout(array.shape, array.dtype.str), [whole]
    if worth <= 0 or not packs() or not array.size:
        return plain
    tops = range(0, len(array), _ROWS)
    blocks = [_lz4().compress(array[top : top + _ROWS], store_size=False) for top in tops]
    if sum(map(len, blocks)) > worth * array.nbytes:
        return plain
    return Layout(array.shape, array.dtype.str, tuple(map(len, blocks))), blocks


def unpack(layout: Layout, data: Buffer) -> "np.ndarray | Packed":
    """The array (H, W, …) as a view of ``data``, or packed as it is."""
    if layout.lengths:
        return Packed(layout, data)
    return np.frombuffer(data, layout.dtype).reshape(layout.shape)


def array_of(pixels: "np.ndarray | Packed") -> np.ndarray:
    """(H, W, …): the whole array."""
    return pixels.whole() if isinstance(pixels, Packed) else pixels


def _lz4() -> ModuleType:
    found = _lz4_or_none()
    assert found is not None  # nothing is packed without it
    return found


@functools.cache
def _lz4_or_none() -> ModuleType | None:
    try:
        import lz4.block as block
    except Exception:  # not installed, or broken
        return None
    return block
