"""Escapes foreign names in Markdown: they are shown literally and never become markup."""

import re

_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_FENCE = re.compile(r"`{3,}")


def inline(text: object) -> str:
    """Text for the middle of a line: without line breaks and HTML tags."""
    return _TAG.sub("&lt;", " ".join(str(text).split()))


def cell(text: object) -> str:
    """Text for a cell of a table, or for the alternative text of an image."""
    return re.sub(r"([|\[\]])", r"\\\1", inline(text))


def code(text: object) -> str:
    """A code span, for text that may contain backquotes."""
    flat = " ".join(str(text).split())
    marks = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    space = " " if len(marks) > 1 else ""
    return f"{marks}{space}{flat}{space}{marks}"


def fenced(text: str, language: str = "") -> str:
    """A code block, for text that may contain fences."""
    marks = "`" * max([3, *(1 + len(run) for run in _FENCE.findall(text))])
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"
