"""Predictions of a black box on disk, by the content of the image, and a budget of queries.

Several processes may use a folder at once, and any of them may be killed: predictions are written
completely or not at all, and a query is counted before it is sent, by a byte at the end of a file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segkd.data.predictions import Prediction, read_prediction, write_prediction
from segkd.errors import ConfigError, DataError
from segkd.files import write_text
from segkd.texts import parse_json, read_text

_FACTS, _COUNT, _PREDICTIONS = "box.json", "queries", "predictions"


class QueryCache:
    """Predictions in a folder.

    Args:
        folder: is created with the first query.
        facts: what was queried, and how; all predictions of a folder are of one box.
        num_classes: K of the box.
        max_queries: images that may ever be queried; None: any number.
        key: of the config, for messages.

    Raises:
        ConfigError: the folder holds predictions of another box.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        num_classes: int,
        max_queries: int | None,
        key: str,
    ) -> None:
        self.folder, self.num_classes = folder.expanduser(), num_classes
        self.max_queries, self.key = max_queries, key
        self._facts: dict[str, Any] | None = dict(facts)  # until they are written
        path = self.folder / _FACTS
        if path.is_file():
            self._compare(path, dict(facts))
            self._facts = None

    def _compare(self, path: Path, facts: dict[str, Any]) -> None:
        try:
            found = parse_json(read_text(path), str(path))
        except DataError as error:
            raise DataError(f"{self.key}.cache: {error}. Give another folder") from None
        found = found if isinstance(found, dict) else {}
        other = [name for name in facts if found.get(name) != facts[name]]
        if other:
            name = other[0]
            before, now = found.get(name), facts[name]
            raise ConfigError(
                f"{self.key}.cache: {self.folder} holds predictions of another box, or of one that "
                f"was queried differently: {name} was {before!r}, now it is {now!r}. Give another "
                "folder"
            )

    def find(self, image: np.ndarray) -> Prediction | None:
        """The prediction for an image (3, H, W) uint8, or None.

        Raises:
            DataError: its file is damaged.
        """
        path = self.path(image)
        if not path.is_file():
            return None
        try:
            return read_prediction(path, self.num_classes)
        except DataError as error:
            raise DataError(f"{self.key}.cache: {error} Or delete it, to query again.") from None

    def keep(self, image: np.ndarray, prediction: Prediction) -> Prediction:
        """Writes the answer for an image (3, H, W) uint8; returns it as ``find`` will."""
        write_prediction(self.path(image), prediction)
        found = self.find(image)
        assert found is not None  # just written
        return found

    def path(self, image: np.ndarray) -> Path:
        """The file of an image (3, H, W) uint8: named by its size and content."""
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image).data)
        name = digest.hexdigest()
        return self.folder / _PREDICTIONS / name[:2] / f"{name[2:]}.npz"

    @property
    def used(self) -> int:
        """Number of images that have been queried, by all processes and runs."""
        path = self.folder / _COUNT
        return path.stat().st_size if path.is_file() else 0

    @property
    def kept(self) -> int:
        """Number of predictions in the folder."""
        return sum(1 for _ in (self.folder / _PREDICTIONS).glob("*/*.npz"))

    def reserve(self, count: int) -> int:
        """Counts up to ``count`` queries that are about to be sent; returns how many may be."""
        if self.max_queries is not None:
            count = min(count, self.max_queries - self.used)
        if count <= 0:
            return 0
        if self._facts is not None:  # not before a query, so that a check writes nothing
            write_text(self.folder / _FACTS, json.dumps(self._facts, indent=2) + "\n")
            self._facts = None
        # Appending is atomic, and says where: what lies beyond the budget was taken by another
        # process in between.
        handle = os.open(self.folder / _COUNT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, b"." * count)
            end = os.lseek(handle, 0, os.SEEK_CUR)
        finally:
            os.close(handle)
        beyond = 0 if self.max_queries is None else end - self.max_queries
        return max(0, count - max(0, beyond))
