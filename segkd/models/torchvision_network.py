"""Segmentation models of torchvision by name, with their published weights or a file of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkd.checkpoint import differences, require_finite, with_counters
from segkd.config.schema import ModelConfig, Normalize
from segkd.errors import CheckpointError, ConfigError, SegKDError, did_you_mean
from segkd.models.encoder_weights import is_file
from segkd.models.foreign import read_state
from segkd.models.network import Network
from segkd.models.normalization import IMAGENET, Statistics, of_model
from segkd.models.student_info import StudentInfo
from segkd.models.taps import Record

ARCH = "torchvision"  # `arch` in messages; not one of `segkd list models`
_AUXILIARY = "aux_classifier."  # of training
_LICENCE = (
    "not stated for these weights; torchvision: terms may derive from the training data ({data})"
)


@dataclass(frozen=True)
class Published:
    """Weights for a model of torchvision.

    Attributes:
        name: of the model.
        entry: the library's facts about published weights; None for a file that is not one of them.
        file: with the weights; None: they are downloaded, unless they are in torch's cache.
        state: tensors of the file, without those of the auxiliary head.
    """

    name: str
    entry: Any | None
    file: Path | None = None
    state: dict[str, Tensor] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; invented ones for a file that is not published."""
        if self.entry is not None:
            return tuple(self.entry.meta["categories"])
        return StudentInfo.unknown(_rows(self.state or {}, self.name)).classes

    @property
    def statistics(self) -> Statistics:
        """(mean, std) of the published preprocessing."""
        if self.entry is None:
            return IMAGENET  # of all of torchvision's recipes
        preset = self.entry.transforms()
        return [float(v) for v in preset.mean], [float(v) for v in preset.std]

    @property
    def licence(self) -> str:
        """What is known; empty for a file that is not published."""
        if self.entry is None:
            return ""
        words = self.entry.name.partition("_WITH_")[0].removesuffix("_V1")
        return _LICENCE.format(data=words)


def find_weights(name: str, weights: str | None) -> Published:
    """The weights of a model, not yet downloaded.

    Args:
        name: of the model, e.g. ``deeplabv3_resnet101``.
        weights: their name in torchvision, or a file; None: the library's default.

    Raises:
        ConfigError: torchvision has no such segmentation model, or no such weights.
        CheckpointError: the file cannot be read.
    """
    from torchvision.models import get_model_weights, list_models, segmentation

    known = list_models(module=segmentation)
    if name not in known:
        raise ConfigError(
            f"torchvision: unknown segmentation model '{name}'.{did_you_mean(name, known)}"
        )
    entries = {entry.name: entry for entry in get_model_weights(name)}
    if weights is not None and is_file(weights):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise CheckpointError(f"weights: there is no file {path}")
        # A published file has a part of its hash in its name.
        published = {Path(entry.url).name: entry for entry in entries.values()}
        return Published(name, published.get(path.name), path, _state(path))
    if weights in (None, "DEFAULT"):
        weights = get_model_weights(name).DEFAULT.name
    if weights not in entries:
        raise ConfigError(
            f"torchvision: '{name}' has no weights '{weights}'. Its weights: {', '.join(entries)}; "
            "or give the path of a file"
        )
    return Published(name, entries[weights])


class TorchvisionNetwork(Network):
    """A segmentation model of torchvision, with its weights.

    Logits are taken before the up-sampling to the size of the image, the auxiliary head is dropped,
    and stages and ``head`` are found by a probe, see ``segkd.models.found``. Images are normalised
    as the weights' transforms do, and are not resized to the 520 pixels of these transforms.

    Args:
        weights: of ``find_weights``.
        normalize: of the configuration; other statistics than the weights' are a warning.
        classes: other names for its classes, in its order; None: its own.

    Raises:
        CheckpointError: the file does not fit the model.
        SegKDError: the weights could not be downloaded.
    """

    _order: Tensor | None

    def __init__(
        self,
        weights: Published,
        normalize: Normalize = "auto",
        classes: Sequence[str] | None = None,
    ) -> None:
        own = weights.classes
        used = of_model(weights.statistics, normalize)
        config = ModelConfig(arch=ARCH, normalize=used.key)
        super().__init__(config, len(own))
        self.normalization = used
        self.weights = weights
        if classes or weights.entry:  # else they have only the names of an unknown network
            self.info = StudentInfo.of({"classes": classes or own})
        self.model = _loaded(weights, len(own))
        self.register_buffer("_order", None, persistent=False)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        features = self.model.backbone(images)
        both = "low" in features  # of LR-ASPP
        logits: Tensor = self.model.classifier(features if both else features["out"])
        return logits if self._order is None else logits[:, self._order]

    def reorder_classes(self, order: list[int]) -> None:
        """Reorders the outputs: position i becomes the model's class ``order[i]``."""
        self._order = torch.tensor(order, device=self.device)

    def tap_names(self) -> list[str]:
        return ["logits"]

    def tap_root(self, path: str) -> str:
        return "model"

    @property
    def licence(self) -> str:
        return self.weights.licence

    @property
    def title(self) -> str:
        return f"torchvision's {self.weights.name}"


def _state(path: Path) -> dict[str, Tensor]:
    found = read_state(path)
    return {key: value for key, value in found.items() if not key.startswith(_AUXILIARY)}


def _rows(state: dict[str, Tensor], name: str) -> int:
    """Number of classes: rows of the last convolution."""
    rows = [value for key, value in state.items() if _is_last(key, name)]
    if not rows:
        raise CheckpointError(
            f"torchvision: the file has no classifier of '{name}', only e.g. "
            f"{', '.join(list(state)[:3])}. Give a state dict of this model"
        )
    return len(rows[-1])


def _is_last(key: str, name: str) -> bool:
    if name.startswith("lraspp"):
        return key == "classifier.low_classifier.weight"
    return key.startswith("classifier.") and key.endswith(".weight")


def _loaded(weights: Published, num_classes: int) -> Any:
    from torchvision.models import get_model

    keys = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
    if not weights.name.startswith("lraspp"):
        keys["aux_loss"] = False
    model = get_model(weights.name, **keys)
    state = weights.state if weights.state is not None else _downloaded(weights)
    where = f"torchvision: {weights.file or weights.entry}"
    own = model.state_dict()
    given = with_counters(own, state)
    missing, unknown, shapes = differences(own, given)
    if missing or unknown or shapes:
        wrong = [f"{len(missing)} are missing"] if missing else []
        wrong += [f"{len(unknown)} are unknown"] if unknown else []
        wrong += [f"{len(shapes)} have other shapes"] if shapes else []
        first = [*missing, *unknown, *shapes][0]
        raise CheckpointError(
            f"{where} does not fit {weights.name}: of its {len(own)} tensors "
            f"{', '.join(wrong)}, e.g. {first}. Name the model that the file is of"
        )
    require_finite(given, where)
    model.load_state_dict(given)
    return model


def _downloaded(weights: Published) -> dict[str, Tensor]:
    """The tensors from torch's cache, or else from the network."""
    assert weights.entry is not None  # a file has a state
    try:
        found = weights.entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the system, or a damaged file in the cache
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SegKDError(
            f"torchvision: {weights.entry} could not be downloaded ({reason}). Check the "
            f"connection, or give a local copy of {weights.entry.url} as `weights`; torch's cache "
            f"is {Path(torch.hub.get_dir()) / 'checkpoints'}"
        ) from error
    return {key: value for key, value in found.items() if not key.startswith(_AUXILIARY)}
