"""Whatever is in a config: it loads, or a SegKDError says what is wrong."""

import copy
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segkd.config.load import dump_config, load_config, load_text
from segkd.config.recipe import expand
from segkd.errors import SegKDError

RUN = {
    "steps": 100,
    "data": {"name": "toy", "batch_size": 4, "crop": [32, 48], "scale": [0.5, 2.0]},
    "student": {"arch": "toy", "options": {"width": 8}, "aux_head": {"tap": "stage4"}},
    "teachers": {"a": {"arch": "toy"}, "b": {"arch": "toy"}, "both": {"ensemble": ["a", "b"]}},
    "task": {"weight": 1.0, "losses": {"cross_entropy": {}}},
    "methods": {"kd": {"teacher": "both"}, "cwd_head": {"method": "cwd", "tap": "head"}},
    "optim": {"name": "sgd", "lr": 0.01, "lr_factors": {"encoder": 0.1}},
    "eval": {"sliding": [64, 64], "scales": [1.0]},
}
RECIPE = {
    "seeds": [0, 1],
    "baseline": "alone",
    "common": RUN,
    "runs": {"alone": {}, "more": {"init_from": "run:alone"}, "one": {"once": True, "steps": 3}},
}
WORDS = st.sampled_from(
    ["toy", "kd", "cwd", "run:alone", "sgd", "weight", "steps", "name", "runs", "base", "1e-4"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    WORDS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
FEW = {"configs": 120, "text": 80, "overrides": 80, "shipped": 150}
MANY = {"configs": 1000, "text": 800, "overrides": 800, "shipped": 1000}  # in docs/reliability.md
CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
SLOW_IS_FINE = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


def trials(kind):
    """Few of them always, many with `-m slow`."""
    counts = [FEW[kind], pytest.param(MANY[kind], marks=pytest.mark.slow)]
    return pytest.mark.parametrize("examples", counts)


def search(examples, test, **strategies):
    """Runs a test on examples that hypothesis thinks of."""
    settings(SLOW_IS_FINE, max_examples=examples)(given(**strategies)(test))()


def places(value, path=()):
    """All keys and positions of nested data."""
    items = (
        value.items()
        if isinstance(value, dict)
        else (enumerate(value) if isinstance(value, list) else ())
    )
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(data, draw):
    """Changes, removes, renames or adds something somewhere."""
    spots = list(places(data))
    if not spots:
        return
    *above, last = draw(st.sampled_from(spots))
    parent = data
    for key in above:
        parent = parent[key]
    action = draw(st.sampled_from(["value", "value", "remove", "rename", "add"]))
    if action == "value":
        parent[last] = draw(VALUES)
    elif action == "remove":
        del parent[last]
    elif isinstance(parent, list):
        parent.append(draw(VALUES))
    elif action == "rename":
        name = str(last)
        parent[draw(st.sampled_from([name + "s", name[1:], name[::-1], "lr"]))] = parent.pop(last)
    else:
        parent[draw(WORDS | st.text(max_size=5))] = draw(VALUES)


def attempt(path, overrides=()):
    """Loads and plans; anything but success and SegKDError is a failure of the test."""
    try:
        loaded = load_config(path, overrides)
        if loaded.recipe:
            expand(loaded.recipe)
    except SegKDError as error:
        assert str(error)
        return None
    return loaded


@trials("configs")
@pytest.mark.parametrize("template", [RUN, RECIPE], ids=["run", "recipe"])
def test_mutated_configs(template, examples, tmp_path):
    def check(data):
        changed = copy.deepcopy(template)
        for _ in range(data.draw(st.integers(1, 3))):
            mutate(changed, data.draw)
        path = tmp_path / "mutated.yaml"
        path.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8")
        loaded = attempt(path)
        if loaded and loaded.run:
            assert load_text(dump_config(loaded.run)) == loaded.run

    search(examples, check, data=st.data())


@trials("text")
def test_mutated_text(examples, tmp_path):
    def check(cuts, text):
        for where, length, inserted in cuts:
            at = int(where * len(text))
            text = text[:at] + inserted + text[at + length :]
        path = tmp_path / "mutated.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        attempt(path)

    cut = st.tuples(st.floats(0, 1), st.integers(0, 6), st.text(max_size=5))
    texts = st.sampled_from([yaml.safe_dump(RUN), yaml.safe_dump(RECIPE), ""])
    search(examples, check, cuts=st.lists(cut, max_size=4), text=texts)


@trials("overrides")
def test_overrides(examples, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    keys = [".".join(p) for p in places(RUN) if all(map(str.isidentifier, map(str, p)))]
    value = SCALARS | st.text(max_size=8)
    one = st.one_of(st.text(max_size=12), st.builds("{}={}".format, st.sampled_from(keys), value))

    def check(overrides):
        attempt(path, overrides)

    search(examples, check, overrides=st.lists(one, max_size=3))


VALUE_TEXTS = st.sampled_from(
    [
        *("", "null", "true", "-1", "0", "1e400", ".nan", ".inf", "0x10", "1_000", "2026-01-01"),
        *("[]", "{}", "[1, 2, 3]", "{a: 1}", "[[[[]]]]", "!!python/object:a {}", "&a 1", "*a"),
        *("'", '"', "|", "ünï—code", "😀", "\u202e", "a: b: c", "# x", "../../etc", "~"),
        *("[" * 500 + "]" * 500, "{a: " * 400 + "1" + "}" * 400, "9" * 5000, "x" * 5000),
    ]
)


def change_line(lines, draw):
    """Deletes, doubles, moves, renames, retypes or indents one line of a YAML text."""
    at = draw(st.integers(0, len(lines) - 1))
    key, colon, value = lines[at].partition(":")
    action = draw(
        st.sampled_from(["delete", "double", "move", "rename", "value", "indent", "nest"])
    )
    if action == "delete":
        del lines[at]
    elif action == "double":
        lines.insert(draw(st.integers(0, len(lines))), lines[at])
    elif action == "move":
        lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    elif action == "rename":
        bare = key.strip()
        new = draw(st.sampled_from([bare + "s", bare[:-1], bare.upper(), "ключ", "名", "base"]))
        lines[at] = key.replace(bare, new) + colon + value
    elif action == "value":
        lines[at] = f"{key}: {draw(VALUE_TEXTS)}"
    elif action == "indent":
        lines[at] = draw(st.sampled_from(["  ", "\t", "- ", " "])) + lines[at]
    else:
        lines.insert(at, " " * (len(key) - len(key.lstrip())) + f"extra: {draw(VALUE_TEXTS)}")


@trials("shipped")
def test_mutated_shipped_configs(examples, tmp_path):
    """Each stands among its bases, one of which may be the one that is changed."""
    shutil.copytree(CONFIGS, tmp_path / "configs")

    def check(name, changes):
        path = tmp_path / "configs" / name
        lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
        for _ in range(changes.draw(st.integers(1, 3))):
            if lines:
                change_line(lines, changes.draw)
        try:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            attempt(path)
        finally:
            shutil.copyfile(CONFIGS / name, path)

    search(examples, check, name=st.sampled_from(SHIPPED), changes=st.data())
