"""Expands a recipe into an ordered list of runs, each with its folder and dependencies."""

from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from segkd.config.schema import RecipeConfig, RunConfig
from segkd.errors import ConfigError, did_you_mean

_PREFIX = "run:"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a recipe, ready to be trained.

    Attributes:
        name: row of the table.
        seed: of the recipe; ``config.seed`` is this plus the run's ``seed_offset``.
        once: not repeated over seeds.
        config: with its folder in ``out`` and without `run:` references.
        depends_on: folders of the runs that must be finished first.
    """

    name: str
    seed: int
    once: bool
    config: RunConfig
    depends_on: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        assert self.config.out is not None  # given by ``expand``
        return Path(self.config.out)


def checkpoints(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields (path of the key, value) for each checkpoint that a config names."""
    values: dict[tuple[str, ...], str | None] = {
        ("student", "checkpoint"): config.student.checkpoint
    }
    for name, teacher in config.teachers.items():
        values["teachers", name, "checkpoint"] = teacher.checkpoint
    for name, entry in config.methods.items():
        for below, keys in entry.networks().items():
            values["methods", name, *below, "checkpoint"] = keys.get("checkpoint")
    values["init_from",] = config.init_from
    yield from ((path, value) for path, value in values.items() if value)


def references(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields (path of the key, name of the run) for each `run:NAME` in a config."""
    for path, value in checkpoints(config):
        if value.startswith(_PREFIX):
            yield path, value.removeprefix(_PREFIX)


def check_references(recipe: RecipeConfig) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yields (run, path of the key, message) for each reference that cannot be resolved."""
    for name, run in recipe.runs.items():
        for path, target in references(run.config):
            if target not in recipe.runs:
                hint = did_you_mean(target, set(recipe.runs) - {name})
                yield name, path, f"there is no run '{target}' in this recipe.{hint}"
            elif run.once and not recipe.runs[target].once and len(recipe.seeds) > 1:
                yield (
                    name,
                    path,
                    (
                        f"'{target}' has {len(recipe.seeds)} seeds, but '{name}' is `once`: "
                        f"make '{target}' `once` too, or '{name}' not"
                    ),
                )


def expand(recipe: RecipeConfig) -> list[PlannedRun]:
    """All runs of a recipe; each comes after those that it depends on, seed by seed.

    Raises:
        ConfigError: references that cannot be resolved, or are circular.
    """
    for name, path, text in check_references(recipe):
        raise ConfigError(f"runs.{name}.{'.'.join(path)}: {text}")
    ranks = {name: rank for rank, name in enumerate(in_order(recipe))}
    plan = [
        (position, ranks[name], name, seed)
        for name, run in recipe.runs.items()
        for position, seed in enumerate(_seeds(recipe, name))
    ]
    return [_planned(recipe, name, seed) for _, _, name, seed in sorted(plan)]


def selected(recipe: RecipeConfig) -> RecipeConfig:
    """The recipe with the runs of `only`, those that they depend on, baseline and teacher.

    All runs if there is no `only`.
    """
    if recipe.only is None:
        return recipe
    wanted = (*recipe.only, recipe.baseline, recipe.teacher)
    names = {name for name in recipe.runs if name in wanted}
    todo = list(names)
    while todo:
        needed = {target for _, target in references(recipe.runs[todo.pop()].config)} - names
        names |= needed
        todo += needed
    runs = {name: run for name, run in recipe.runs.items() if name in names}
    known = {*runs, *(name for run in runs.values() for name in run.config.teachers)}
    series = {
        title: [name for name in members if name in runs]
        for title, members in recipe.series.items()
    }
    changes = {
        "runs": runs,
        "teacher": recipe.teacher if recipe.teacher in known else None,
        "series": {title: members for title, members in series.items() if members},
    }
    return recipe.model_copy(update=changes)


def in_order(recipe: RecipeConfig) -> list[str]:
    """Names of runs, dependencies first, otherwise as written.

    With `match` the baseline comes before all that it does not depend on.

    Raises:
        ConfigError: runs depend on each other in a circle.
    """
    sources = {name: [t for _, t in references(run.config)] for name, run in recipe.runs.items()}
    try:
        TopologicalSorter(sources).prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigError(f"runs depend on each other in a circle: {circle}") from None
    ordered: list[str] = []

    def visit(name: str) -> None:
        for source in sources[name]:
            visit(source)
        if name not in ordered:
            ordered.append(name)

    if recipe.match is not None and recipe.baseline is not None:
        visit(recipe.baseline)
    for name in sources:
        visit(name)
    return ordered


def _seeds(recipe: RecipeConfig, name: str) -> list[int]:
    run = recipe.runs[name]
    return [run.config.seed] if run.once else recipe.seeds


def _folder(recipe: RecipeConfig, name: str, seed: int) -> Path:
    if recipe.out is None:
        raise ConfigError("a recipe needs a folder: set `out`, e.g. out: runs/my_recipe")
    run = recipe.runs[name]
    return recipe.out / name if run.once else recipe.out / name / f"seed{seed}"


def _planned(recipe: RecipeConfig, name: str, seed: int) -> PlannedRun:
    run, sources = recipe.runs[name], []
    own = {"seed": seed + run.seed_offset, "out": _folder(recipe, name, seed)}
    config = run.config.model_copy(update=own)
    for path, target in references(run.config):
        source_seed = seed if seed in _seeds(recipe, target) else _seeds(recipe, target)[0]
        folder = _folder(recipe, target, source_seed)
        sources.append(folder)
        config = with_value(config, path, str(folder))
    return PlannedRun(name, seed, run.once, config, tuple(dict.fromkeys(sources)))


def with_value(config: RunConfig, path: tuple[str, ...], value: Any) -> RunConfig:
    """The config with another value at ``path``, of ``references`` or of a method's network."""
    if path[0] == "init_from":
        return config.model_copy(update={"init_from": value})
    if path[0] == "methods":
        methods = config.model_dump(include={"methods"})["methods"]
        block = methods
        for key in path[1:-1]:
            block = block[key]
        block[path[-1]] = value
        name = path[1]
        entry = type(config.methods[name]).model_validate(methods[name])
        return config.model_copy(update={"methods": {**config.methods, name: entry}})
    change = {"checkpoint": value}
    if path[0] == "student":
        return config.model_copy(update={"student": config.student.model_copy(update=change)})
    teachers = {**config.teachers, path[1]: config.teachers[path[1]].model_copy(update=change)}
    return config.model_copy(update={"teachers": teachers})
