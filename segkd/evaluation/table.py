"""Small tables for terminals, text files and Markdown, and how their numbers are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segkd.markdown import inline

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

NONE = "–"  # for values that are undefined or unknown
_GAP = "   "


@dataclass(frozen=True)
class TextTable:
    """A table of texts. The first column is left-aligned, all others right-aligned.

    A ``rich`` console prints it with styles on a terminal that is wide enough, else as plain text
    (unwrapped by a console with ``soft_wrap=True``).

    Attributes:
        header: one text per column.
        rows: one text per column each.
        title: above the table; may be empty.
        notes: lines below.
        strong: indices of emphasised rows.
        footer: whether the last row is a summary, separated from the others.
        words: whether cells are words, so that Markdown left-aligns all columns.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    strong: frozenset[int] = frozenset()
    footer: bool = False
    words: bool = False

    def text(self) -> str:
        """Plain lines for files and pipes."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        rule = "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))
        lines = [_aligned(cells, widths) for cells in (self.header, *self.rows)]
        lines.insert(1, rule)
        if self.footer:
            lines.insert(-1, rule)
        head = [self.title, ""] if self.title else []
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([*head, *lines, *notes]) + "\n"

    def markdown(self) -> str:
        """A table in GitHub's dialect, with the title as a heading."""
        marks = [":--", *[":--" if self.words else "--:"] * (len(self.header) - 1)]
        lines = ["| " + " | ".join(marks) + " |"]
        for number, cells in enumerate(self.rows):
            last = self.footer and number == len(self.rows) - 1
            bold = "**" if number in self.strong or last else ""
            shown = [f"{bold}{_escaped(cell)}{bold}" if cell.strip() else "" for cell in cells]
            lines.append("| " + " | ".join(shown) + " |")
        header = "| " + " | ".join(map(_escaped, self.header)) + " |"
        head = [f"## {inline(self.title)}", ""] if self.title else []
        notes = [line for note in self.notes for line in ("", inline(note))]
        return "\n".join([*head, header, *lines, *notes]) + "\n"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        table = self._rich_table()
        wide = console.measure(table, options=options.update(max_width=10_000)).maximum
        if not console.is_terminal or wide > console.width:
            yield Text(self.text().rstrip("\n"), no_wrap=True, overflow="ignore")
            return
        yield table
        for note in self.notes:
            yield Text(note, style="dim")

    def _rich_table(self) -> "Table":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(self.title) if self.title else None,
            title_style="bold",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for position, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if position else "left", no_wrap=True)
        for number, cells in enumerate(self.rows):
            last = number == len(self.rows) - 1
            style = "bold" if number in self.strong or (last and self.footer) else None
            before_footer = self.footer and number == len(self.rows) - 2
            table.add_row(*map(Text, cells), style=style, end_section=before_footer)
        return table


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return _GAP.join([str.ljust(*first), *(str.rjust(*other) for other in others)]).rstrip()


def _escaped(cell: str) -> str:
    return inline(cell).replace("|", "\\|")


def percent(value: float | None, missing: str = NONE) -> str:
    """A share as percent with two digits; ``missing`` for None, NaN and infinity."""
    return missing if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, with its sign; ``NONE`` where unknown."""
    if difference is None or not math.isfinite(difference):
        return NONE
    return f"{100 * difference:+z.2f}"


def spread(std: float | None) -> str:
    """The text behind a mean of shares: its standard deviation in points; empty without one."""
    return "" if std is None else f" ± {100 * std:.2f}"


def nan_to_none(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: None for these."""
    return value if math.isfinite(value) else None
