"""The key ``black_box`` of a teacher that only returns predictions."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class BlackBoxConfig(BaseModel):
    """One of ``onnx``, ``function`` and ``predictions``, and how it is queried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    onnx: Path | None = Field(None, description="any ONNX file, run by onnxruntime")
    function: str | None = Field(
        None,
        description="module:function on the import path; takes (B, H, W, 3) uint8, returns (B, K, "
        "h, w) probabilities or (B, h, w) class ids",
    )
    predictions: Path | None = Field(
        None, description="folder of stored predictions of the training images, see `segkd predict`"
    )
    returns: Literal["auto", "probabilities", "logits", "labels"] = Field(
        "auto", description="of onnx and function; auto: by the type, refuses sums other than 1"
    )
    stride: PositiveInt = Field(
        4, description="predictions are averaged to one per N x N pixels, or the student's stride"
    )
    cache: Path | None = Field(
        None, description="folder of predictions, by the content of the augmented image"
    )
    top_k: PositiveInt | None = Field(
        None, description="number of classes that the cache keeps per position; default: all"
    )
    max_queries: NonNegativeInt | None = Field(
        None, description="largest number of images ever queried, counted in `cache`"
    )
    missing: Literal["error", "skip"] = Field(
        "error",
        description="images without a prediction (no file, max_queries spent); skip: methods leave "
        "them out",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [key for key in ("onnx", "function", "predictions") if getattr(self, key)]
        if len(given) != 1:
            got = f"got {' and '.join(given)}" if given else "got none of them"
            raise ValueError(
                "give one of `onnx: FILE`, `function: module:function`, `predictions: FOLDER`; "
                f"{got}"
            )
        if self.function is not None and not _FUNCTION.fullmatch(self.function):
            raise ValueError(
                f"function: got '{self.function}', expected module:function, e.g. my_api:predict"
            )
        if self.predictions is not None:
            queried = ("returns", "cache", "top_k", "max_queries")
            for key in queried:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"`{key}` is for boxes that are queried, not for `predictions`"
                    )
        if self.cache is None:
            for key in ("max_queries", "top_k"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"`{key}` needs `cache: FOLDER`, in which predictions are kept"
                    )
        return self

    def without_queries(self) -> Self:
        """The same for a check or a measurement, which spends no budget and adds to no cache.

        With a budget it has no predictions; without one it is queried.
        """
        if self.cache is None:
            return self
        spent: dict[str, Any] = {"max_queries": 0, "missing": "skip"}
        queried = {"cache": None, "top_k": None}
        return self.model_copy(update=queried if self.max_queries is None else spent)

    @property
    def origin(self) -> str:
        """What is queried, for messages."""
        return self.function or str(self.onnx or self.predictions)
