"""Writes sections as a self-contained HTML page, and as Markdown with a folder of images."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path

from segkd import __version__, markdown
from segkd.files import write_atomic, write_text
from segkd.report.blocks import Drawing, Gallery, Section

_PICTURES = "pictures"


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        title: heading of the page.
        sections: in order.
        made: date and time as text.
    """

    title: str
    sections: Sequence[Section]
    made: str

    def html(self) -> str:
        """One file that includes styles and images, without scripts and external links."""
        return _render("page.html.j2", self)

    def markdown(self) -> str:
        """The same content as Markdown; images are files in the folder ``pictures``."""
        return _render("page.md.j2", self)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes report.html, report.md and its images; returns the paths of the first two."""
        for name, data in self._files().items():
            write_atomic(folder / _PICTURES / name, methodcaller("write", data))
        html, markdown = folder / "report.html", folder / "report.md"
        write_text(html, self.html())
        write_text(markdown, self.markdown())
        return html, markdown

    def _files(self) -> dict[str, bytes]:
        """The images of the Markdown page by file name."""
        files: dict[str, bytes] = {}
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Drawing):
                    files[f"{block.chart.name}.png"] = block.chart.png
                elif isinstance(block, Gallery):
                    for row, shown in enumerate(block.images):
                        for column, tile in enumerate(shown.tiles):
                            files[tile_name(block.name, row, column)] = tile.jpeg
        return files


def tile_name(gallery: str, row: int, column: int) -> str:
    """The file name of a tile, from 0-based positions."""
    return f"{gallery}-{row + 1}-{column + 1}.jpg"


def _render(template: str, page: Page) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("segkd.report"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(version=__version__, tile_name=tile_name, pictures=_PICTURES)
    environment.filters.update(data_uri=_data_uri, inline=markdown.inline)
    environment.filters.update(cell=markdown.cell, fenced=markdown.fenced)
    return environment.get_template(template).render(page=page)


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
