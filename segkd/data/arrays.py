"""A caller's own images and label maps as a Dataset."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segkd.data.base import DataConfig, Dataset, Sample
from segkd.errors import DataError


class Arrays(Dataset):
    """A sequence of (image, label) pairs in memory.

    Args:
        pairs: supports ``len`` and indexing; image (H, W, 3) uint8 RGB, label (H, W) integers or
            None. It may be lazy, e.g. a ``torch.utils.data.Dataset`` of such pairs.
        classes: K names; the position is the class id.
        palette: (K, 3) uint8 RGB; default: evenly spaced hues.
        ignore_index: the label of void pixels.
        config: sizes and augmentation; default: the defaults of DataConfig.
        split: name of the split, for messages.

    Raises:
        DataError: no pairs; when reading, an item that is not a pair, with its index.
    """

    name = "arrays"
    expected_tree = "no files: pass train_set= and val_set= to segkd.train"

    def __init__(
        self,
        pairs: Sequence[Any],
        classes: Sequence[str],
        *,
        palette: np.ndarray | None = None,
        ignore_index: int = 255,
        config: DataConfig | None = None,
        split: str = "",
    ) -> None:
        if not isinstance(classes, Sequence) or isinstance(classes, str):
            raise DataError(
                "dataset 'arrays' is for Python: call segkd.train(…, train_set=pairs, "
                "val_set=pairs, classes=['road', …]), or choose another data.name"
            )
        super().__init__(config or DataConfig(name=self.name), split)
        self.pairs, self.classes, self.ignore_index = pairs, tuple(classes), ignore_index
        self.palette = _hues(len(self.classes)) if palette is None else palette
        if len(pairs) == 0:
            raise DataError("a dataset of arrays has no pairs: give at least one (image, label)")

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """The image and its label. Raises DataError for an item that is not a pair."""
        pair = self.pairs[index]
        if isinstance(pair, Mapping):
            keys = ", ".join(map(str, pair))
            raise DataError(
                f"sample {index} has the keys {keys}; expected a pair (image, label or None)"
            )
        try:
            image, label = pair
        except (TypeError, ValueError):
            raise DataError(f"sample {index} is not a pair (image, label or None)") from None
        if label is not None:
            label = np.asarray(label)
            if label.ndim != 2:
                raise DataError(
                    f"sample {index}: got a label of shape {label.shape}, expected (H, W): one "
                    "class id per pixel"
                )
            if label.dtype.kind not in "iu":
                raise DataError(
                    f"sample {index}: got a label of {label.dtype}, expected integers: class ids, "
                    f"or {self.ignore_index} for void"
                )
            label = label.astype(np.int32)
        return Sample(np.asarray(image), label, f"sample {index}")


def _hues(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB with evenly spaced hues."""
    colours = [colorsys.hsv_to_rgb(k / count, 0.75, 0.9) for k in range(count)]
    return (255 * np.array(colours)).round().astype(np.uint8)
