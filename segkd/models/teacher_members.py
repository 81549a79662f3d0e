"""One teacher of a run: opened as configured, then frozen."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from segkd.config.schema import TeacherConfig
from segkd.errors import ConfigError, SegKDError
from segkd.models.black_box import open_black_box
from segkd.models.build import build_network
from segkd.models.class_map import ClassTable, source_classes
from segkd.models.frozen import BlackBox, Teacher
from segkd.models.given import own_copy, with_classes
from segkd.models.library import open_library
from segkd.models.network import Network
from segkd.models.student_info import StudentInfo
from segkd.runtime import HALF_TYPES


def configured(
    name: str, config: TeacherConfig, num_classes: int, classes: Sequence[str], stride: int = 1
) -> Network | BlackBox:
    """The network or black box of an entry of ``teachers:`` that is no ensemble.

    Args:
        name: of the teacher.
        config: its entry.
        num_classes: number of classes of the data.
        classes: their names.
        stride: of the student's logits, to which black boxes are averaged.

    Raises:
        SegKDError: see ``build_network``; names the teacher.
    """
    if config.black_box:
        return open_black_box(name, config, num_classes, classes, stride)
    try:
        if config.library:
            network = open_library(name, config, num_classes, classes)
        elif config.class_map:
            given = source_classes(config.class_map)
            network = build_network(config.model(), len(given), given)
        else:
            network = build_network(config.model(), num_classes, classes)
    except SegKDError as error:
        raise error.at(f"teachers.{name}") from error
    network.input_scale = config.input_scale
    return network


def brought(
    name: str, config: TeacherConfig | None, network: Network | BlackBox, classes: Sequence[str]
) -> Network | BlackBox:
    """A copy of a teacher that the caller has brought, with the classes in the order expected.

    Args:
        name: of the teacher.
        config: its entry of ``teachers:``, whose ``classes`` are those of the network, and whose
            ``input_scale`` is how large it sees images; None: it has no entry.
        network: any object; what is no network is returned itself, and refused by ``frozen``.
        classes: names of the data's classes; empty: not known.

    Raises:
        SegKDError: it has other classes; names the teacher.
    """
    table = None if config is None else config.class_map
    if isinstance(network, BlackBox):  # nothing but a class map changes it
        return network if table is None else own_copy(network)
    if not isinstance(network, Network):
        return network
    found = network
    names = config.classes if config is not None and isinstance(config.classes, list) else []
    if names:
        found = own_copy(network)
        found.info = StudentInfo.of({"classes": names})
    try:
        wanted = source_classes(table) if table is not None and table.source else classes
        if len(wanted) == network.num_classes:  # ``frozen`` refuses another number
            found = with_classes(found, wanted, f"the given {network.title}")
    except SegKDError as error:
        raise error.at(f"teachers.{name}") from error
    found = own_copy(network) if found is network else found
    if config is not None and config.input_scale != 1:
        found.input_scale = config.input_scale
    return found


def frozen(
    name: str,
    network: Network | BlackBox,
    num_classes: int,
    taps: Collection[str],
    half: torch.dtype | None,
    gradient: bool,
    table: ClassTable | None = None,
    channels_last: bool | None = None,
) -> Teacher | BlackBox:
    """A network as a teacher that is never trained.

    Args:
        name: of the teacher.
        network: a black box is only checked, and gets the class map.
        num_classes: number of classes of the data.
        taps: values that methods tap.
        half: dtype of autocast; None: fp32.
        gradient: whether a method differentiates its outputs.
        table: its class map; None: its classes are those of the data.
        channels_last: its memory format, see ``Teacher``.

    Raises:
        ConfigError: it is no ``Network``, or has another number of classes.
    """
    if not isinstance(network, Network | BlackBox):
        raise ConfigError(
            f"teachers.{name}: got {type(network).__name__}, expected a Network. Wrap your module: "
            "segkd.models.module.wrap(module, num_classes, taps=…)"
        )
    expected = num_classes if table is None else len(table.given)
    has_classes = isinstance(network, BlackBox) or network.has_classes
    if has_classes and network.num_classes != expected:
        what = "the data has" if table is None else "`classes` names"
        raise ConfigError(
            f"teachers.{name}: it has {network.num_classes} classes, {what} {expected}"
        )
    if isinstance(network, BlackBox):
        if table is not None:
            network.map_classes(table.matrix(), table.left_over)
        return network
    placement: Mapping[str, Any] = {
        "half": half,
        "gradient": gradient,
        "channels_last": channels_last,
    }
    if table is None:
        return Teacher(network, taps, **placement)
    rule = table.left_over
    return Teacher(network, taps, class_map=table.matrix(), left_over=rule, **placement)


def precision_of(
    config: TeacherConfig | None,
    half: torch.dtype | None,
    device: torch.device | None,
    gradient: bool,
) -> torch.dtype | None:
    """The type of a teacher's autocast; None: fp32.

    A frozen teacher needs no more than three digits: what it says is averaged over thousands of
    positions. So it runs in bf16 on devices that are faster in it, unless it is differentiated.

    Args:
        config: its entry of ``teachers:``; None: a network of the caller.
        half: type of the run.
        device: of the run; None: a CPU.
        gradient: whether a method differentiates its outputs.
    """
    if config is not None and config.precision != "auto":
        return HALF_TYPES[config.precision]
    on_cuda = device is not None and device.type == "cuda"
    if half is None and on_cuda and not gradient and torch.cuda.is_bf16_supported(False):
        return torch.bfloat16
    return half
