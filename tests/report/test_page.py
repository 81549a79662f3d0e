import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from report_runs import SECTIONS

from segkd.data.base import DataConfig
from segkd.report import sections

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Run in the page: what is shown, and what is broken, as attributes of <html>.
PROBE = """<script>
addEventListener("load", () => {
  const seen = node => { const box = node.getBoundingClientRect(); return box.width * box.height; };
  const all = name => [...document.querySelectorAll(name)];
  const say = (key, value) => document.documentElement.setAttribute("data-" + key, value);
  say("sections", all("section").filter(seen).map(node => node.id).join(" "));
  say("images", all("img").length);
  say("broken", all("img").filter(node => !(node.complete && node.naturalWidth)).length);
  say("charts", all("svg[role=img]").length);
  say("empty", all("svg[role=img]").filter(node => seen(node) < 100).length);
  const width = document.documentElement.scrollWidth;
  say("overflow", width > innerWidth);
  const scrolls = node => node.scrollWidth > node.clientWidth;
  parent.postMessage([innerWidth, width, all(".scroll").filter(scrolls).length,
    Math.min(...all("svg[role=img] text").map(node => node.getBoundingClientRect().height))], "*");
});
</script>"""


class Reader(HTMLParser):
    """Ids, addresses and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.sections, self.sources, self.links = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.tags.append(tag)
        self.ids += [facts["id"]] if "id" in facts else []
        self.sections += [facts["id"]] if tag == "section" else []
        self.sources += [facts["src"]] if "src" in facts else []
        self.links += [facts[key] for key in ("href", "xlink:href") if key in facts]


@pytest.fixture(scope="module")
def page(written):
    return written.html.read_text()


def decoded(uri):
    data = re.fullmatch(r"data:image/(?:png|jpeg);base64,(.*)", uri, re.DOTALL)[1]
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


def test_every_section_is_there_and_every_picture_can_be_decoded(page):
    read = Reader(page)
    assert read.sections == SECTIONS
    assert len(read.sources) >= 6
    for uri in read.sources:
        assert decoded(uri).shape[1] >= 300
    inside = [link for link in read.links if link.startswith("data:")]
    assert inside and all(decoded(uri) is not None for uri in inside)  # the confusion matrix
    assert read.tags.count("svg") >= 6


def test_the_page_is_self_contained(page):
    read = Reader(page)
    assert "script" not in read.tags and "link" not in read.tags
    assert all(uri.startswith("data:") for uri in read.sources)
    assert all(link.startswith(("data:", "#")) for link in read.links)
    assert "@import" not in page and "url(http" not in page


def test_ids_are_unique_and_all_references_lead_somewhere(page):
    read = Reader(page)
    assert len(set(read.ids)) == len(read.ids)
    wanted = [link[1:] for link in read.links if link.startswith("#")]
    wanted += re.findall(r"url\(#([^)]+)\)", page)
    assert wanted and set(wanted) <= set(read.ids)


def test_charts_take_the_colours_and_the_font_of_the_page(page):
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for chart in charts:
        assert "var(--ink)" in chart or "var(--faint)" in chart
        assert "#1f2430" not in chart and "DejaVu" not in chart
        assert re.search(r'aria-label="[^"]{20}', chart)


def test_markdown_says_the_same_with_pictures_beside(written, page):
    text = written.markdown.read_text()
    assert re.findall(r'<a id="([^"]+)">', text) == SECTIONS
    files = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(files) == len(Reader(page).sources) + page.count("<svg ")
    for name in files:
        assert cv2.imread(str(written.markdown.parent / name)) is not None, name
    for number in re.findall(r"<td>([+-]?\d+\.\d\d)</td>", page):
        assert number in text
    for title in re.findall(r"<h[23][^>]*>([^<]+)<", page):
        assert title in text


def browse(path, folder):
    """A page as a browser has it, after its scripts, as text."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900"]
    command = [browser, *options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def look(html, folder):
    """What a browser that opens the page finds: attributes by name."""
    path = folder / "probed.html"
    path.write_text(html.replace("</body>", f"{PROBE}</body>"))
    text = browse(path, folder)
    return dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<html[^>]*>", text)[0]))


def look_at_phone_width(html, folder):
    """Widths of window and page, the number of tables that scroll, the smallest text in charts.

    In a frame of 375 pixels, since windows of browsers have a least width.
    """
    (folder / "page.html").write_text(html.replace("</body>", f"{PROBE}</body>"))
    heard = 'addEventListener("message", e => document.title = e.data.join(" "))'
    frame = '<iframe src="page.html" style="width: 375px; height: 800px; border: 0"></iframe>'
    (folder / "frame.html").write_text(f"<title></title><script>{heard}</script>{frame}")
    title = re.search(r"<title>(.*?)</title>", browse(folder / "frame.html", folder))[1]
    return tuple(map(float, title.split()))


def test_a_browser_shows_every_section_and_no_broken_image(page, tmp_path):
    found = look(page, tmp_path)
    assert found["sections"].split() == SECTIONS
    assert int(found["images"]) == len(Reader(page).sources) and found["broken"] == "0"
    assert int(found["charts"]) == page.count("<svg ") and found["empty"] == "0"
    assert found["overflow"] == "false"
    bad = page.replace("</main>", '<img src="data:image/jpeg;base64,AAAA"></main>')
    assert look(bad, tmp_path)["broken"] == "1"  # the probe does see it


def test_on_a_phone_tables_and_charts_scroll_and_the_page_does_not(page, tmp_path):
    name = "/data/" + "long" * 30  # of a run or a folder, without a place to break
    page = re.sub(r"(<p|<summary|<figcaption)>", rf"\g<0>{name} ", page)
    window, width, scrolling, smallest = look_at_phone_width(page, tmp_path)
    assert window == 375 and width <= 375
    assert scrolling >= 2
    assert smallest >= 7  # CSS pixels: charts are not made as narrow as the phone
    for rule in (".scroll { overflow-x: auto;", "  overflow-wrap: anywhere;"):
        assert rule in page
        broken = page.replace(rule, rule[: rule.find("{") + 1])
        assert look_at_phone_width(broken, tmp_path)[1] > 375


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "toy"),
        ({"unlabeled": {"root": "a", "share": 0.25}}, "toy, 25 % of a step unlabelled"),
        ({"unlabeled": {"root": "a", "share": 1}}, "toy, no labels"),
        ({"labels": "none"}, "toy, no labels"),
    ],
)
def test_runs_say_what_they_learned_from(keys, text):
    assert sections._data(DataConfig.model_validate({"name": "toy", **keys})) == text
