"""Stages and head of a network that names none, found in a traced forward pass.

A *unit* is the largest module whose output is a map at its input's stride or at twice that stride:
a block, or a stage. Only those count that the logits are made from; where the network begins in a
submodule called ``encoder`` or ``backbone``, only those in there. The *deepest* feature is the last
unit with the most channels at the largest stride (up to 32). Stage k is the last unit at stride 2^k
on the way there. An encoder that does not go down to stride 32 (a dilated one) has more stages at
its largest stride, one for each time that its units have more channels than before. ``head`` is
what goes into the layer that makes the logits, or the deepest feature if no such layer is found.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from segkd.models.taps import Call, Place, Probe

_LEVELS = 5  # stage5 is at stride 32
_ENCODERS = ("encoder", "backbone")


def find_taps(probe: Probe, logits: Tensor, num_classes: int) -> dict[str, Place]:
    """Where ``stage1`` … ``stage5`` and ``head`` are, as far as they are found.

    Args:
        probe: a traced pass that is still open.
        logits: (1, K, h, w), what it answered.
        num_classes: K.
    """
    classifier = _classifier(probe, logits, num_classes)
    last = len(probe.calls) if classifier is None else probe.calls.index(classifier)
    used = _ancestors(logits.grad_fn)
    units = [
        unit
        for unit in _units(probe, 0, len(probe.calls), last)
        if _level(probe, unit.output) and (not used or unit.output_node in used)
    ]
    stages = _stages(probe, units, classifier)
    found = {f"stage{level}": probe.place(unit) for level, unit in sorted(stages.items())}
    if classifier is not None:
        found["head"] = probe.place(classifier, before=True)
    elif stages:
        found["head"] = probe.place(stages[max(stages)])
    return found


def _stages(probe: Probe, units: list[Call], classifier: Call | None) -> dict[int, Call]:
    """The unit of each level; level k is stride 2^k, or a later one of a dilated encoder."""
    if not units:
        return {}
    units = _of_encoder(probe, units, classifier)
    bottom = max(_level(probe, unit.output) for unit in units)
    deep = [unit for unit in units if _level(probe, unit.output) == bottom]
    # A bare convolution is more likely a decoder's projection than the end of an encoder.
    deep = [unit for unit in deep if not isinstance(unit.module, nn.Conv2d)] or deep
    widest = max(unit.output.shape[1] for unit in deep)
    deepest = [unit for unit in deep if unit.output.shape[1] == widest][-1]
    way = _ancestors(deepest.output_node)
    units = [unit for unit in units if not way or unit.output_node in way]
    stages = {_level(probe, unit.output): unit for unit in units}
    # A pooling that leads to the largest stride ends no stage.
    deep = [unit for unit in units if unit in deep and (unit is deepest or not _pools(unit))]
    for extra, unit in enumerate(_widening(deep, _LEVELS - bottom + 1)):
        stages[bottom + extra] = unit
    return stages


def _pools(unit: Call) -> bool:
    learns = next(unit.module.parameters(), None) is not None
    return not learns and unit.given is not None and unit.given.shape != unit.output.shape


def _widening(units: list[Call], most: int) -> list[Call]:
    """The last unit of each width, as channels grow; at most ``most``, at the largest steps."""
    groups: list[Call] = []
    for unit in units:
        channels = unit.output.shape[1]
        if groups and channels == groups[-1].output.shape[1]:
            groups[-1] = unit
        elif not groups or channels > groups[-1].output.shape[1]:
            groups.append(unit)
    while len(groups) > most:
        widths = [unit.output.shape[1] for unit in groups]
        steps = [wide / narrow for narrow, wide in pairwise(widths)]
        del groups[steps.index(min(steps))]
    return groups


def _of_encoder(probe: Probe, units: list[Call], classifier: Call | None) -> list[Call]:
    """The units in a submodule called encoder or backbone, if the network begins there."""
    first = next(call.path for call in probe.calls if _level(probe, call.output))
    steps = first.split(".")
    for number, step in enumerate(steps, start=1):
        prefix = ".".join(steps[:number]) + "."
        outside = classifier is None or not classifier.path.startswith(prefix)
        if step in _ENCODERS and outside:
            return [unit for unit in units if f"{unit.path}.".startswith(prefix)] or units
    return units


def _units(probe: Probe, start: int, end: int, classifier: int) -> Iterator[Call]:
    """The units among calls ``start`` to ``end``, in order, but those around the classifier."""
    outer, index = [], end - 1
    while index >= start:
        outer.append(index)
        index = probe.calls[index].begun - 1
    for index in reversed(outer):
        call = probe.calls[index]
        around = call.begun <= classifier <= index
        level = None if call.output is None else _level(probe, call.output)
        given = None if call.given is None else _level(probe, call.given)
        if not around and level is not None and given is not None and given <= level <= given + 1:
            yield call
        elif call.begun < index:
            yield from _units(probe, call.begun, index, classifier)
        elif not around and level:
            yield call


def _level(probe: Probe, value: Tensor | None) -> int | None:
    """k of a map (1, C, h, w) at stride 2^k, 0 to 5; None for anything else."""
    if value is None or value.ndim != 4 or 0 in value.shape:
        return None
    sides = zip(probe.size, value.shape[2:], strict=True)
    levels = [math.log2(whole / side) for whole, side in sides]
    level = round(levels[0])
    near = all(abs(exact - level) < 0.3 for exact in levels)
    return level if near and 0 <= level <= _LEVELS else None


def _classifier(probe: Probe, logits: Tensor, num_classes: int) -> Call | None:
    """The layer that makes the logits; of several that are summed, the one with most channels."""
    makers = {
        call.output_node or call: call for call in probe.calls if _could_classify(call, num_classes)
    }
    seen, level, hits, more = set(), [logits.grad_fn], [], None
    while level and more != 0:
        hits += [makers[node] for node in level if node in makers]
        more = more - 1 if more is not None else 2 if hits else None
        seen.update(level)
        nodes = [n for node in level if node and node not in makers for n, _ in node.next_functions]
        level = [node for node in dict.fromkeys(nodes) if node is not None and node not in seen]
    hits = hits or list(makers.values())[-1:]
    return max(hits, key=lambda c: (c.given.shape[1], probe.calls.index(c)), default=None)


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


def _ancestors(node: object) -> set:
    """All autograd nodes that ``node`` is made from, itself among them."""
    seen, waiting = set(), [node] if node is not None else []
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return seen
