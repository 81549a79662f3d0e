"""Teachers of other libraries: ``hf:``, ``timm:`` and ``torchvision:`` of an entry."""

from collections.abc import Callable, Sequence

from segkd.config.schema import TeacherConfig
from segkd.errors import ConfigError, shortened
from segkd.models.class_names import about_no_names, match_classes
from segkd.models.network import Network
from segkd.models.student_info import unnamed
from segkd.models.teacher_table import own_names

Build = Callable[[Sequence[str] | None], Network]


def open_library(
    name: str, config: TeacherConfig, num_classes: int, classes: Sequence[str]
) -> Network:
    """The network of an entry of ``teachers:`` with a key of another library.

    Args:
        name: of the teacher.
        config: its entry.
        num_classes: number of classes of the data.
        classes: their names; without a class map, the model's must be the same.

    Raises:
        SegKDError: there is no such model, its weights cannot be had, or its classes are others.
    """
    if config.timm:
        from segkd.models.timm_backbone import TimmBackbone

        _refuse_classes(config, config.timm)
        return TimmBackbone(config.timm, config.weights, config.normalize, config.options)
    if config.torchvision:
        return _of_torchvision(name, config, num_classes, classes)
    return _of_transformers(name, config, num_classes, classes)


def _of_torchvision(
    name: str, config: TeacherConfig, num_classes: int, classes: Sequence[str]
) -> Network:
    from segkd.models.torchvision_network import TorchvisionNetwork, find_weights

    _refuse_options(config, config.torchvision)
    weights = find_weights(config.torchvision, config.weights)
    what = str(weights.file or config.torchvision)

    def build(names: Sequence[str] | None) -> Network:
        return TorchvisionNetwork(weights, config.normalize, names)

    own = weights.classes
    return _named(name, config, own, weights.entry is None, what, num_classes, classes, build)


def _of_transformers(
    name: str, config: TeacherConfig, num_classes: int, classes: Sequence[str]
) -> Network:
    from segkd.models.hf_source import read_source

    source = read_source(config.hf, config.trust_remote_code)
    if not source.segments:
        from segkd.models.hf_backbone import hf_backbone

        _refuse_classes(config, config.hf)
        return hf_backbone(source, config.normalize, config.options)
    from segkd.models.huggingface import HuggingFace

    _refuse_options(config, config.hf)

    def build(names: Sequence[str] | None) -> Network:
        return HuggingFace(source, config.normalize, names)

    own = source.classes
    return _named(name, config, own, unnamed(own), config.hf, num_classes, classes, build)


def _named(
    name: str,
    config: TeacherConfig,
    own: Sequence[str],
    nameless: bool,
    what: str,
    num_classes: int,
    classes: Sequence[str],
    build: Build,
) -> Network:
    """A network with classes; without a class map, they must be those of the data.

    Args:
        name: of the teacher.
        config: its entry.
        own: the model's classes.
        nameless: whether their names mean nothing.
        what: the model or file, for messages.
        num_classes: number of classes of the data.
        classes: their names.
        build: creates the network, with other names for its classes if given.
    """
    table = config.class_map
    if table is not None:
        return build(own_names(table, own, what))
    if len(own) != num_classes:
        raise ConfigError(
            f"{what} has {len(own)} classes, the data has {num_classes}. Say which of its "
            "classes is which of the data: classes: {map: FILE}, lines `its class: class`, which "
            f"`segkd data map {what} DATA --write FILE` drafts, or classes: {{map: names}}. Its "
            f"classes: {shortened(list(own))}"
        )
    network = build(None)
    given = config.classes if isinstance(config.classes, list) else []
    if classes and (given or not nameless):
        network.classes_match = match_classes(network, given or own, classes, what)
    elif classes:
        network.classes_match = about_no_names(f"teachers.{name}", what, classes)
    return network


def _refuse_classes(config: TeacherConfig, what: str) -> None:
    if config.classes:
        raise ConfigError(
            f"classes: {what} is a backbone, which has features but no classes. Remove the key"
        )


def _refuse_options(config: TeacherConfig, what: str) -> None:
    for key in config.options:
        raise ConfigError(f"options.{key}: {what} has no options. Remove the key")
