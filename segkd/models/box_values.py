"""Checks what a black box returned: probabilities, logits, class ids, or one clear message."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from segkd.models.query_error import QueryError

Returns = Literal["auto", "probabilities", "logits", "labels"]
_SHOWN = 5  # keys of a mapping
_ITEMS = (list, tuple)


def checked_values(
    found: Any, images: Tensor, num_classes: int, returns: Returns = "auto", who: str = ""
) -> Tensor:
    """What a black box returned, as probabilities (B, K, h, w) or class ids (B, h, w).

    Sums of probabilities and ranges of class ids are not checked here.

    Args:
        found: by the box: an array, a tensor, or a list of them.
        images: (B, 3, H, W) of the query.
        num_classes: K.
        returns: what it should be; logits become probabilities.
        who: the box, for messages; empty: "a black-box teacher".

    Returns:
        float32 (B, K, h, w), finite and at least 0, or int64 (B, h, w).

    Raises:
        QueryError: it is something else.
    """
    returned = _Returned(found, images, num_classes, returns, who or "a black-box teacher")
    values = returned.tensor()
    return (returned.labels if returned.are_labels(values) else returned.shares)(values)


class _Returned:
    """A returned value with all that messages need."""

    def __init__(
        self, found: Any, images: Tensor, num_classes: int, returns: Returns, who: str
    ) -> None:
        self.found, self.images, self.num_classes = found, images, num_classes
        self.returns, self.who = returns, who

    def tensor(self) -> Tensor:
        """The value as a tensor of numbers, on any device."""
        found = self.found
        if isinstance(found, Tensor):
            values = found.detach()
        else:
            if isinstance(found, _ITEMS) and all(isinstance(item, Tensor) for item in found):
                found = [item.detach().cpu().numpy() for item in found]
            values = torch.from_numpy(self._numbers(found))
        if values.is_complex() or values.layout != torch.strided:
            raise self._error(f"returned a tensor of {values.dtype}, {values.layout}")
        return values.to(self.images.device)

    def _numbers(self, found: Any) -> np.ndarray:
        """An array of a type that torch has."""
        array = None
        if not (found is None or isinstance(found, str | bytes | Mapping)):
            try:
                array = np.asarray(found)
            except Exception:  # e.g. rows of unequal lengths; an object may raise anything
                array = None
        kind = "" if array is None else array.dtype.kind
        if array is None or kind not in "biuf" or array.ndim == 0:
            raise self._error(f"returned {self._described()}")
        if kind == "f":
            return array.astype(array.dtype if array.dtype.itemsize <= 8 else np.float64)
        return array.astype(np.int64)

    def _described(self) -> str:
        found = self.found
        kind = type(found).__name__
        if found is None:
            return "None (does every path end in a `return`?)"
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()  # else Python warns that it was never awaited
            return f"a {kind}, which nobody awaits: call asyncio.run inside of the function"
        if isinstance(found, Mapping):
            keys = [repr(key) for key in found]
            more = ", …" if len(keys) > _SHOWN else ""
            return f"a {kind} with the keys {', '.join(keys[:_SHOWN])}{more}: return one of them"
        if isinstance(found, _ITEMS):
            kinds = ", ".join(dict.fromkeys(_kind_of(item) for item in found)) or "nothing"
            return f"a {kind} of {len(found)}: {kinds}"
        return f"a value of type {_kind_of(found)}"

    def are_labels(self, values: Tensor) -> bool:
        """Whether these are class ids, by the key ``returns`` or else by shape and type."""
        if self.returns == "auto":
            return values.ndim == 3 and not values.is_floating_point()
        return self.returns == "labels"

    def labels(self, values: Tensor) -> Tensor:
        """int64 (B, h, w)."""
        if values.ndim == 4 and values.shape[1] == 1:
            values = values[:, 0]  # label maps often keep an axis of one channel
        if values.ndim != 3:
            raise self._error(f"returned {_shape(values)}")
        self._check_size(values)
        if values.is_floating_point() and not bool((values == values.round()).all()):
            raise self._error(f"returned {_shape(values)}, which are not whole numbers")
        return values.long()

    def shares(self, values: Tensor) -> Tensor:
        """float32 (B, K, h, w), finite, at least 0."""
        logits = self.returns == "logits"
        shape = tuple(values.shape)
        if values.ndim != 4 or not (values.is_floating_point() or logits):
            raise self._error(f"returned {_shape(values)}")
        if shape[1] != self.num_classes:
            last = shape[3] == self.num_classes
            repair = (
                "The classes come second: transpose(0, 3, 1, 2)"
                if last
                else "If the teacher has other classes than the data, set its `classes: {from: …, "
                "map: …}`"
            )
            raise self._error(f"returned {_shape(values)}: {shape[1]} classes", repair)
        self._check_size(values)
        values = values.float()
        wrong = ~torch.isfinite(values).flatten(1).all(1)
        if bool(wrong.any()):
            what = "NaN" if bool(values.isnan().any()) else "infinite numbers"
            text = f"returned {what} for {int(wrong.sum())} of {len(wrong)} images"
            raise self._error(text, at=wrong)
        if logits:
            return values.softmax(1)
        wrong = values.flatten(1).amin(1) < 0
        if bool(wrong.any()):
            low = float(values.min())
            repair = "If these are logits, set `returns: logits`"
            raise self._error(f"returned {_shape(values)}, smallest value {low:.3g}", repair, wrong)
        return values

    def _check_size(self, values: Tensor) -> None:
        """Checks that there is one map for each image, whose sides are not exchanged."""
        count, (height, width) = len(self.images), self.images.shape[2:]
        h, w = values.shape[-2:]
        if len(values) != count:
            raise self._error(
                f"returned {_shape(values)} for {count} images", "Return one prediction for each"
            )
        if values.numel() == 0:
            raise self._error(f"returned {_shape(values)}, without any value")
        # Sides are rounded to whole positions. Maps of another ratio may be those of a box that
        # resizes its images to one size.
        slack = max(height, width)
        if abs(h * width - w * height) > slack >= abs(h * height - w * width):
            raise self._error(
                f"returned {_shape(values)} for images of {height}x{width} (height x width)",
                "Height comes before width: exchange the last two axes",
            )

    def _error(self, text: str, repair: str = "", at: Tensor | None = None) -> QueryError:
        """The error, which says what is expected; ``at`` (B,) bool: for which images."""
        k, height, width = self.num_classes, *self.images.shape[2:]
        wanted = {
            "probabilities": f"probabilities (B, {k}, h, w) of a float type",
            "logits": f"logits (B, {k}, h, w)",
            "labels": "class ids (B, h, w)",
        }
        wanted["auto"] = f"{wanted['probabilities']}, or {wanted['labels']} of an integer type"
        message = (
            f"{self.who} {text}; expected {wanted[self.returns]}, as an array or a tensor, for "
            f"these B = {len(self.images)} images of {height}x{width}"
        )
        positions = () if at is None else tuple(at.nonzero().flatten().tolist())
        return QueryError(f"{message}. {repair}" if repair else message, positions)


def _shape(values: Tensor) -> str:
    return f"shape {tuple(values.shape)} of {str(values.dtype).removeprefix('torch.')}"


def _kind_of(value: Any) -> str:
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    dtype = getattr(value, "dtype", "")
    return kind if shape is None else f"{kind} of shape {tuple(shape)} {dtype}".rstrip()
