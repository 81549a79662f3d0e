"""Names of classes in any script: a font that has the letters, or what is written instead."""

import warnings

import numpy as np
import pytest

from segkd.evaluation.plots import comparison_plot
from segkd.evaluation.results import ComparisonRow
from segkd.viz import fonts
from segkd.viz.fonts import lettering, width
from segkd.viz.legend import legend_strip
from segkd.viz.overlay import TILE, compose_sheet

ROAD = "\u9053\u8def"  # Chinese for road


@pytest.fixture
def installed(monkeypatch):
    """``installed({family: letters})``: besides matplotlib's own fonts, only these are there."""
    caches = (fonts._family_of, fonts._warn_once, fonts._own_letters)
    own = fonts._own_letters()

    def install(families):
        from matplotlib import font_manager
        from matplotlib.font_manager import FontEntry

        entries = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
        entries += [FontEntry(fname=name, name=name, style="normal") for name in families]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
        letters = {name: frozenset(map(ord, text)) for name, text in families.items()}
        monkeypatch.setattr(fonts, "_letters", lambda file: letters.get(file, own))
        monkeypatch.setattr(fonts, "_own_letters", lambda: own)
        for one in caches:
            one.cache_clear()

    yield install
    for one in caches:
        one.cache_clear()


def test_the_font_that_has_the_letters_is_taken(installed, caplog):
    installed({"Serif CJK": ROAD, "Sans CJK": ROAD, "Last Resort": ROAD, "Hangul": "\ud55c"})
    assert lettering(f"{ROAD} \ud55c") == (["Sans CJK", "Hangul"], f"{ROAD} \ud55c")
    assert lettering("Stra\u00dfe \u0434\u043e\u0440\u043e\u0433\u0430")[0] == []
    assert width(ROAD) == 4 and width("road") == 4 and caplog.text == ""


def test_without_a_font_letters_are_written_otherwise_and_said_once(installed, caplog):
    installed({"Last Resort": ROAD})
    assert lettering(ROAD) == ([], "U+9053 U+8DEF")
    assert lettering("\uff32oad 1") == ([], "Road 1")  # a full-width R has a Latin sense
    assert caplog.text.count("no installed font has the CJK letters") == 1


@pytest.mark.parametrize("where", ["legend", "sheet", "plot"])
def test_no_picture_has_boxes(installed, where, tmp_path):
    """matplotlib warns of each letter for which it draws a box."""
    installed({})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if where == "legend":
            strip = legend_strip(((ROAD, (1, 2, 3)),), 600)
            assert np.array_equal(strip, legend_strip((("U+9053 U+8DEF", (1, 2, 3)),), 600))
        elif where == "sheet":
            tile = np.zeros((8, TILE, 3), np.uint8)
            compose_sheet([[tile]], [ROAD], [(ROAD, tile[0, 0])], ROAD)
        else:
            row = ComparisonRow(ROAD, scores=[0.5], role="")
            comparison_plot([row], tmp_path / "plot.png", title=ROAD)
            assert (tmp_path / "plot.png").stat().st_size
