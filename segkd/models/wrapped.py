"""Tensors out of what training programs wrap around them: nested tables, prefixes, old names."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segkd.errors import CheckpointError

State = dict[str, Tensor]

_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.")
# What a network's own parts are called; beside them a prefix is a part, too.
_PARTS = re.compile(
    r"(encoder|decoder|segmentation_head|backbone|decode_head|head|classifier|pretrained|neck)\b"
)
_OF_SMP = (  # names before smp 0.5, as its own load_state_dict takes them
    (re.compile(r"^decoder\.0\."), "decoder.aspp."),
    (re.compile(r"^decoder\.1\."), "decoder.conv."),
    (re.compile(r"^decoder\.2\."), "decoder.bn."),
    (re.compile(r"^encoder\.(?!model\.)"), "encoder.model."),
)


def chosen(content: Mapping[str, Any], key: str, where: object) -> tuple[Mapping[str, Any], str]:
    """The innermost table of tensors, and a line where a file has several.

    Args:
        key: of the table that is wanted; empty: the trained weights, else their average.

    Raises:
        CheckpointError: there is no table ``key``.
    """
    told = ""
    if key:
        if not isinstance(content.get(key), Mapping):
            tables = [name for name, value in content.items() if isinstance(value, Mapping)]
            known = f"Tables there: {', '.join(tables)}" if tables else "It has no tables"
            raise CheckpointError(f"{where} has no table '{key}'. {known}")
        content = content[key]
    for _ in range(len(_PLAIN)):
        if any(isinstance(value, Tensor) for value in content.values()):
            break
        there = [name for name in (*_PLAIN, *_AVERAGED) if _is_table(content.get(name))]
        if not there:
            break
        averages = [name for name in there if name in _AVERAGED]
        if len(there) > 1 and averages and there[0] not in averages:
            told = (
                f"taken is `{there[0]}`; for the averaged weights beside it write "
                f"checkpoint: {where}#{averages[0]}"
            )
        elif there[0] in averages:
            told = f"taken is `{there[0]}`, averaged weights"
        content = content[there[0]]
    return content, told


def without_prefixes(state: State) -> tuple[State, list[str]]:
    """The tensors without what wrappers put before their names, and the keys left aside.

    A prefix goes where most keys have it and no other one is a network's part: tensors that stand
    beside a wrapped network (a loss's weights, statistics of images) are left over.
    """
    left: list[str] = []
    while True:
        prefix = next((p for p in _PREFIXES if _wraps(p, state)), None)
        if prefix is None:
            return state, left
        left += [key for key in state if not key.startswith(prefix)]
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def as_smp_loads(state: State, own: Collection[str]) -> State:
    """Old names of smp where the network has the new one, and not the old."""
    return {_newer(key, own): value for key, value in state.items()}


def _newer(key: str, own: Collection[str]) -> str:
    if key in own:
        return key
    for pattern, replacement in _OF_SMP:
        for name in (key, key.replace(".stages.", ".stages_")):
            candidate = pattern.sub(replacement, name)
            if candidate in own:
                return candidate
    return key


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _wraps(prefix: str, state: State) -> bool:
    inside = [key for key in state if key.startswith(prefix)]
    beside = [key for key in state if not key.startswith(prefix)]
    return len(inside) > len(beside) and not any(map(_PARTS.match, beside))
