"""Fonts for names in any script, or a Latin replacement where no installed font has the letters.

matplotlib's default font has Latin, Greek and Cyrillic letters, and draws boxes for all others.
"""

import logging
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

_log = logging.getLogger(__name__)
_NO_FONTS = ("Last Resort", ".LastResort", "Adobe Blank")  # draw boxes for all letters


def legible(figure: "Figure") -> Callable[[], None]:
    """Makes the texts of a figure legible; to be called before drawing.

    Letters that matplotlib's default font lacks are taken from installed fonts; if none has them,
    they are replaced by Latin ones or by ``U+8DEF``, with one warning. Dollar signs in names are
    not parsed as TeX.

    Returns:
        A function that restores the original texts, for file formats that need no font.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    undo: list[Callable[[], None]] = []
    for text in figure.findobj(Text):
        words = text.get_text()
        if "$" in words:
            text.set_parse_math(False)
        if words.isascii():
            continue
        families, written = lettering(words)
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
        if written != words:
            undo.append(partial(text.set_text, words))
            text.set_text(written)
    for axis in (axis for one in figure.axes for axis in (one.xaxis, one.yaxis)):
        formatter = axis.get_major_formatter()
        if isinstance(formatter, FixedFormatter | FuncFormatter):  # makes its texts while drawing
            undo.append(partial(axis.set_major_formatter, formatter))
            axis.set_major_formatter(_lettered(formatter))

    def restore() -> None:
        for one in undo:
            one()

    return restore


def _lettered(formatter: "Formatter") -> "Formatter":
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, place: lettering(formatter(value, place))[1])


def lettering(text: str) -> tuple[list[str], str]:
    """Font families that ``text`` needs in addition to the default, and the text to draw."""
    families = {letter: _family_of(letter) for letter in dict.fromkeys(text) if not _plain(letter)}
    lacking = [letter for letter, family in families.items() if family is None]
    needed = dict.fromkeys(family for family in families.values() if family)
    written = "".join(_instead(one) if one in lacking else one for one in text)
    return list(needed), written.strip() if lacking else text


def width(text: str) -> int:
    """Width of a text in letters; full-width ones count twice."""
    written = text if text.isascii() else lettering(text)[1]
    if written != text:
        return 3 * len(written) // 2  # digits and capitals are wide
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in written)


def _plain(letter: str) -> bool:
    return letter.isascii() or ord(letter) in _own_letters()


@cache
def _own_letters() -> frozenset[int]:
    from matplotlib import font_manager

    return _letters(font_manager.findfont(font_manager.FontProperties(family=["sans-serif"])))


@cache
def _family_of(letter: str) -> str | None:
    """An installed family with this letter, or None; sans-serif ones first."""
    from matplotlib import font_manager

    fonts = {}
    for font in font_manager.fontManager.ttflist:
        upright = font.style == "normal" and font.weight in (400, "normal", "regular", "book")
        if not font.name.startswith(_NO_FONTS) and (upright or font.name not in fonts):
            fonts[font.name] = font.fname
    for name in sorted(fonts, key=lambda name: ("sans" not in name.lower(), name)):
        if ord(letter) in _letters(fonts[name]):
            return name
    if _instead(letter):
        _warn_once(unicodedata.name(letter, "other").partition(" ")[0])
    return None


@cache
def _letters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):  # listed by matplotlib but not readable
        return frozenset()


@cache
def _warn_once(script: str) -> None:
    _log.warning(
        "no installed font has the %s letters of some names: they are replaced by Latin letters "
        "or code points (U+8DEF). Install a font that has them, e.g. apt install fonts-noto-cjk "
        "fonts-noto-core, and delete the folder of matplotlib.get_cachedir()",
        script,
    )


@cache
def _instead(letter: str) -> str:
    """The Latin letters of a letter, or its code point; empty for combining marks."""
    if unicodedata.combining(letter) or unicodedata.category(letter) == "Cf":
        return ""
    simple = "".join(one for one in unicodedata.normalize("NFKD", letter) if one.isascii())
    return simple or f"U+{ord(letter):04X} "
