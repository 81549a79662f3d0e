"""YAML as trees: scalars as they look, places of keys, and what is refused."""

import shlex
from pathlib import Path

import pytest

from segkd.errors import ConfigError
from segkd.yaml_tree import dump, merge, overrides_tree, parse, typed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("8_000", 8000),
        ("-3", -3),
        ("012", 12),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("null", None),
        ("2024-01-02", "2024-01-02"),
        ("'1e-4'", "1e-4"),
        (".inf", ".inf"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    assert parse(text, "x").plain() == value
    assert type(parse(text, "x").plain()) is type(value)


@pytest.mark.parametrize("value", ["1e-4", "no", "012", "1:30", "null", "", "~", "true", "a: b"])
def test_dumped_text_stays_text(value):
    data = {"key": value, "numbers": [1e-05, 3, None, True, 1e20]}
    assert parse(dump(data), "x").plain() == data


def test_keys_remember_their_line():
    tree = parse("a:\n  b: 1\n\n  c:\n    - 2\n    - 3\n", "f.yaml")
    assert [tree.at(path).place for path in (("a",), ("a", "b"), ("a", "c"), ("a", "c", 1))] == [
        "f.yaml:1",
        "f.yaml:2",
        "f.yaml:4",
        "f.yaml:6",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: !!python/object/apply:os.system ['touch hit']", "f:2: the tag !!python/object"),
        ("a: !evil 3", "f:1: the tag !evil is refused"),
        ("a: 1\nb: 2\na: 3", "f:3: duplicate key 'a', first at f:1"),
        ("a: &x 1\nb: *x", "f:2: aliases"),
        ("a: [1, 2\nb: 3", "f:2: "),
        ("a: 1\n\tb: 2", "f:2: "),
        ("? [a]\n: 1", "f:1: a key must be a word"),
        ("a: !!int x", "f:1: 'x' is not a valid int"),
        ("a: " + "9" * 5000, "is not a valid int"),
        ("[" * 5000, "f: is nested too deeply"),
        ("a: \x00", "f: character 3"),
        ("a: 1\n---\nb: 2", "f:2: "),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert message in str(caught.value)
    assert not (tmp_path / "hit").exists()


def test_all_problems_of_a_text_are_told_at_once():
    with pytest.raises(ConfigError, match=r"f:1: .*!a.*\nf:2: .*!b"):
        parse("x: !a 1\ny: !b 2", "f")


def test_mappings_merge_deeply_and_lists_replace():
    below, above = parse("a: {b: 1, c: [1, 2]}\nd: 3", "x"), parse("a: {c: [9]}\ne: 4", "y")
    assert merge(below, above).plain() == {"a": {"b": 1, "c": [9]}, "d": 3, "e": 4}


def test_overrides_are_yaml_and_the_last_wins():
    tree = overrides_tree(["a.b=1e-3", "methods.kd={}", "a.b=2", "x=[1, 2]", "t='a: b'", "n=null"])
    assert tree.plain() == {
        "a": {"b": 2},
        "methods": {"kd": {}},
        "x": [1, 2],
        "t": "a: b",
        "n": None,
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "got 'steps', expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("steps=", "steps= has no value: write steps=null or steps=''"),
        ("out=@home", "Quote text with special characters"),
        ("a=[1", "a=[1: the value is not valid YAML"),
    ],
)
def test_a_broken_override_says_what_to_type(override, message):
    with pytest.raises(ConfigError) as caught:
        overrides_tree([override])
    assert str(caught.value).startswith("command line: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "value", ["plain/x", "my drives", "a, b: c", "x #1", "it's", "größe [1]", "12", "$HOME", "~"]
)
def test_what_is_told_to_type_is_read_as_it_was_meant(value):
    words = shlex.split(typed("data.root", Path(value) if "/" in value else value))
    assert overrides_tree(words).plain() == {"data": {"root": value}}
