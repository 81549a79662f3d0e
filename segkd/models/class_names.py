"""Compares the class names of a file with those of the data, and reorders outputs.

Comparing the number of classes is not enough: with another order of classes, shapes fit but a
teacher's roads are taken for cars.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn

from segkd.data.lane_base import left_of_car
from segkd.errors import CheckpointError
from segkd.models.network import Network
from segkd.models.student_info import StudentInfo

_SHOWN = 5


def match_classes(
    network: Network, given: Sequence[str], wanted: Sequence[str], where: object
) -> str:
    """Reorders the outputs of a network, in place, to the class order of the data.

    Names are compared without case, and with blanks, ``-`` and ``_`` as equal.

    Args:
        network: the network.
        given: its class names.
        wanted: class names of the data.
        where: the file, for messages.

    Returns:
        What was done, for the log; empty if the order was right.

    Raises:
        CheckpointError: the classes differ, or the outputs cannot be reordered.
    """
    order = order_of(given, wanted, where)
    if order == list(range(len(order))):
        return ""
    _reorder(network, order, where)
    network.info = _renamed(network.info, order, wanted)
    first = next(place for place, old in enumerate(order) if place != old)
    return (
        f"its classes were reordered by name to the order of the data (its {order[first]} is "
        f"'{wanted[first]}', here {first})"
    )


def order_of(given: Sequence[str], wanted: Sequence[str], where: object) -> list[int]:
    """For each class of the data its position in the file.

    Args:
        given: class names of the file.
        wanted: class names of the data.
        where: the file, for messages.

    Raises:
        CheckpointError: the classes differ.
    """
    mine, theirs = [_plain(name) for name in wanted], [_plain(name) for name in given]
    if mine == theirs:
        return list(range(len(mine)))
    if sorted(mine) == sorted(theirs) and len(set(mine)) == len(mine):
        return [theirs.index(name) for name in mine]
    raise CheckpointError(
        f"{where} was trained on other classes than those of the data: "
        f"{_only('only in the file', given, mine)}{_only('only in the data', wanted, theirs)}the "
        f"file has {len(given)}, the data has {len(wanted)}. Use a checkpoint of the same classes; "
        + _repair(given, wanted)
    )


def _repair(given: Sequence[str], wanted: Sequence[str]) -> str:
    """What else to do about classes that differ: keys choose lanes, names other classes."""
    sides = ("left", "right")
    if all(name.startswith(sides) for name in (*given[1:], *wanted[1:])):
        left, usual = left_of_car(given[1:]), [(len(names) - 1) // 2 for names in (given, wanted)]
        beside = f" data.left_lanes={left}" if [left, left_of_car(wanted[1:])] != usual else ""
        return f"as many lanes as it has: data.num_lanes={len(given) - 1}{beside}"
    return "if only the spelling differs, use the same names (`classes` in data.spec)"


def no_names(config_key: str, file: object, wanted: Sequence[str]) -> str:
    """``about_no_names`` as a line of its own, which begins with the key."""
    return f"{config_key}: {about_no_names(config_key, file, wanted)}"


def about_no_names(config_key: str, file: object, wanted: Sequence[str]) -> str:
    """The warning about weights without class names.

    Args:
        config_key: ``student`` or ``teachers.NAME``.
        file: the file with the weights.
        wanted: class names of the data.
    """
    shown = ", ".join(wanted[:_SHOWN]) + (", …" if len(wanted) > _SHOWN else "")
    return (
        f"{file} has no class names. Its outputs are assumed to be in the order of "
        f"the data ({shown}). If they are not, set {config_key}.classes=[NAME, …]"
    )


def _only(title: str, names: Sequence[str], others: Sequence[str]) -> str:
    found = [name for name in names if _plain(name) not in others]
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{title}: {', '.join(found[:_SHOWN])}{more}; "


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _reorder(network: Network, order: list[int], where: object) -> None:
    reorder = getattr(network, "reorder_classes", None)
    if reorder is not None:
        reorder(order)
        return
    layer = network.tap_module("logits")
    if not _is_plain(layer) or network.exist_head is not None:
        raise CheckpointError(
            f"{where} has the classes of the data in another order, and the outputs of "
            f"{network.title} cannot be reordered. Declare the classes of the data in the order "
            "of the file"
        )
    rows, axis = torch.tensor(order), 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    with torch.no_grad():
        layer.weight.copy_(layer.weight.index_select(axis, rows.to(layer.weight.device)))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[rows])


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear | nn.ConvTranspose2d]:
    """Whether a layer's outputs are reordered by its rows.

    A class derived from these may compute its weight, as weight norm does, or have more parts.
    """
    if type(layer) not in (nn.Conv2d, nn.Linear, nn.ConvTranspose2d):
        return False
    own = dict(layer.named_parameters(recurse=False))
    return "weight" in own and getattr(layer, "groups", 1) == 1


def _renamed(facts: StudentInfo, order: list[int], classes: Sequence[str]) -> StudentInfo:
    palette = facts.palette[order]
    payload = {**facts.payload, "classes": list(classes), "palette": palette.tolist()}
    return StudentInfo.of(payload)
