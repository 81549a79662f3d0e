"""`segkd data map`: what it prints and writes, and what it refuses."""

import json
import re

import pytest
import yaml

from segkd import cli
from segkd.commands.class_map import as_yaml, labels_of
from segkd.errors import ConfigError
from segkd.models.class_draft import draft, table_of
from segkd.models.class_map import read_table
from segkd.models.label_sets import label_set, named

ODD = ["no", "a: b", "bed ", "# x", "~", "Traffic Sign (Back)", "été", "12", "- y", "cars"]


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """``call("cityscapes", "camvid")``: exit code, stdout, stderr, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["data", "map", *arguments])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_it_shows_what_is_matched_and_what_is_left(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("- street\n- Trees\n- my person\n- gizmo\n")
    code, out, _ = call("camvid", "mine.yaml")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[0] == (
        "camvid (11 classes) -> mine.yaml (4): 4 mapped, 2 of them to be checked; 7 left over"
    )
    matched, check = lines.index("matched:"), lines.index("to be checked:")
    assert "road street" in lines[matched:check] and "tree Trees" in lines[matched:check]
    assert "pedestrian my person (by the last word of the name)" in lines[check:]
    assert any(line.startswith("left over of camvid: sky, building") for line in lines)
    assert lines[-1] == "not in camvid: gizmo"


def test_what_it_writes_is_a_table(call, tmp_path):
    code, out, _ = call("ade20k", "cityscapes", "--write", "table.yaml")
    assert code == 0 and "classes: {map: table.yaml}" in out
    _, out, _ = call("ade20k", "cityscapes", "--write", "a, b.yaml")
    use = out.partition("then use it: ")[2]
    assert yaml.safe_load(use) == {"classes": {"map": "a, b.yaml"}}
    source, target = label_set("ade20k"), label_set("cityscapes")
    assert read_table(tmp_path / "table.yaml") == table_of(draft(source, target))
    text = (tmp_path / "table.yaml").read_text()
    assert "house: building  # check: a wider class\n" in text and "bed: ~\n" in text
    assert "# without a source: rider, train\n" in text
    code, _, err = call("ade20k", "camvid", "--write", "table.yaml")
    assert code == 2 and "table.yaml exists" in err
    assert (tmp_path / "table.yaml").read_text() == text


def test_any_name_survives_the_file(tmp_path):
    source, target = named(ODD), named(ODD[::-1])
    matches = draft(source, target)
    (tmp_path / "t.yaml").write_text(as_yaml("a", "b", target, matches), encoding="utf-8")
    found = read_table(tmp_path / "t.yaml")
    assert list(found) == ODD and found == table_of(matches)
    assert found["été"] == "été" and found["no"] == "no"


def test_where_names_come_from(tmp_path):
    (tmp_path / "spec").mkdir()
    spec = "classes: [road, {name: car, ids: [3]}]\nsplits: {train: {images: x}}\n"
    (tmp_path / "spec/data.yaml").write_text(spec)
    assert labels_of(str(tmp_path / "spec")).classes == ("road", "car")
    assert labels_of(str(tmp_path / "spec/data.yaml")).classes == ("road", "car")
    (tmp_path / "model").mkdir()
    labels = {"id2label": {"10": "sky", "2": "road", "0": "car"}}
    (tmp_path / "model/config.json").write_text(json.dumps(labels))
    assert labels_of(str(tmp_path / "model")).classes == ("car", "road", "sky")
    (tmp_path / "stored").mkdir()
    rows = [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}]
    (tmp_path / "stored/classes.json").write_text(json.dumps(rows))
    assert labels_of(str(tmp_path / "stored")).classes == ("road", "sky")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/classes.txt").write_text("0: road\n1: sky\n")
    assert labels_of(str(tmp_path / "plain")).classes == ("road", "sky")
    assert labels_of(str(tmp_path / "plain/classes.txt")).classes == ("road", "sky")
    assert labels_of("streets").name == "cityscapes"
    (tmp_path / "spec/other.yaml").write_text("- sky\n- road\n")
    with pytest.raises(ConfigError, match=r"several files with classes: data.yaml, other.yaml"):
        labels_of(str(tmp_path / "spec"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cityscape", "camvid"), "no data set that segkd knows.* Did you mean 'cityscapes'"),
        (
            ("cityscapes", "lanes"),
            "no class of cityscapes is one of lanes.*Write the table by hand",
        ),
        (("folder", "camvid"), "classes of dataset 'folder' are not fixed: give its spec"),
        (("empty", "camvid"), "empty has no class names"),
        (("numbers.yaml", "camvid"), "numbers.yaml has no class names"),
        (("broken.json", "camvid"), "broken.json: is not valid JSON"),
        (("twice.yaml", "camvid"), "names a class twice: sky"),
    ],
)
def test_what_cannot_be_mapped_is_one_message(call, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "numbers.yaml").write_text("[1, 2]\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "twice.yaml").write_text("[sky, road, sky]\n")
    code, out, err = call(*arguments)
    text = " ".join(err.split())
    assert code == 2 and not out and "Traceback" not in err
    assert re.search(message, text), text
