"""Stored predictions of a teacher: label maps, the top k probabilities, or all of them.

A file is named like its image. ``NAME.png`` is a label map: class ids, 255 (or 65535 in 16 bits)
where nothing is known. ``NAME.npz`` holds ``probabilities`` (K, h, w), or with ``ids`` (k, h, w)
those of the k most probable classes of each position; half precision is enough. Maps may be coarser
than their image. `segkd predict` writes such folders.
"""

import io
import json
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkd.data.files import files_below, same_name
from segkd.data.reading import DAMAGED_ARRAYS, SampleError, listed, read_ids, size_text
from segkd.errors import DataError
from segkd.files import write_atomic
from segkd.texts import parse_json, read_text

ENDINGS = (".npz", ".png")
_VOID = (255, 65535)
_SLACK = 0.02  # of a sum of many halves
_CLASS_IDS = ("labels", "palette", "voc")  # formats of `segkd predict` that hold class ids
_AGAIN = "Write it again, e.g. with segkd predict … --probabilities npz"


@dataclass(frozen=True)
class Prediction:
    """What a teacher said about one image.

    Attributes:
        values: (n, h, w) float32 probabilities: of all K classes, or of the n classes in ``ids``;
            their sum is 0 where nothing is known, and else 1, or less with ``ids``.
        ids: (n, h, w) int64 class of each value, no class twice; None: all classes in order.
    """

    values: np.ndarray
    ids: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.values.shape[1], self.values.shape[2]


def top_of(probabilities: np.ndarray, count: int | None) -> Prediction:
    """The ``count`` most probable classes of each position; None, or K and more: all classes.

    Args:
        probabilities: (K, h, w), of sum 1 or, where nothing is known, 0.
        count: k.
    """
    values = probabilities.astype(np.float32)
    if count is None or count >= len(values):
        return Prediction(values)
    ids = np.argpartition(-values, count - 1, axis=0)[:count]
    taken = np.take_along_axis(values, ids, axis=0)
    order = np.argsort(-taken, axis=0, kind="stable")
    return Prediction(
        np.take_along_axis(taken, order, axis=0), np.take_along_axis(ids, order, axis=0)
    )


def to_bytes(prediction: Prediction) -> bytes:
    """The content of a ``.npz`` file: halves, and ids in as few bytes as they need."""
    values, buffer = prediction.values.astype(np.float16), io.BytesIO()
    if prediction.ids is None:
        np.savez_compressed(buffer, probabilities=values)
    else:
        few = prediction.ids.max(initial=0) < 256
        ids = prediction.ids.astype(np.uint8 if few else np.uint16)
        np.savez_compressed(buffer, probabilities=values, ids=ids)
    return buffer.getvalue()


def write_prediction(path: Path, prediction: Prediction) -> None:
    """Writes a ``.npz`` file, completely or not at all. Raises OSError."""
    data = to_bytes(prediction)
    write_atomic(path, lambda file: file.write(data))


def read_prediction(path: Path, num_classes: int) -> Prediction:
    """Reads a stored prediction.

    Args:
        path: ``.png`` or ``.npz``.
        num_classes: K of the teacher.

    Raises:
        SampleError: the file is missing or damaged, or its classes or values are not possible.
    """
    if path.suffix.lower() == ".npz":
        return _from_arrays(path, num_classes)
    labels = read_ids(path)
    if labels.ndim == 3:
        raise SampleError(path, "is a label map of colours", "Write class ids as grey values.")
    known = labels < num_classes
    wrong = np.unique(labels[~known & ~np.isin(labels, _VOID)]).tolist()
    if wrong:
        raise SampleError(
            path,
            f"has class ids {listed(wrong)}, but the teacher has {num_classes} classes (0 to "
            f"{num_classes - 1}), and 255 where nothing is known",
            "Write class ids, not label ids or colours, or give the teacher's own classes: "
            "classes: {from: …}.",
        )
    ids = np.where(known, labels, 0).astype(np.int64)
    return Prediction(known.astype(np.float32)[None], ids[None])


