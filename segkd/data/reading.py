"""Reading of image files, and checks of samples."""

import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np

from segkd.data.base import Dataset, Sample
from segkd.data.decoding import (
    Undecodable,
    bits_in_use,
    decode_mask,
    decode_rgb,
    is_lossy,
    lacks_detail,
    require_whole,
)
from segkd.data.files import neighbour
from segkd.data.packing import Packed, array_of
from segkd.errors import DataError

# What numpy raises for a damaged .npy or .npz file, whose header it reads as Python source.
DAMAGED_ARRAYS = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, OverflowError),
    *(MemoryError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error),
)
_ORIENTATION, _TURNED = 0x112, (5, 6, 7, 8)  # EXIF values that exchange width and height
GREY = 0x010101  # times a brightness: the packed colour of a grey
_FIT_CACHE = 2**17  # bytes of a part of a label
_FEW_BITS = 15  # of 16: cameras have 10 to 14 bits


class SampleError(DataError):
    """A DataError about one file.

    Args:
        file: the file.
        text: what is wrong.
        repair: what to do.
    """

    def __init__(self, file: Path | str, text: str, repair: str) -> None:
        super().__init__(str(file), text, repair)  # so that it can be pickled
        self.file, self.text, self.repair = str(file), text, repair

    def __str__(self) -> str:
        return f"{self.reason}. {self.repair}"

    def at(self, place: str) -> DataError:
        """See ``SegKDError.at``; the message begins with another word than the file."""
        return DataError(f"{place}: {self}")

    @property
    def reason(self) -> str:
        """The message without advice, which is for training."""
        return f"{self.file}: {self.text}"


def read_image(path: Path) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8 RGB, rotated according to its EXIF tag.

    Raises:
        SampleError: the file is missing, cut off, damaged, or not an image.
    """
    return _decoded(path, decode_rgb)


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask as stored: (H, W) uint8 or int32 ids, or (H, W, 3) uint8 RGB colours.

    Indexed files yield indices, not colours; files of few bits the stored numbers.

    Raises:
        SampleError: as ``read_image``, or another type or number of channels.
    """
    import cv2

    mask = _decoded(path, decode_mask)
    if mask.ndim == 3 and mask.shape[2] == 2 and mask.dtype == np.uint8:  # grey and alpha
        mask = np.ascontiguousarray(mask[..., 0])
    if mask.ndim == 3:
        if mask.shape[2] not in (3, 4) or mask.dtype != np.uint8:
            raise _unreadable(path, f"a mask of shape {mask.shape} and type {mask.dtype}")
        return cv2.cvtColor(mask[..., :3], cv2.COLOR_BGR2RGB)
    if mask.dtype not in (np.uint8, np.uint16):
        raise _unreadable(path, f"a mask of type {mask.dtype}, expected 8 or 16 bit ids")
    return mask if mask.dtype == np.uint8 else mask.astype(np.int32)


def read_ids(path: Path) -> np.ndarray:
    """Reads ids (H, W), also if stored in three equal channels or with an alpha channel.

    Returns:
        (H, W) uint8 or int32 ids; (H, W, 3) uint8 RGB if the mask has colours.

    Raises:
        SampleError: as ``read_mask``.
    """
    return merged_channels(read_mask(path))


def merged_channels(mask: np.ndarray) -> np.ndarray:
    """(H, W) of a mask (H, W, 3) with three equal channels; others as they are."""
    if mask.ndim == 3 and (mask == mask[..., :1]).all():
        return np.ascontiguousarray(mask[..., 0])
    return mask


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) of the array of ``read_image``, from the file's header.

    Raises:
        SampleError: the header cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            size = image.height, image.width
            # Pillow rotates TIFF by itself, but not other formats.
            tag = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
            return (size[1], size[0]) if tag in _TURNED else size
    except Exception as error:  # Pillow's plug-ins raise arbitrary exceptions
        raise _unreadable(path, str(error) or type(error).__name__) from None


def mask_doubts(path: Path) -> str:
    """A warning about a readable mask, as a clause without subject, or ''. Raises SampleError."""
    return "is a JPEG, whose compression changes ids" if is_lossy(_bytes(path)) else ""


def image_doubts(path: Path) -> str:
    """A warning about a readable image, as a clause without subject, or ''. Raises SampleError."""
    try:
        bits = bits_in_use(_bytes(path))
    except Undecodable as error:
        raise _unreadable(path, str(error)) from None
    if bits is None or not 0 < bits < _FEW_BITS:
        return ""
    return f"has 16 bits of which the lower {bits} are used: it is read as nearly black"


