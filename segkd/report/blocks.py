"""The blocks of a page, from which HTML and Markdown are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from segkd.evaluation.table import TextTable
from segkd.report.charts import Chart
from segkd.report.pictures import Shown


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text.

    Attributes:
        text: the paragraph.
        kind: for the templates.
    """

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        table: the table.
        summary: text of the element that unfolds it; empty: it is always visible.
        kind: for the templates.
    """

    table: TextTable
    summary: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Drawing:
    """A chart.

    Attributes:
        chart: the chart.
        caption: text below it.
        kind: for the templates.
    """

    chart: Chart
    caption: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Gallery:
    """Rows of images under a heading.

    Attributes:
        name: unique on the page; prefix of file names.
        title: the heading.
        images: one row each.
        kind: for the templates.
    """

    name: str
    title: str
    images: Sequence[Shown]
    kind: str = "gallery"


@dataclass(frozen=True)
class Code:
    """A text file that unfolds.

    Attributes:
        summary: text of the element that unfolds it.
        text: contents of the file.
        kind: for the templates.
    """

    summary: str
    text: str
    kind: str = "code"


Block = Text | Table | Drawing | Gallery | Code


@dataclass
class Section:
    """A section of the page.

    Attributes:
        id: anchor of the section; stable, since links rely on it.
        title: the heading.
        blocks: the content.
    """

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Appends a paragraph."""
        self.blocks.append(Text(text))

    def show(self, chart: Chart, caption: str = "") -> None:
        """Appends a chart."""
        self.blocks.append(Drawing(chart, caption))
