"""Networks that a caller gives as objects: as networks of segkd, with the classes of the data."""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import nn

from segkd.config.schema import ModelConfig
from segkd.data.base import Dataset
from segkd.errors import ODD_VALUES, CheckpointError
from segkd.models.build import build_network, saved_config
from segkd.models.class_names import match_classes, order_of
from segkd.models.frozen import BlackBox
from segkd.models.module import wrap
from segkd.models.network import Network
from segkd.models.normalization import same, shown, statistics
from segkd.models.quantized import release_weights
from segkd.models.student_info import StudentInfo

_OF_WRAP = ("taps", "logits", "divisor", "encoder")  # what files of wrapped modules have
_SHOWN = 5  # class names in a message
Given = TypeVar("Given", Network, BlackBox)


def as_network(module: nn.Module, num_classes: int) -> Network | BlackBox:
    """A module as a network of segkd.

    Args:
        module: a network or black box, which is returned itself, or any module as of ``wrap``.
        num_classes: of a module that is neither.
    """
    return module if isinstance(module, Network | BlackBox) else wrap(module, num_classes)


def rewrapped(module: nn.Module, payload: Mapping[str, Any], source: object) -> Network:
    """A module as the network of a student's file, before its weights are loaded.

    Args:
        module: wrapped as the file says; a network is taken as it is, with a warning if it
            normalises images otherwise than the file says.
        payload: of the file.
        source: the file, for messages.

    Raises:
        CheckpointError: the file describes a network that is not valid.
        ConfigError: the module has not the submodules that the file names.
    """
    saved = saved_config(payload, source)
    theirs = saved.normalize
    if isinstance(module, Network):
        if not same(statistics(theirs), module.normalization.statistics):
            warnings.warn(
                f"{source}: its student was trained with normalize {theirs!r}, but the given "
                f"network normalises images by {shown(module.normalization.statistics)}. Give the "
                f"module itself, or segkd.models.module.wrap(…, normalize={theirs!r})",
                stacklevel=4,
            )
        return module
    known = {key: saved.options[key] for key in _OF_WRAP if key in saved.options}
    network = wrap(module, len(payload["classes"]), normalize=theirs, **known)
    if saved.exist_head is not None:
        network.add_exist_head(saved.exist_head)
    return network


def own_copy(network: Given) -> Given:
    """A copy that can be frozen or reordered while the caller's object stays as it is.

    What cannot be copied, such as a session of another runtime, is returned itself.
    """
    shared = {}
    if isinstance(network, BlackBox):  # a client of a service is not copied with it
        shared[id(network.answer)] = network.answer
    with contextlib.suppress(*ODD_VALUES, copy.Error):
        return copy.deepcopy(network, shared)
    return network


def with_classes(network: Network, classes: Sequence[str], what: str) -> Network:
    """A network whose outputs are in the order of the data.

    Args:
        network: of the caller; one without class names is assumed to have the right order.
        classes: names of the data's classes.
        what: the network, for messages.

    Returns:
        The network itself, or a copy whose ``classes_match`` says what was done.

    Raises:
        CheckpointError: it has other classes, or its outputs cannot be reordered.
    """
    if not network.info.named or _in_order(network, classes, what):
        return network
    reordered = own_copy(network)
    reordered.classes_match = match_classes(reordered, network.classes, classes, what)
    return reordered


def student_for(config: ModelConfig, given: Network | None, data: Dataset) -> Network:
    """The student that is to be trained on some data.

    Args:
        config: the block ``student:``.
        given: the caller's network, instead of the configured one; see ``adopt_classes``.
        data: gives the classes.

    Raises:
        SegKDError: see ``build_network`` and ``adopt_classes``.
    """
    if given is None:
        return build_network(config, len(data.classes), data.classes)
    adopt_classes(given, data.classes, data.palette)
    return given


def adopt_classes(network: Network, classes: Sequence[str], palette: np.ndarray) -> None:
    """Gives a student of the caller the classes of the data that it is going to be trained on.

    Outputs that have the data's classes in another order are reordered, in place. Those of other
    classes are trained to those of the data, whose names the network has from here on.

    Args:
        network: its ``classes_match`` says what was done; one without class names is left alone.
        classes: names of the data's classes.
        palette: (K, 3) uint8 RGB.

    Raises:
        CheckpointError: the outputs cannot be reordered.
    """
    old = network.classes
    if not network.info.named or len(old) != len(classes):  # another number is refused elsewhere
        return
    try:
        in_order = _in_order(network, classes, "")
    except CheckpointError:
        kept = {**network.info.payload, "classes": list(classes), "palette": palette.tolist()}
        network.info = StudentInfo.of(kept)
        more = ", …" if len(old) > _SHOWN else ""
        network.classes_match = (
            f"its classes were {', '.join(old[:_SHOWN])}{more}: its outputs are trained to the "
            "classes of the data"
        )
        return
    if not in_order:
        what = f"the given {network.title}"
        network.classes_match = match_classes(network, old, classes, what)


def _in_order(network: Network, classes: Sequence[str], what: str) -> bool:
    """Whether the order is that of the data. Raises CheckpointError for other classes."""
    order = order_of(network.classes, classes, what)
    return order == list(range(len(order)))


@contextlib.contextmanager
def lent(student: Network | None) -> Iterator[None]:
    """A caller's network while it is trained: a next run finds it as this one has.

    Afterwards the same parameters require gradients as before, and its layers compute with floats;
    of a run that was stopped these are the weights that its optimiser moved.

    Args:
        student: None: the run builds its own.
    """
    if student is None:
        yield
        return
    before = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    try:
        yield
    finally:
        release_weights(student)
        for parameter, required in before:
            parameter.requires_grad_(required)
