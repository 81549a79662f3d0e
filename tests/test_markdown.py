"""Names of other people in reports and cards stay names."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from segkd import markdown
from segkd.evaluation.table import TextTable
from segkd.model_card import CardFacts, model_card
from segkd.report.blocks import Code, Drawing, Section
from segkd.report.charts import curves
from segkd.report.page import Page

EVIL = 'kd" onload="alert(1)"><script>alert(2)</script>\n\n# big $x$ | `'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b>\n\n# c", "a &lt;b> # c"),
        ("</p> <!-- <?x", "&lt;/p> &lt;!-- &lt;?x"),
        ("1 < 2, x<3", "1 < 2, x<3"),
    ],
)
def test_a_name_is_one_line_without_tags(text, shown):
    assert markdown.inline(text) == shown


def test_nothing_ends_a_block_or_a_span_of_code():
    assert markdown.fenced("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"
    assert markdown.code("a`b") == "`` a`b ``"
    assert markdown.code("ab") == "`ab`"
    assert markdown.cell("a|b]<i>") == "a\\|b\\]&lt;i>"


def test_a_table_keeps_its_rows():
    lines = TextTable([EVIL, "n"], [[EVIL, "1"]], title=EVIL, notes=[EVIL]).markdown().splitlines()
    assert [line for line in lines if "<script" in line or line.startswith("# ")] == []
    assert len([line for line in lines if line.startswith("|")]) == 3


def test_a_report_holds_no_markup_of_a_name():
    """A key of ``methods:`` once reached ``aria-label`` as it was written."""
    series = {EVIL: [(np.arange(3), np.arange(3.0))]}
    chart = curves({EVIL: series}, {EVIL: "#000000"}, name="losses", alt=EVIL)
    element = ET.fromstring(chart.svg)
    assert (
        element.attrib["aria-label"] == EVIL.replace("\n", " ") and "onload" not in element.attrib
    )
    assert not [child for child in element.iter() if child.tag.endswith("script")]
    assert "$x$" in "".join(element.itertext())  # and no formula
    section = Section("a", EVIL, [Drawing(chart, EVIL), Code(EVIL, "```\n<script>")])
    section.say(EVIL)
    page = Page(EVIL, [section], "now")
    assert "<script" not in page.html()
    text = page.markdown()
    outside = text.replace("```\n<script>", "")
    assert "<script" not in outside and "\n# big" not in outside


def test_a_model_card_holds_no_markup_of_a_name():
    config = {
        "data": {"name": EVIL, "train_split": EVIL},
        "teachers": {EVIL: {"arch": EVIL, "encoder": EVIL, "checkpoint": EVIL}},
        "methods": {EVIL: {"weight": 1.0, "mask": EVIL}},
        "task": {"losses": {EVIL: {}}, "weight": 1.0},
    }
    payload = {"classes": [EVIL], "dataset": EVIL, "model": {}}
    text = model_card(CardFacts(payload, config, {}, EVIL, 1))
    written = text.partition("<details>")[0]
    spans = written.replace(markdown.code(EVIL), "")
    assert markdown.code(EVIL) in written
    assert "<script" not in spans and "\n# big" not in text
