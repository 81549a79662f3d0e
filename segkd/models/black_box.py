"""Black boxes of a config: an ONNX file, a Python function, a folder of stored predictions."""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.config.black_box import BlackBoxConfig
from segkd.config.schema import TeacherConfig
from segkd.data.prediction_crops import Store, extra_key
from segkd.data.predictions import Prediction, PredictionFolder, top_of
from segkd.errors import ConfigError, SegKDError, did_you_mean
from segkd.models.box_outputs import outputs_of, shares_of
from segkd.models.class_map import FLOOR, source_classes
from segkd.models.class_names import order_of
from segkd.models.frozen import BlackBox
from segkd.models.query_cache import QueryCache
from segkd.models.query_error import QueryError
from segkd.structures import Outputs

Query = Callable[[Tensor], Any]  # images (B, 3, H, W) uint8 to whatever the box returns
_STORED = "its stored predictions are those of the training images"


class QueriedBox(BlackBox):
    """A black box that is queried with each image, or looked up in its cache.

    Args:
        query: takes images (B, 3, H, W) uint8, returns what ``shares_of`` takes.
        num_classes: K of the box.
        config: how it is queried.
        stride: pixels per position of the outputs; predictions are averaged.
        cache: of predictions; None: every image is a query.
        key: of the config, for messages.
    """

    def __init__(
        self,
        query: Query,
        num_classes: int,
        config: BlackBoxConfig,
        stride: int,
        cache: QueryCache | None,
        key: str,
    ) -> None:
        super().__init__(query, num_classes, max(stride, config.stride))
        self.config, self.cache, self.key = config, cache, key
        self._news, self._told = "", False
        if config.max_queries is not None:
            self.not_evaluated = "an evaluation would spend its max_queries"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs with ``kind="log_prob"`` for images (B, 3, H, W) uint8.

        Raises:
            SegKDError: the box fails, or returns no predictions, or has spent its budget.
        """
        if self.cache is None:
            listed, tail = self.queried(images), None
        else:
            listed, tail = self._from_cache(images, self.cache)
        known = listed.sum(1) + (0 if tail is None else tail.sum(1)) > 0
        height, width = images.shape[2:]
        size = (
            min(listed.shape[2], -(-height // self.stride)),
            min(listed.shape[3], -(-width // self.stride)),
        )
        if listed.shape[2:] != size:
            listed = F.adaptive_avg_pool2d(listed, size)
            tail = None if tail is None else F.adaptive_avg_pool2d(tail, size)
            known = F.adaptive_avg_pool2d(known[:, None].float(), size)[:, 0] >= 0.5
        return outputs_of(listed, tail, known, self.class_map, self.left_over, self.unknown)

    def queried(self, images: Tensor) -> Tensor:
        """What the box says about images (B, 3, H, W): (B, K, h, w), one per ``config.stride``.

        Raises:
            QueryError: the box fails, or returns no predictions.
            SegKDError: the box cannot take these images.
            TypeError: the images have shapes alone, as for counting operations.
        """
        if type(images) is not Tensor:  # of shapes alone, to count operations
            raise TypeError("the cost of a black box is unknown")
        config, origin = self.config, f"{self.key}: {self.config.origin}"
        try:
            found = self.answer(images)
        except SegKDError as error:
            raise error.at(self.key) from error
        except (Exception, SystemExit) as error:  # whatever code of others raises
            shape = (len(images), *images.shape[2:], 3)
            reason = " ".join(str(error).split())
            raise QueryError(
                f"{origin} failed on images of shape {shape}: {type(error).__name__}: {reason}"
            ) from error
        auto = config.returns == "auto"
        return shares_of(
            found,
            images,
            self.own_classes,
            config.stride,
            returns=config.returns,
            strict=auto,
            who=origin,
        )

    def news(self) -> str:
        """That its budget has been spent, once; else empty."""
        found, self._news = self._news, ""
        return found

    def _from_cache(self, images: Tensor, cache: QueryCache) -> tuple[Tensor, Tensor]:
        """Named probabilities and their rest, both (B, K, h, w)."""
        arrays = images.cpu().numpy()
        found = {number: cache.find(image) for number, image in enumerate(arrays)}
        places: dict[str, list[int]] = {}  # equal images are queried once
        for number, prediction in found.items():
            if prediction is None:
                places.setdefault(str(cache.path(arrays[number])), []).append(number)
        groups = list(places.values())
        granted = groups[: cache.reserve(len(groups))]
        if granted:
            first = torch.tensor([group[0] for group in granted], device=images.device)
            predictions = self.queried(images[first]).cpu().numpy()
            for group, prediction in zip(granted, predictions, strict=True):
                kept = cache.keep(arrays[group[0]], top_of(prediction, self.config.top_k))
                found |= dict.fromkeys(group, kept)
        if len(granted) < len(groups) and self.config.missing == "error":
            raise SegKDError(
                f"{self.key}: max_queries={self.config.max_queries} images have been queried, and "
                f"{len(groups) - len(granted)} of this batch are not in {cache.folder}. Raise "
                "max_queries, or set missing=skip to train on without them. Crops of random scale "
                "and place are new images each time: `predictions` of whole images are not"
            )
        if len(granted) < len(groups) and not self._told:
            self._told = True
            self._news = (
                f"max_queries={self.config.max_queries} are spent: from here on images that are "
                f"not in {cache.folder} are trained without it"
            )
        sizes = [one.size for one in found.values() if one is not None]
        height, width = images.shape[2:]
        stride = self.config.stride
        size = sizes[0] if sizes else (-(-height // stride), -(-width // stride))
        parts = [_dense(found[number], self.own_classes, size) for number in range(len(arrays))]
        listed, tail = (
            torch.from_numpy(np.stack(side)).to(images.device) for side in zip(*parts, strict=True)
        )
        return listed, tail


class StoredBox(BlackBox):
    """Stored predictions, which the loader cuts and moves with the images.

    Args:
        store: the predictions.
        key: of the config, for messages.
    """

    not_evaluated: str

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(self._refuse, store.num_classes, store.stride)
        self.store, self.key, self.not_evaluated = store, key, _STORED

    def from_batch(self, name: str, extra: Mapping[str, Tensor]) -> Outputs:
        """Outputs with ``kind="log_prob"``.

        Args:
            name: of the teacher.
            extra: of the batch.
        """
        parts = [extra.get(extra_key(name, part)) for part in ("listed", "tail", "known")]
        listed, tail, known = parts
        if listed is None or tail is None or known is None:
            self._refuse()
        assert listed is not None  # else refused
        if tail is None or not bool(tail.any()):
            tail = None
        elif self.own_unknown:
            tail = _of_the_known(tail, self.own_unknown)
        return outputs_of(listed, tail, known, self.class_map, self.left_over, self.unknown)

    def _refuse(self, *_: Any) -> None:
        raise SegKDError(f"{self.key}: {_STORED}, there are none of others")


def open_black_box(
    name: str,
    config: TeacherConfig,
    num_classes: int,
    classes: Sequence[str] = (),
    stride: int = 1,
) -> BlackBox:
    """The black box of an entry of ``teachers:``.

    Args:
        name: of the entry.
        config: with ``black_box``.
        num_classes: number of classes of the data.
        classes: their names.
        stride: of the student's logits.

    Raises:
        SegKDError: the file, function or folder cannot be used; says why.
    """
    options, key = config.black_box, f"teachers.{name}.black_box"
    assert options is not None
    theirs = source_classes(config.class_map) if config.class_map else tuple(classes)
    given = tuple(config.classes) if isinstance(config.classes, list) else ()  # in its order
    expected = len(theirs) or num_classes
    box: BlackBox
    if options.predictions is not None:
        folder = PredictionFolder(options.predictions, f"{key}.predictions")
        given = given or folder.classes
        store = Store(
            folder, len(given) or expected, max(stride, options.stride), options.missing == "skip"
        )
        box = StoredBox(store, f"{key}.predictions")
        box.own_unknown = folder.unknown
        box.about_classes = f"{folder.count} stored predictions in {folder.root}"
    else:
        query, named, facts = _opened(config, options, key)
        given = given or named
        count = len(given) or expected
        facts |= {"stride": options.stride, "top_k": options.top_k, "classes": count}
        cache = None
        if options.cache is not None:
            cache = QueryCache(options.cache, facts, count, options.max_queries, key)
        box = QueriedBox(query, count, options, stride, cache, key)
    if given and theirs:
        order = order_of(given, theirs, f"{key}: {options.origin}")
        if order != list(range(len(order))):
            matrix = torch.zeros(len(order), len(order))
            matrix[torch.arange(len(order)), torch.tensor(order)] = 1
            box.map_classes(matrix)
    return box


def _opened(
    config: TeacherConfig, options: BlackBoxConfig, key: str
) -> tuple[Query, tuple[str, ...], dict[str, Any]]:
    """How to query, names of its classes if it has any, and what identifies it."""
    if options.function is not None:
        facts = {"queried": options.function, "returns": options.returns}
        return _of_function(imported(options.function, f"{key}.function")), (), facts
    from segkd.models.onnx_box import open_onnx

    path = options.onnx.expanduser() if options.onnx is not None else None
    if path is None or not path.is_file():
        what = "is a folder" if path is not None and path.is_dir() else "does not exist"
        raise ConfigError(f"{key}.onnx: {options.onnx} {what}: give an .onnx file")
    query, names = open_onnx(path, config.normalize, options.returns, f"{key}.onnx")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    normalize = config.model_dump(mode="json")["normalize"]
    return query, names, {"queried": digest, "returns": options.returns, "normalize": normalize}


def imported(reference: str, key: str) -> Callable[[np.ndarray], Any]:
    """The function that ``module:function`` names; it takes images (B, H, W, 3) uint8.

    Args:
        reference: the text.
        key: of the config, or option, for messages.

    Raises:
        ConfigError: there is none; says what is wrong.
    """
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        here = Path(module_name.split(".")[0])
        repair = "Install it, or add its folder to PYTHONPATH"
        if here.is_dir() or here.with_suffix(".py").is_file():
            repair = "It is in the working folder: begin the command with PYTHONPATH=."
        raise ConfigError(
            f"{key}: module '{module_name}' cannot be imported: {reason}. {repair}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        what = "has no" if function is None else f"has a {type(function).__name__}, no function"
        known = [one for one, value in vars(module).items() if inspect.isfunction(value)]
        hint = did_you_mean(name, known) or " It has no functions."
        raise ConfigError(f"{key}: module '{module_name}' {what} '{name}'.{hint}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"{key}: '{name}' of module '{module_name}' is `async def`, which returns a coroutine. "
            "Write a function that calls asyncio.run on it, and name that one"
        )
    return function


def _of_function(function: Callable[[np.ndarray], Any]) -> Query:
    def query(images: Tensor) -> Any:
        return function(np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy()))

    return query


def _of_the_known(tail: Tensor, unknown: tuple[int, ...]) -> Tensor:
    """The rest (B, K, h, w) of the probability, spread over those that the teacher can know."""
    kept = tail.clone()
    kept[:, list(unknown)] = 0
    return kept * (tail.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(FLOOR))


def _dense(
    prediction: Prediction | None, num_classes: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Named probabilities (K, h, w), and the rest, spread evenly over the others."""
    listed, tail = np.zeros((2, num_classes, *size), np.float32)
    if prediction is None:
        return listed, tail
    if prediction.ids is None:
        return prediction.values.astype(np.float32), tail
    np.put_along_axis(listed, prediction.ids, prediction.values, axis=0)
    total = prediction.values.sum(0)
    rest = np.where(total > 0, np.maximum(1 - total, 0), 0) / max(
        num_classes - len(prediction.ids), 1
    )
    tail += rest
    np.put_along_axis(tail, prediction.ids, 0, axis=0)
    return listed, tail