def _from_arrays(path: Path, num_classes: int) -> Prediction:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = sorted(file.files)
            values = file["probabilities"].astype(np.float32) if "probabilities" in names else None
            ids = file["ids"].astype(np.int64) if "ids" in names else None
    except FileNotFoundError:
        raise SampleError(path, "there is no such file", _AGAIN) from None
    except DAMAGED_ARRAYS as error:
        text = f"cannot be read: {error or type(error).__name__}"
        if path.is_file() and not zipfile.is_zipfile(path):
            text = "cannot be read: it is no whole .npz file"
        raise SampleError(path, text, _AGAIN) from None
    if values is None or values.ndim != 3:
        got = f"arrays {', '.join(names)}" if values is None else f"shape {values.shape}"
        raise SampleError(path, f"has {got}, expected `probabilities` (K, h, w)", _AGAIN)
    if ids is None and len(values) != num_classes:
        text = f"has probabilities of {len(values)} classes, the teacher has {num_classes}"
        repair = "Predict with the same classes, or give the teacher's own: classes: {from: …}."
        raise SampleError(path, text, repair)
    if ids is not None:
        _check_ids(path, ids, values, num_classes)
    total = values.sum(0)
    highest = total.max(initial=0)
    possible = bool(np.isfinite(values).all()) and values.min(initial=0) >= 0
    if not possible or highest > 1 + _SLACK or (ids is None and _has_gaps(total)):
        text = (
            "its `probabilities` are not probabilities: "
            f"{values.min():.3g} to {values.max():.3g}, sums {total.min():.3g} to {highest:.3g}"
        )
        raise SampleError(path, text, "Store the softmax over the classes, of sum 1 or less.")
    # Rounded to halves they do not add up exactly.
    scale = np.where((total > 1) | (ids is None), np.maximum(total, 1e-8), 1.0)
    return Prediction(values / scale, ids)


def _has_gaps(total: np.ndarray) -> bool:
    return bool(((total > 0) & (total < 1 - _SLACK)).any())


def _check_ids(path: Path, ids: np.ndarray, values: np.ndarray, num_classes: int) -> None:
    if ids.shape != values.shape:
        text = f"`ids` have shape {ids.shape}, `probabilities` {values.shape}"
        raise SampleError(path, text, "Both are (k, h, w).")
    if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
        text = f"has classes {ids.min()} to {ids.max()}, the teacher has {num_classes}"
        raise SampleError(path, text, "Predict with the same classes.")
    if (np.diff(np.sort(ids, axis=0), axis=0) == 0).any():
        raise SampleError(path, "names a class twice at one position", _AGAIN)


