"""Finds stages and head in a traced forward pass of a network that does not name them.

A *unit* is the largest module whose output has its input's stride or twice that stride: a block or
a stage. Only units that the logits depend on count; if the network begins in a submodule called
``encoder`` or ``backbone``, only those inside it. The *deepest* feature is the last unit with the
most channels at the largest stride (up to 32). Stage k is the last unit at stride 2^k that this
feature depends on. A dilated encoder, which does not reach stride 32, has more stages at its
largest stride, one for each increase of the number of channels. ``head`` is the input of the layer
that computes the logits, or the deepest feature if no such layer is found.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.autograd.graph import Node

from segkd.models.tap_places import Place
from segkd.models.taps import Call, Probe

_LEVELS = 5  # stage5 is at stride 32
_ENCODERS = ("encoder", "backbone")


def find_taps(probe: Probe, logits: Tensor, num_classes: int) -> dict[str, Place]:
    """The places of ``stage1`` … ``stage5`` and ``head``, as far as they are found.

    Args:
        probe: a traced forward pass that is still open.
        logits: its output (1, K, h, w).
        num_classes: K.
    """
    classifier = _classifier(probe, logits, num_classes)
    last = len(probe.calls) if classifier is None else probe.calls.index(classifier)
    used = _ancestors(logits.grad_fn)
    units = [
        unit
        for unit in _units(probe, 0, len(probe.calls), last)
        if unit.level and (not used or unit.call.output_node in used)
    ]
    stages = _stages(probe, units, classifier)
    found = {f"stage{level}": probe.place(unit.call) for level, unit in sorted(stages.items())}
    if classifier is not None:
        found["head"] = probe.place(classifier, before=True)
    elif stages:
        found["head"] = probe.place(stages[max(stages)].call)
    return found


@dataclass(frozen=True, eq=False)
class _Unit:
    """A call whose output (1, C, h, w) has the stride 2^level."""

    call: Call
    output: Tensor
    level: int

    @property
    def channels(self) -> int:
        return self.output.shape[1]


def _stages(probe: Probe, units: list[_Unit], classifier: Call | None) -> dict[int, _Unit]:
    """The unit of each level; level k is stride 2^k, or a later stage of a dilated encoder."""
    if not units:
        return {}
    units = _of_encoder(probe, units, classifier)
    bottom = max(unit.level for unit in units)
    deep = [unit for unit in units if unit.level == bottom]
    # A bare convolution is more likely a decoder's projection than the end of an encoder.
    deep = [unit for unit in deep if not isinstance(unit.call.module, nn.Conv2d)] or deep
    widest = max(unit.channels for unit in deep)
    deepest = [unit for unit in deep if unit.channels == widest][-1]
    way = _ancestors(deepest.call.output_node)
    units = [unit for unit in units if not way or unit.call.output_node in way]
    stages = {unit.level: unit for unit in units}
    # A pooling layer that leads to the largest stride does not end a stage.
    deep = [unit for unit in units if unit in deep and (unit is deepest or not _pools(unit))]
    for extra, unit in enumerate(_widening(deep, _LEVELS - bottom + 1)):
        stages[bottom + extra] = unit
    return stages


def _pools(unit: _Unit) -> bool:
    learns = next(unit.call.module.parameters(), None) is not None
    given = unit.call.given
    return not learns and given is not None and given.shape != unit.output.shape


def _widening(units: list[_Unit], most: int) -> list[_Unit]:
    """The last unit of each width, as channels grow; at most ``most``, at the largest steps."""
    groups: list[_Unit] = []
    for unit in units:
        if groups and unit.channels == groups[-1].channels:
            groups[-1] = unit
        elif not groups or unit.channels > groups[-1].channels:
            groups.append(unit)
    while len(groups) > most:
        widths = [unit.channels for unit in groups]
        steps = [wide / narrow for narrow, wide in pairwise(widths)]
        del groups[steps.index(min(steps))]
    return groups


def _of_encoder(probe: Probe, units: list[_Unit], classifier: Call | None) -> list[_Unit]:
    """The units in a submodule called encoder or backbone, if the network begins there."""
    first = next(call.path for call in probe.calls if _level(probe, call.output))
    steps = first.split(".")
    for number, step in enumerate(steps, start=1):
        prefix = ".".join(steps[:number]) + "."
        outside = classifier is None or not classifier.path.startswith(prefix)
        if step in _ENCODERS and outside:
            return [unit for unit in units if f"{unit.call.path}.".startswith(prefix)] or units
    return units


def _units(probe: Probe, start: int, end: int, classifier: int) -> Iterator[_Unit]:
    """The units among calls ``start`` to ``end``, in order, except around the classifier."""
    outer: list[int] = []
    index = end - 1
    while index >= start:
        outer.append(index)
        index = probe.calls[index].begun - 1
    for index in reversed(outer):
        call = probe.calls[index]
        around = call.begun <= classifier <= index
        unit = None if around else _unit(probe, call)
        given = _level(probe, call.given)
        if unit is not None and given is not None and given <= unit.level <= given + 1:
            yield unit
        elif call.begun < index:
            yield from _units(probe, call.begun, index, classifier)
        elif unit is not None and unit.level:
            yield unit


def _unit(probe: Probe, call: Call) -> _Unit | None:
    level = _level(probe, call.output)
    if call.output is None or level is None:
        return None
    return _Unit(call, call.output, level)


def _level(probe: Probe, value: Tensor | None) -> int | None:
    """k of a feature map (1, C, h, w) at stride 2^k, 0 to 5; None for anything else."""
    if value is None or value.ndim != 4 or 0 in value.shape:
        return None
    sides = zip(probe.size, value.shape[2:], strict=True)
    levels = [math.log2(whole / side) for whole, side in sides]
    level = round(levels[0])
    near = all(abs(exact - level) < 0.3 for exact in levels)
    return level if near and 0 <= level <= _LEVELS else None


def _classifier(probe: Probe, logits: Tensor, num_classes: int) -> Call | None:
    """The layer that computes the logits; if several are summed, the one with most channels."""
    makers: dict[object, Call] = {
        call.output_node or call: call for call in probe.calls if _could_classify(call, num_classes)
    }
    seen: set[Node | None] = set()
    level: list[Node | None] = [logits.grad_fn]
    hits: list[Call] = []
    more: int | None = None
    while level and more != 0:
        hits += [makers[node] for node in level if node in makers]
        more = more - 1 if more is not None else 2 if hits else None
        seen.update(level)
        nodes = [n for node in level if node and node not in makers for n, _ in node.next_functions]
        level = [node for node in dict.fromkeys(nodes) if node is not None and node not in seen]
    hits = hits or list(makers.values())[-1:]
    return max(hits, key=lambda call: (_width(call), probe.calls.index(call)), default=None)


def _width(call: Call) -> int:
    """Channels of a call's input."""
    return 0 if call.given is None else call.given.shape[1]


def _could_classify(call: Call, num_classes: int) -> bool:
    weight = getattr(call.module, "weight", None)
    return (
        isinstance(weight, nn.Parameter)
        and weight.ndim > 1
        and call.given is not None
        and call.given.ndim == 4
        and call.output is not None
        and call.output.ndim == 4
        and call.output.shape[1] == num_classes
    )


def _ancestors(node: Node | None) -> set[Node]:
    """All autograd nodes that ``node`` depends on, including itself."""
    seen: set[Node] = set()
    waiting = [node] if node is not None else []
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [parent for parent, _ in current.next_functions if parent is not None]
    return seen
