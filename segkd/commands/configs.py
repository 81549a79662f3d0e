"""`segkd config`: prints a resolved config, or copies one for editing."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from segkd.config.load import dump_config, load_config
from segkd.config.match import matched
from segkd.config.recipe import expand
from segkd.config.schema import RecipeConfig
from segkd.config_files import SUFFIX, config_roots, find_config
from segkd.errors import ConfigError, did_you_mean
from segkd.files import write_text
from segkd.yaml_tree import read_file


def show_config(config: str, overrides: Sequence[str], run: str | None = None) -> str:
    """The config with all defaults written out, as YAML.

    Args:
        config: path or name of a config.
        overrides: ``key=value`` texts.
        run: name of a run of a recipe: only this one, with its first seed.

    Raises:
        ConfigError: unknown config or run, or an invalid config.
    """
    loaded = load_config(config, overrides)
    if run is None:
        return _about_match(loaded.recipe) + loaded.text
    if loaded.recipe is None:
        raise ConfigError(f"--run {run}: {config} is a single run, not a recipe. Remove --run")
    plan = expand(loaded.recipe)
    planned = next((item for item in plan if item.name == run), None)
    if planned is None:
        names = dict.fromkeys(item.name for item in plan)
        raise ConfigError(f"--run: {config} has no run '{run}'.{did_you_mean(run, names)}")
    if loaded.recipe.match is None:
        return dump_config(planned.config)
    from segkd.engine.match import foreseen  # which imports torch

    trained, steps = foreseen(loaded.recipe, planned)
    return f"# steps: {steps}\n{dump_config(trained)}"


def _about_match(recipe: RecipeConfig | None) -> str:
    """A comment about the steps of a recipe's runs; empty without `match`."""
    if recipe is None or recipe.match is None:
        return ""
    times = "" if recipe.match.seconds == 1 else f"{recipe.match.seconds:g} times "
    lines = [
        f"# match: each run gets {times}the training time of '{recipe.baseline}'. Its steps are",
        "# measured before it; those below are what warm-ups and `eval.every` are shares of.",
    ]
    lines += [f"# not matched: {name} ({why})" for name, why in matched(recipe).items() if why]
    return "\n".join(lines) + "\n"


def copy_config(name: str, dest: Path) -> Path:
    """Copies a config with its comments; its `base:` is replaced by a name that works anywhere.

    Args:
        name: path or name of a config.
        dest: file or folder.

    Returns:
        The path of the copy.

    Raises:
        ConfigError: unknown config, or the file exists already.
    """
    source = find_config(name)
    is_file = dest.suffix in (SUFFIX, ".yml") and not dest.is_dir()
    target = dest if is_file else dest / source.name
    if target.exists():
        raise ConfigError(f"{target} exists already: give another name, or remove it")
    write_text(target, _with_named_bases(source))
    return target


def _with_named_bases(path: Path) -> str:
    """The text of a config in which each base is a name below the root of configs."""
    read_file(path)  # raises ConfigError for an invalid file, so that the nodes below are valid
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:  # an empty file
        return text
    bases = [value for key, value in root.value if key.value == "base"]
    scalars = [
        node
        for base in bases
        for node in (base.value if isinstance(base, yaml.SequenceNode) else [base])
    ]
    for node in reversed(scalars):
        start, end = node.start_mark.index, node.end_mark.index
        beside = path.parent / node.value
        named = _named(beside if beside.is_file() else Path(node.value))
        text = f"{text[:start]}{named}{text[end:]}"
    return text


def _named(base: Path) -> str:
    """A base's name below the root that holds it; its full path elsewhere."""
    resolved = find_config(base)
    for root in config_roots():
        if resolved.is_relative_to(root):
            return resolved.relative_to(root).as_posix()
    return str(resolved)
