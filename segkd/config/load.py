"""Loads a run or a recipe from YAML: merged over its `base:` files, then `key=value` overrides.

Mappings merge deeply, lists and scalars replace. ``null`` removes an entry (`methods.kd=null`) and
resets any other key to its default (`student.options=null`). What a run of a recipe removes is not
brought back by keys below it in an override of all runs (`common.teachers.main.checkpoint=FILE`).
Nothing in a config is executed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from segkd.config.check import check_evaluation, check_recipe, check_run
from segkd.config.former_names import with_current_names
from segkd.config.other_sets import OF_ANY_SET
from segkd.config.schema import (
    EvaluationConfig,
    ForeignEvaluationConfig,
    RecipeConfig,
    RunConfig,
)
from segkd.config_files import default_out, find_config
from segkd.data.base import DataConfig
from segkd.errors import ConfigError
from segkd.yaml_tree import (
    COMMAND_LINE,
    PYTHON,
    Node,
    dump,
    from_plain,
    merge,
    overrides_tree,
    parse,
    read_file,
    show,
)

# A run may be resumed with other values of these keys: they do not change its numbers.
RESUMABLE_KEYS = (
    "out",
    "save_every",
    "data.workers",
    "runtime.device",
    "runtime.threads",
    "log",
    *(f"teachers.*.black_box.{key}" for key in ("cache", "max_queries", "missing")),
)


# What an exported file is run with, whatever the configuration of its training says.
_OF_EXPORTED = {"device": ("auto", "cpu"), "precision": ("fp32",)}
_MOST_FILES = 200  # of one config, all `base:` files counted each time

Config = TypeVar("Config", RunConfig, RecipeConfig)


@dataclass(frozen=True)
class Loaded:
    """A checked config: either ``run`` or ``recipe`` is set.

    Attributes:
        path: its file; None if it came from Python.
        text: the resolved config as YAML, all defaults written out.
    """

    run: RunConfig | None
    recipe: RecipeConfig | None
    path: Path | None
    text: str


def load_config(
    config: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    own_parts: bool = False,
) -> Loaded:
    """Loads and checks a config.

    Args:
        config: a file by path or name, or a mapping of plain values; None: the quick start. Text
            with ``=`` in it is an override of the quick start.
        overrides: ``key=value``, e.g. ``optim.lr=0.01``.
        values: overrides from Python, as nested mappings.
        own_parts: the caller supplies networks, so names of teachers and architectures are not
            checked.

    Raises:
        ConfigError: with every problem: file, line, key, what was got, what was expected.
    """
    path: Path | None = None
    if isinstance(config, str) and "=" in config:
        overrides, config = [config, *overrides], None
    if isinstance(config, Mapping):
        tree = with_current_names(from_plain(dict(config), "config"))
    else:
        path = find_config(config if config is not None else "quickstart")
        tree = read_tree(path)
    above = merge(
        with_current_names(from_plain(dict(values or {}), PYTHON)),
        with_current_names(overrides_tree(overrides)),
    )
    if "runs" in tree.value:
        recipe = _with_out(check_recipe(tree, above, own_parts), path)
        return Loaded(None, recipe, path, dump_recipe(recipe))
    run = _with_out(check_run(merge(tree, above), own_parts), path)
    return Loaded(run, None, path, dump_config(run))


def load_text(text: str) -> RunConfig:
    """The run in a YAML text that ``dump_config`` wrote, e.g. in a run folder or checkpoint.

    Raises:
        ConfigError: with every problem.
    """
    return check_run(_stored(text), own_parts=True, stored=True)


def load_data(name: str, overrides: Sequence[str] = ()) -> DataConfig:
    """The block ``data:`` of a dataset by name, with overrides such as ``data.root=…``.

    Raises:
        ConfigError: with every problem.
    """
    tree = merge(from_plain({"data": {"name": name}}, COMMAND_LINE), overrides_tree(overrides))
    return check_evaluation(tree, EvaluationConfig).data


def load_evaluation(text: str, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """How to score a student: data, evaluation and runtime of a stored config, and overrides.

    If the overrides name another dataset, the stored keys of the former one do not hold for it.

    Raises:
        ConfigError: with every problem.
    """
    below = _stored(text).only(tuple(EvaluationConfig.model_fields))
    above = overrides_tree(overrides)
    path = ("data", "name")
    if above.has(path) and above.at(path).value != below.at(path).value and below.has(path):
        below = below.replaced(("data",), below.at(("data",)).only(OF_ANY_SET))
    tree = merge(below, above)
    if above.has(("data", "root")):  # a stored one is taken as it is, another one is checked
        data = tree.at(("data",)).without("augment")
        check_evaluation(tree.replaced(("data",), data), EvaluationConfig)
    return check_evaluation(tree, EvaluationConfig, stored=True)


def stored_evaluation(
    payload: Mapping[str, Any], overrides: Sequence[str] = ()
) -> EvaluationConfig:
    """``load_evaluation`` of the config in a student's file; defaults if there is none.

    Args:
        payload: of the file.
        overrides: ``key=value`` texts.

    Raises:
        ConfigError: with every problem; or overrides ask an exported file for what it cannot do.
    """
    require_as_exported(payload, overrides)
    text = payload.get("config") or f"data: {{name: {payload.get('dataset', 'arrays')}}}"
    return load_evaluation(text, overrides)


def require_as_exported(payload: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuses a device and a precision that an exported file does not have.

    Args:
        payload: of a student's file; ``exported`` is the name of an exported one.
        overrides: ``key=value`` texts.

    Raises:
        ConfigError: names the key.
    """
    title = payload.get("exported")
    above = overrides_tree(overrides if title else ())
    for key, own in _OF_EXPORTED.items():
        path = ("runtime", key)
        if above.has(path) and above.at(path).value not in own:
            given = f"runtime.{key}={above.at(path).value}"
            raise ConfigError(
                f"{COMMAND_LINE}: {given} would change nothing: {title} is run on the CPU with the "
                "numbers that are in it. Leave it out, or give the checkpoint"
            )