def detail_doubts(path: Path) -> str:
    """A warning about an image that lost detail, as a clause, or ''. Raises SampleError."""
    try:
        coarse = lacks_detail(_bytes(path))
    except Undecodable as error:
        raise _unreadable(path, str(error)) from None
    return "is a progressive JPEG that ends before its last scan: it is coarse" if coarse else ""


def check_sample(dataset: Dataset, index: int, sample: Sample) -> None:
    """Checks that a sample is valid for training and evaluation.

    Args:
        dataset: of the sample.
        index: of the sample in the dataset.
        sample: as read, or as ``read_stored`` returns it.

    Raises:
        SampleError: the image is not an (H, W, 3) uint8 array, the label has another size, or it
            has values that are neither class ids nor the ignore index.
    """
    image, label = sample.image, sample.label
    file = image_name(dataset, index, sample)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        got = f"the image has shape {image.shape} and type {image.dtype}"
        raise SampleError(file, f"{got}, expected (H, W, 3) uint8 RGB", "Convert it to 8-bit RGB.")
    if label is None:
        return
    mask = label_name(dataset, index, sample)
    if label.shape != image.shape[:2]:
        raise SampleError(
            file,
            f"the image is {size_text(image)}, but its label {size_text(label)} (height x width)"
            + ("" if dataset.files(index) is None else f": {mask}"),
            "Repair or remove the pair.",
        )
    wrong = wrong_values(array_of(label), len(dataset.classes), dataset.ignore_index)
    if wrong:
        raise SampleError(
            mask,
            f"label values {listed(wrong)} are neither class ids (0 to {len(dataset.classes) - 1}) "
            f"nor the ignore index ({dataset.ignore_index})",
            "Repair the mask, or declare its values with data.name=folder.",
        )


def wrong_values(label: np.ndarray, num_classes: int, ignore_index: int) -> list[int]:
    """Values of a label map (H, W) that are neither class ids nor void, ascending."""
    if label.dtype == np.uint8 and ignore_index == 255 and num_classes < 256:
        # Void wraps to 0, so that the largest byte tells: a fifth of the time of what follows.
        rows = np.array_split(label, max(1, label.size // _FIT_CACHE))
        if all((part + np.uint8(1)).max(initial=0) <= num_classes for part in rows):
            return []
    wrong = (label >= num_classes) & (label != ignore_index)
    if label.dtype.kind == "i":
        wrong |= (label < 0) & (label != ignore_index)
    return np.unique(label[wrong]).tolist() if wrong.any() else []


def image_name(dataset: Dataset, index: int, sample: Sample) -> str:
    """The image file of a sample, or the name of a sample without files."""
    files = dataset.files(index)
    return sample.name if files is None else str(files[0])


def label_name(dataset: Dataset, index: int, sample: Sample) -> str:
    """The label file of a sample, or a description of a label without file."""
    files = dataset.files(index)
    return f"label of {sample.name}" if files is None or files[1] is None else str(files[1])


def packed_colors(mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB, or (H, W) greys -> (H, W) int32: red · 2¹⁶ + green · 2⁸ + blue."""
    if mask.ndim == 2:
        return mask.astype(np.int32) * GREY
    red, green, blue = (mask[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def size_text(array: np.ndarray | Packed) -> str:
    """``HxW`` of an array (H, W, …)."""
    return f"{array.shape[0]}x{array.shape[1]}"


def listed(values: Sequence[object], most: int = 10) -> str:
    """The first values as text, and the number of all if there are more than ``most``."""
    text = ", ".join(str(value) for value in values[:most])
    return text if len(values) <= most else f"{text}, … ({len(values)} in all)"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SampleError(path, "there is no such file", repair_of_missing(path)) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None


def repair_of_missing(
    path: Path, see: str = "Run `segkd data check`.", known: Collection[Path] = ()
) -> str:
    """What to type if a file is missing, but one with a similar name exists; else ``see``.

    Args:
        path: of the missing file; it may be a link to one.
        see: the text where nothing is known.
        known: files that are not meant, see ``neighbour``.
    """
    if path.is_symlink():
        return (
            f"It is a link to {os.readlink(path)}, which does not exist: fetch that file (git "
            "annex get, dvc pull), or remove the link."
        )
    other = neighbour(path, known)
    if not other:
        return see
    ending = other.removeprefix(path.stem) if other.startswith(path.stem) else Path(other).suffix
    return (
        f"There is {other} next to it: in a data.spec set `mask_ending: {ending}` (or "
        "`image_ending`), or rename the files."
    )


def _decoded(path: Path, decoder: Callable[[bytes], np.ndarray]) -> np.ndarray:
    data = _bytes(path)
    try:
        require_whole(data)
        return decoder(data)
    except Undecodable as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, reason: str) -> SampleError:
    repair = "Fetch it again, remove the pair, or skip it with data.on_error=skip."
    return SampleError(path, f"cannot be read: {reason}", repair)
