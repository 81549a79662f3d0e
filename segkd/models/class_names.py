"""The classes of a file against those of the data: the same, in another order, or others.

The same number of classes is not enough: a teacher whose classes stand in another order teaches
that roads are cars, and no shape says so.
"""

from collections.abc import Sequence

import torch
from torch import nn

from segkd.errors import CheckpointError
from segkd.models.network import Network
from segkd.models.student_info import StudentInfo

_SHOWN = 5


def match_classes(
    network: Network, given: Sequence[str], wanted: Sequence[str], where: object
) -> str:
    """Brings the outputs of a network into the order of the data, in place.

    Names agree whatever their case, and whether words are parted by blanks, ``-`` or ``_``.

    Args:
        given: the network's classes.
        wanted: those of the data.
        where: the file, for messages.

    Returns:
        What was done, for the log; empty where the order was right.

    Raises:
        CheckpointError: other classes, or a network whose outputs cannot be reordered.
    """
    order = order_of(given, wanted, where)
    if order == list(range(len(order))):
        return ""
    _reorder(network, order, where)
    network.info = _renamed(network.info, order, wanted)
    first = next(place for place, old in enumerate(order) if place != old)
    return (
        f"its classes were brought into the order of the data, by name (its {order[first]} is "
        f"'{wanted[first]}', here {first})"
    )


def order_of(given: Sequence[str], wanted: Sequence[str], where: object) -> list[int]:
    """For each class of the data its position in the file. Raises CheckpointError."""
    mine, theirs = [_plain(name) for name in wanted], [_plain(name) for name in given]
    if mine == theirs:
        return list(range(len(mine)))
    if sorted(mine) == sorted(theirs) and len(set(mine)) == len(mine):
        return [theirs.index(name) for name in mine]
    raise CheckpointError(
        f"{where} was trained on other classes than those of the data: "
        f"{_only('only in the file', given, mine)}{_only('only in the data', wanted, theirs)}the "
        f"file has {len(given)}, the data has {len(wanted)}. Use a checkpoint of the same classes; "
        "where only the spelling differs, write the names alike (`classes` in data.spec)"
    )


def no_names(config_key: str, file: object, wanted: Sequence[str]) -> str:
    """The warning for weights that do not say what their classes are."""
    shown = ", ".join(wanted[:_SHOWN]) + (", …" if len(wanted) > _SHOWN else "")
    return (
        f"{config_key}: {file} has no names of classes. Its outputs are taken in the order of the "
        f"data ({shown}). If theirs is another one, say so: {config_key}.classes=[NAME, …]"
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
    axes = {nn.Conv2d: 0, nn.Linear: 0, nn.ConvTranspose2d: 1}
    axis = next((axis for kind, axis in axes.items() if isinstance(layer, kind)), None)
    if axis is None or getattr(layer, "groups", 1) != 1 or network.exist_head is not None:
        raise CheckpointError(
            f"{where} has the classes of the data in another order, and the outputs of "
            f"{network.title} cannot be reordered. Declare the classes of the data in the order "
            "of the file"
        )
    rows = torch.tensor(order)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.index_select(axis, rows.to(layer.weight.device)))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[rows])


def _renamed(facts: StudentInfo, order: list[int], classes: Sequence[str]) -> StudentInfo:
    palette = facts.palette[order]
    payload = {**facts.payload, "classes": list(classes), "palette": palette.tolist()}
    return StudentInfo.of(payload)
