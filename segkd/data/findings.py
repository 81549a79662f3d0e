"""Findings of a check of a dataset."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: of severity.
        file: that it is about.
        text: what is wrong or unusual.
        repair: what to do.
    """

    level: Literal["error", "warning"]
    file: str
    text: str
    repair: str


_ALIKE = 3  # findings of one kind that are shown individually


def folded(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, where many of one kind are replaced by the first one with a count."""
    findings = list(findings)
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
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
    """A text without names of files and numbers."""
    text = " ".join(word for word in text.split() if "/" not in word and "." not in word[:-1])
    return re.sub(r"\d+", "0", text)
