"""Renames the weights of lukemelas' EfficientNets to timm's names."""

import re

from torch import Tensor

State = dict[str, Tensor]


def is_efficientnet(state: State) -> bool:
    """Whether an encoder's tensors have the names of lukemelas' EfficientNets."""
    return any(re.search(r"(^|\.)_blocks\.0\._depthwise_conv\.weight$", key) for key in state)


def timm_efficientnet(state: State) -> State:
    """The tensors of an EfficientNet of lukemelas' code under timm's names.

    lukemelas numbers blocks through the whole network, timm within a stage: a stage ends where the
    number of output channels changes. In timm, blocks without expansion name their parts
    differently.
    """
    place: dict[str, tuple[str, dict[str, str]]] = {}
    stage, block = -1, 0
    width: int | None = None
    numbers = {int(m[1]) for key in state if (m := re.search(r"_blocks\.(\d+)\.", key))}
    matches = ((re.search(r"(^|\.)(_(?:blocks|conv|bn|fc).*)", key), key) for key in state)
    names = {match[2] if match else key: key for match, key in matches}
    for number in sorted(numbers):
        project = names.get(f"_blocks.{number}._project_conv.weight")
        rows = len(state[project]) if project else width
        stage, block = (stage, block + 1) if rows == width else (stage + 1, 0)
        width = rows
        expands = f"_blocks.{number}._expand_conv.weight" in names
        place[str(number)] = f"blocks.{stage}.{block}.", _EXPANDING if expands else _PLAIN
    found = {}
    for name, key in names.items():
        part = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if part:
            prefix, parts = place[part[1]]
            found[f"{prefix}{parts.get(part[2], part[2])}.{part[3]}"] = state[key]
        else:
            whole, _, rest = name.partition(".")
            found[f"{_AROUND.get(whole, whole)}.{rest}"] = state[key]
    return found


# Parts of lukemelas' EfficientNets as timm names them.
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
_AROUND |= {"_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_PLAIN |= _SQUEEZE
_EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
_EXPANDING |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3", **_SQUEEZE}
