"""Whatever is in a config: it loads, or a SegKDError says what is wrong."""

import copy

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
SLOW_IS_FINE = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=False,
)


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


@pytest.mark.parametrize("template", [RUN, RECIPE], ids=["run", "recipe"])
@settings(SLOW_IS_FINE, max_examples=1500)
@given(data=st.data())
def test_mutated_configs(template, data, tmp_path):
    changed = copy.deepcopy(template)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(changed, data.draw)
    path = tmp_path / "mutated.yaml"
    path.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8")
    loaded = attempt(path)
    if loaded and loaded.run:
        assert load_text(dump_config(loaded.run)) == loaded.run


@settings(SLOW_IS_FINE, max_examples=1500)
@given(
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.text(max_size=5)), max_size=4),
    text=st.sampled_from([yaml.safe_dump(RUN), yaml.safe_dump(RECIPE), ""]),
)
def test_mutated_text(cuts, text, tmp_path):
    for where, length, inserted in cuts:
        at = int(where * len(text))
        text = text[:at] + inserted + text[at + length :]
    path = tmp_path / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(path)


@settings(SLOW_IS_FINE, max_examples=1500)
@given(
    overrides=st.lists(
        st.one_of(
            st.text(max_size=12),
            st.builds(
                "{}={}".format,
                st.sampled_from(
                    [".".join(p) for p in places(RUN) if all(map(str.isidentifier, map(str, p)))]
                ),
                SCALARS | st.text(max_size=8),
            ),
        ),
        max_size=3,
    )
)
def test_overrides(overrides, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    attempt(path, overrides)
