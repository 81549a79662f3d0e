"""What a page is made of; HTML and Markdown are written from the same blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from segkd.evaluation.table import TextTable
from segkd.report.charts import Chart
from segkd.report.pictures import Shown


@dataclass(frozen=True)
class Text:
    """A paragraph of plain words."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A table; ``summary``: the words that unfold it, empty if it is open."""

    table: TextTable
    summary: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Drawing:
    """A chart with words below it."""

    chart: Chart
    caption: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Gallery:
    """Images under a heading, a row each; ``name`` is unique on the page."""

    name: str
    title: str
    images: Sequence[Shown]
    kind: str = "gallery"


@dataclass(frozen=True)
class Code:
    """A text file that unfolds."""

    summary: str
    text: str
    kind: str = "code"


Block = Text | Table | Drawing | Gallery | Code


@dataclass
class Section:
    """A part of the page. ``id`` never changes: links and tests rely on it."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.blocks.append(Text(text))

    def show(self, chart: Chart, caption: str = "") -> None:
        self.blocks.append(Drawing(chart, caption))
