"""Image files to arrays, and the checks that every sample passes before it is used."""

from pathlib import Path

import numpy as np

from segkd.data.base import Dataset, Sample
from segkd.errors import DataError

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PALETTE = b"\x03"  # colour type, byte 25 of a PNG


class SampleError(DataError):
    """A DataError about one file, in parts: ``file``, ``text`` (what is wrong), ``repair``."""

    def __init__(self, file: Path | str, text: str, repair: str) -> None:
        super().__init__(str(file), text, repair)  # so that it can be pickled
        self.file, self.text, self.repair = str(file), text, repair

    def __str__(self) -> str:
        return f"{self.file}: {self.text}. {self.repair}"


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises DataError if the file is missing, cut off, or no image."""
    import cv2

    image = _decoded(path, _intact_bytes(path), cv2.IMREAD_COLOR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 or int32 ids, or (H, W, 3) uint8 RGB colours, as they are stored.

    An indexed PNG gives its indices, not its colours. Raises DataError like ``read_image``.
    """
    import cv2

    data = _intact_bytes(path)
    header = data[:26].tobytes()
    if header.startswith(_PNG) and header[25:] == _PALETTE:
        return _palette_indices(path)
    mask = _decoded(path, data, cv2.IMREAD_UNCHANGED)
    if mask.ndim == 3:
        if mask.shape[2] not in (3, 4) or mask.dtype != np.uint8:
            raise _unreadable(path, f"a mask of shape {mask.shape} and type {mask.dtype}")
        return cv2.cvtColor(mask[..., :3], cv2.COLOR_BGR2RGB)
    if mask.dtype not in (np.uint8, np.uint16):
        raise _unreadable(path, f"a mask of type {mask.dtype}, expected 8 or 16 bit ids")
    return mask if mask.dtype == np.uint8 else mask.astype(np.int32)


def check_sample(dataset: Dataset, index: int, sample: Sample) -> None:
    """Refuses a sample that no training or evaluation may use.

    Raises:
        SampleError: the image is no (H, W, 3) uint8 array, the label has another size, or it has
            values that are neither class ids nor the ignore index.
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
            f"the image is {size_text(image)}, but its label {mask} is {size_text(label)} "
            f"(height x width)",
            "Repair or remove the pair.",
        )
    wrong = wrong_values(label, len(dataset.classes), dataset.ignore_index)
    if wrong:
        raise SampleError(
            mask,
            f"label values {listed(wrong)} are neither class ids (0 to {len(dataset.classes) - 1}) "
            f"nor the ignore index ({dataset.ignore_index})",
            "Repair the mask, or declare its values by a dataset of kind `folder`.",
        )


def wrong_values(label: np.ndarray, num_classes: int, ignore_index: int) -> list[int]:
    """The values of a label map (H, W) that mean nothing, ascending."""
    wrong = (label >= num_classes) & (label != ignore_index)
    if label.dtype.kind == "i":
        wrong |= (label < 0) & (label != ignore_index)
    return np.unique(label[wrong]).tolist() if wrong.any() else []


def image_name(dataset: Dataset, index: int, sample: Sample) -> str:
    files = dataset.files(index)
    return sample.name if files is None else str(files[0])


def label_name(dataset: Dataset, index: int, sample: Sample) -> str:
    files = dataset.files(index)
    return f"label of {sample.name}" if files is None or files[1] is None else str(files[1])


def size_text(array: np.ndarray) -> str:
    """``HxW``"""
    return f"{array.shape[0]}x{array.shape[1]}"


def listed(values: list, most: int = 10) -> str:
    """The first few values as text."""
    text = ", ".join(str(value) for value in values[:most])
    return text if len(values) <= most else f"{text}, … ({len(values)} in all)"


def _intact_bytes(path: Path) -> np.ndarray:
    """The file's bytes. Decoders fill what is cut off with grey and say nothing, so the end
    marks of PNG and JPEG are looked for."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SampleError(path, "there is no such file", "Run `segkd data check`.") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if not data:
        raise _unreadable(path, "it is empty")
    cut_png = data.startswith(_PNG) and b"IEND" not in data[-64:]
    if cut_png or (data.startswith(_JPEG) and b"\xff\xd9" not in data):
        raise _unreadable(path, "it is cut off")
    return np.frombuffer(data, np.uint8)


def _decoded(path: Path, data: np.ndarray, flags: int) -> np.ndarray:
    import cv2

    try:
        array = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise _unreadable(path, error.err) from None
    if array is None:
        raise _unreadable(path, "it cannot be decoded")
    return array


def _palette_indices(path: Path) -> np.ndarray:
    from PIL import Image  # OpenCV turns indices into colours

    try:
        with Image.open(path) as mask:
            return np.array(mask, dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, reason: str) -> SampleError:
    repair = "Fetch it again, remove the pair, or pass over it by data.on_error=skip."
    return SampleError(path, f"cannot be read: {reason}", repair)
