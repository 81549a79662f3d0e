"""Unwraps tensors of training programs: nested tables, prefixes, old names."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segkd.errors import CheckpointError

State = dict[str, Tensor]

_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
_DEEPEST = 6  # tables in tables
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.")
# Names of a network's parts; next to one of them, a prefix is the name of a part as well.
_PARTS = re.compile(
    r"(encoder|decoder|segmentation_head|backbone|decode_head|head|classifier|pretrained|neck)\b"
)
_OF_SMP = (  # names before smp 0.5, as its own load_state_dict takes them
    (re.compile(r"^decoder\.0\."), "decoder.aspp."),
    (re.compile(r"^decoder\.1\."), "decoder.conv."),
    (re.compile(r"^decoder\.2\."), "decoder.bn."),
    (re.compile(r"^encoder\.(?!model\.)"), "encoder.model."),
)


def chosen(
    content: Mapping[str, Any], key: str, where: object
) -> tuple[Mapping[str, Any], str, list[str]]:
    """The innermost table of tensors.

    Args:
        content: contents of the file.
        key: name of the table; empty: the trained weights, else their average.
        where: the file, for messages.

    Returns:
        The table, a line of text if a file has several, and names of tensors beside the table,
        such as a best score.

    Raises:
        CheckpointError: there is no table ``key``.
    """
    choice, beside = "", list[str]()
    if key:
        if not isinstance(content.get(key), Mapping):
            tables = [name for name, value in content.items() if isinstance(value, Mapping)]
            known = f"Its tables: {', '.join(tables)}" if tables else "It has no tables"
            raise CheckpointError(f"{where} has no table '{key}'. {known}")
        content = content[key]
    for _ in range(_DEEPEST):
        tables = _tables(content)
        tensors = [str(name) for name, value in content.items() if isinstance(value, Tensor)]
        if not tables or len(tensors) >= _tensors(content[tables[0]]):
            break
        averages = [name for name in tables if name in _AVERAGED]
        if len(tables) > 1 and averages and tables[0] not in averages:
            choice = (
                f"`{tables[0]}` is used; for the averaged weights in the same file write "
                f"checkpoint: {where}#{averages[0]}"
            )
        elif tables[0] in averages:
            choice = f"`{tables[0]}` is used, averaged weights"
        beside += tensors
        content = content[tables[0]]
    return content, choice, beside


def without_prefixes(state: State) -> tuple[State, list[str]]:
    """The tensors without prefixes of wrappers, and the unused keys.

    A prefix is removed if most keys have it and no other key is a network's part: other tensors in
    the file (weights of a loss, statistics of images) are unused.
    """
    left: list[str] = []
    while True:
        prefix = next((p for p in _PREFIXES if _wraps(p, state)), None)
        if prefix is None:
            return state, left
        left += [key for key in state if not key.startswith(prefix)]
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def as_smp_loads(state: State, own: Collection[str]) -> State:
    """Tensors with names of earlier smp versions, renamed to those of ``own``."""
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


def _tables(content: Mapping[str, Any]) -> list[str]:
    """Names of known tables with tensors in them, the best first."""
    return [name for name in (*_PLAIN, *_AVERAGED) if _tensors(content.get(name))]


def _tensors(value: Any, depth: int = 0) -> int:
    """Number of tensors in a table, or else in a known table in it."""
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return 0
    own = sum(isinstance(item, Tensor) for item in value.values())
    inner = (_tensors(value.get(name), depth + 1) for name in (*_PLAIN, *_AVERAGED))
    return own or max(inner)


def _wraps(prefix: str, state: State) -> bool:
    inside = [key for key in state if key.startswith(prefix)]
    beside = [key for key in state if not key.startswith(prefix)]
    return len(inside) > len(beside) and not any(map(_PARTS.match, beside))