def require_read(overrides: Sequence[str], read: Sequence[str], reader: str) -> None:
    """Refuses overrides that would change nothing.

    Args:
        overrides: ``key=value`` texts; others are left to those who parse them.
        read: keys that are read, with all below them.
        reader: who reads them, for the message.

    Raises:
        ConfigError: names the first other key, and those that are read.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if equals and not any(
            f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}.") for one in read
        ):
            raise ConfigError(
                f"{COMMAND_LINE}: {key} would change nothing: {reader} reads only {', '.join(read)}"
            )


def foreign_evaluation(
    source: str | Path, overrides: Sequence[str]
) -> ForeignEvaluationConfig | None:
    """How to score a weights file of another program.

    Args:
        source: the file.
        overrides: with ``student.…``, which names its network.

    Returns:
        None if no override begins with ``student``.

    Raises:
        ConfigError: with every problem.
    """
    above = overrides_tree(overrides)
    if "student" not in above.value:
        return None
    if "data" not in above.value:
        raise ConfigError(
            f"{COMMAND_LINE}: data: is missing. In addition to `student.…`, name the dataset to "
            f"score {source} on, e.g. data.name=cityscapes"
        )
    file = from_plain({"student": {"checkpoint": str(source)}}, COMMAND_LINE)
    return check_evaluation(merge(file, above), ForeignEvaluationConfig)


def read_tree(path: Path, below: tuple[Path, ...] = (), read: list[Path] | None = None) -> Node:
    """A file merged over its `base:` files, which are relative to it or known by name.

    Args:
        path: of the file.
        below: the files that led to this one.
        read: every file is appended to it, to limit their number.

    Raises:
        ConfigError: a file cannot be read, `base:` is circular, or there are too many files.
    """
    read = [] if read is None else read
    read.append(path)
    if len(read) > _MOST_FILES:
        raise ConfigError(
            f"{show(below[0])}: more than {_MOST_FILES} files are read for its `base:`, the last "
            f"is {show(path)}. Name each file once"
        )
    tree = with_current_names(read_file(path))
    if "base" not in tree.value:
        return tree
    base = tree.value["base"]
    names = [base] if isinstance(base.value, str) else base.value
    if not isinstance(names, list) or not all(isinstance(name.value, str) for name in names):
        raise ConfigError(f"{base.place}: base: got {base.plain()!r}, expected a path or a list")
    merged = Node({}, tree.place)
    for name in names:
        merged = merge(merged, _base(name, path, (*below, path), read))
    return merge(merged, tree.without("base"))


def dump_config(run: RunConfig) -> str:
    """YAML with every value of a run; loading it returns an equal config."""
    return dump(run.model_dump(mode="json"))


def dump_recipe(recipe: RecipeConfig) -> str:
    """YAML with every value of a recipe and of its runs."""
    data = recipe.model_dump(mode="json")
    for name, run in data["runs"].items():
        config = run.pop("config")
        del config["out"]
        if not run["once"]:
            del config["seed"]
        data["runs"][name] = {**run, **config}
    return dump(data)


def config_difference(
    old: RunConfig, new: RunConfig, ignore: Sequence[str] = RESUMABLE_KEYS
) -> list[str]:
    """The values that differ, as lines ``key: old -> new``.

    Args:
        old, new: both configs.
        ignore: dotted keys that may differ, or patterns of them, and all keys below them.
    """
    before, after = (comparable(run, ignore) for run in (old, new))
    lines = []
    for key in dict.fromkeys([*before, *after]):
        a, b = (str(flat[key]) if key in flat else "not set" for flat in (before, after))
        if a != b:
            lines.append(f"{key}: {a} -> {b}")
    return lines


def comparable(config: RunConfig, ignore: Sequence[str] = RESUMABLE_KEYS) -> dict[str, Any]:
    """The values of a run by dotted key, without some; ``ignore`` as of ``config_difference``."""
    return {
        key: value
        for key, value in _flat(config.model_dump(mode="json")).items()
        if not any(fnmatchcase(key, name) or key.startswith(f"{name}.") for name in ignore)
    }


def _stored(text: str) -> Node:
    """The tree of a stored config. Raises ConfigError if it is not a mapping."""
    tree = parse(text, "stored config")
    if not isinstance(tree.value, dict):
        raise ConfigError(f"stored config: got {tree.plain()!r}, expected keys and values")
    return with_current_names(tree, quiet=True)


def _flat(data: Any, above: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings; an empty mapping stays a value."""
    if not isinstance(data, dict) or not data:
        return {above: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{above}.{key}" if above else key)
    return flat


def _base(name: Node, path: Path, below: tuple[Path, ...], read: list[Path]) -> Node:
    beside = path.parent / name.value
    try:
        base = beside.resolve() if beside.is_file() else find_config(name.value)
    except ConfigError as error:
        raise ConfigError(f"{name.place}: base: {error}") from None
    if base in below:
        circle = " -> ".join(show(step) for step in (*below[below.index(base) :], base))
        raise ConfigError(f"{name.place}: base: is circular: {circle}")
    return read_tree(base, below, read)


def _with_out(config: Config, path: Path | None) -> Config:
    if config.out is not None:
        return config
    return config.model_copy(update={"out": default_out(path) if path else Path("runs/python")})