class PredictionFolder:
    """Stored predictions by the name of their image.

    Args:
        root: the folder; of those of `segkd predict` probabilities are taken, else label maps.
        key: of the config, for messages.

    Attributes:
        classes: names of the classes, if the folder says so; else empty.
        unknown: ids of those that the teacher cannot know, as the folder says.

    Raises:
        DataError: there is no prediction, or it is of a format without class ids.
    """

    def __init__(self, root: Path, key: str) -> None:
        self.given, self.key = root, key
        root = root.expanduser()
        self.classes: tuple[str, ...] = ()
        self.unknown: tuple[int, ...] = ()
        if (root / "classes.json").is_file():
            self.classes, self.unknown = _classes(root / "classes.json")
            if (root / "probabilities").is_dir():
                root = root / "probabilities"
            elif (root / "labels").is_dir():
                _require_class_ids(root / "format.json")
                root = root / "labels"
        self.root = root
        self._files: dict[str, list[tuple[str, ...]]] = {}
        found = files_below(root, ENDINGS)
        if not found:
            what = "no prediction in this folder" if root.is_dir() else "no such folder"
            raise DataError(
                f"{key}: there is {what}: {root}. Predictions are NAME.png (class ids) or NAME.npz "
                "(probabilities), as segkd predict … --probabilities npz writes them"
            )
        for path in found:
            parts = tuple(map(same_name, path.relative_to(root).parts))
            self._files.setdefault(Path(parts[-1]).stem, []).append(parts)
        self.count = len(found)

    def find(self, image: Path) -> Path | None:
        """The prediction of an image, or None.

        Of several of one name it is that whose folders are also those of the image.

        Args:
            image: path or name of the image.

        Raises:
            DataError: two are equally near.
        """
        above = tuple(map(same_name, image.parts[:-1]))
        name = same_name(image.name)
        found: list[tuple[int, tuple[str, ...]]] = []
        for key in dict.fromkeys((name, Path(name).stem)):
            for parts in self._files.get(key, []):
                folders = parts[:-1]
                if above[len(above) - len(folders) :] == folders and len(folders) <= len(above):
                    found.append((len(folders), parts))
            if found:
                break
        if not found:
            return None
        found.sort(reverse=True)
        best = [parts for depth, parts in found if depth == found[0][0]]
        if len(best) > 1:
            both = " and ".join("/".join(parts) for parts in sorted(best)[:2])
            raise DataError(f"{self.key}: {both} in {self.root} are both named like {image.name}")
        return self.root.joinpath(*best[0])

    @property
    def example(self) -> str:
        """The name of one of the files."""
        return "/".join(next(iter(self._files.values()))[0])

    def missing(self, image: Path) -> SampleError:
        """The error for an image without prediction."""
        return SampleError(
            image,
            f"has no prediction in {self.root}, which holds {self.count}, e.g. {self.example}",
            f"Predict it as well, or set {self.key.rpartition('.')[0]}.missing=skip to leave such "
            "images out.",
        )


def check_size(path: Path, prediction: Prediction, image: np.ndarray) -> None:
    """Checks that a prediction may be one of the image, up to a factor.

    Args:
        path: of the prediction.
        prediction: of any size.
        image: (H, W, 3), as stored.

    Raises:
        SampleError: its sides have another ratio.
    """
    (h, w), (height, width) = prediction.size, image.shape[:2]
    # Both sides are rounded to whole positions.
    if min(h, w) < 1 or abs(h * width - w * height) > max(height, width):
        raise SampleError(
            path,
            f"is a prediction of {h}x{w}, but the image is {size_text(image)} (height x width): "
            "not the same picture at another size",
            "Predict the whole image as it is stored.",
        )


def _classes(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the classes, and the positions of those that the teacher cannot know."""
    rows: Any = parse_json(read_text(path), str(path))
    try:
        rows = sorted(rows, key=lambda row: int(row["id"]))
        names = tuple(str(row["name"]) for row in rows)
        return names, tuple(n for n, row in enumerate(rows) if row.get("known") is False)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise DataError(
            f"{path}: expected a list of classes with `id` and `name`. Predict again, or remove it "
            "if the class ids are those of the data"
        ) from None


def _require_class_ids(record: Path) -> None:
    kind = "labels"
    if record.is_file():
        facts = parse_json(read_text(record), str(record))
        kind = facts.get("format", "") if isinstance(facts, dict) else ""
    if kind not in _CLASS_IDS:
        raise DataError(
            f"{record.parent / 'labels'} holds ids of '{kind}', as {record} says, not class ids. "
            "Predict again with --format labels, or with --probabilities npz"
        )


def classes_json(classes: Sequence[str], unknown: Collection[int] = ()) -> str:
    """The content of ``classes.json`` for a folder of predictions.

    Args:
        classes: K names.
        unknown: ids of those that the teacher cannot know: probability 0 says nothing about them.
    """
    rows: list[dict[str, Any]] = [{"id": n, "name": name} for n, name in enumerate(classes)]
    for number in unknown:
        rows[number]["known"] = False
    return json.dumps(rows, indent=2) + "\n"
