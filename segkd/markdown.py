"""Names of other people in Markdown: they are shown as they are, and cannot become markup."""

import re

_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_FENCE = re.compile(r"`{3,}")


def inline(text: object) -> str:
    """A text for the middle of a line: one line, its ``<`` no beginning of a tag."""
    return _TAG.sub("&lt;", " ".join(str(text).split()))


def cell(text: object) -> str:
    """A text for a cell of a table, or for the words of a picture's link."""
    return re.sub(r"([|\[\]])", r"\\\1", inline(text))


def code(text: object) -> str:
    """A text as a code span, whatever quotes it has."""
    flat = " ".join(str(text).split())
    marks = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    space = " " if len(marks) > 1 else ""
    return f"{marks}{space}{flat}{space}{marks}"


def fenced(text: str, language: str = "") -> str:
    """A block of code that nothing in ``text`` can end."""
    marks = "`" * max([3, *(1 + len(run) for run in _FENCE.findall(text))])
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"
