"""What a check of a dataset reports."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``error``) or unusual (``warning``)."""

    level: Literal["error", "warning"]
    file: str
    text: str
    repair: str


_ALIKE = 3  # findings that are still shown one by one


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings; many of one kind become the first of them and a count."""
    findings = list(findings)
    kinds: dict[tuple, list[Finding]] = {}
    for one in findings:
        kinds.setdefault((one.level, _kind(one.text), _kind(one.repair)), []).append(one)
    shown = []
    for alike in kinds.values():
        if len(alike) <= _ALIKE:
            shown += alike
        else:
            text = f"{alike[0].text} (and {len(alike) - 1} more like this)"
            shown.append(replace(alike[0], text=text))
    return shown


def _kind(text: str) -> str:
    """A text without what belongs to one file: names and numbers."""
    text = " ".join(word for word in text.split() if "/" not in word and "." not in word[:-1])
    return re.sub(r"\d+", "0", text)
