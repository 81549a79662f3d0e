"""Turns a tree of YAML values into a checked RunConfig or RecipeConfig, reporting all problems."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from segkd import registry
from segkd.config import chain
from segkd.config.entries import resets
from segkd.config.match import matched
from segkd.config.problems import explain, raise_if
from segkd.config.recipe import check_references, in_order, references, selected
from segkd.config.schema import EvaluationConfig, RecipeConfig, RecipeRun, RunConfig
from segkd.errors import ConfigError, did_you_mean
from segkd.yaml_tree import KeyPath, Node, merge

_OF_RECIPES = ("match", "only", "shared", "series")  # often given on the command line
_HEAD = ("title", "out", "seeds", "baseline", "teacher", "sort", *_OF_RECIPES)
_RECIPE_KEYS = (*_HEAD, chain.KEY, "common", "runs")
_RUN_KEYS = tuple(key for key in RunConfig.model_fields if key not in _RECIPE_KEYS)
Evaluation = TypeVar("Evaluation", bound=EvaluationConfig)
_RUN_NAME = re.compile(r"[\w-]+")
Prefix = Callable[[KeyPath], str]  # what is written before a key in messages


def check_run(tree: Node, own_parts: bool = False, stored: bool = False) -> RunConfig:
    """The run in a tree.

    Args:
        tree: of the file and the overrides.
        own_parts: the caller supplies networks, so names of teachers and architectures are not
            checked.
        stored: the config was checked when it was written, so transforms are not tried again.

    Raises:
        ConfigError: with all problems.
    """
    links = tree.value.get(chain.KEY)
    of_recipes = {key: tree.value[key] for key in _OF_RECIPES if key in tree.value}
    for key in (chain.KEY, *of_recipes):
        tree = tree.without(key)
    run, problems = _run(tree, lambda path: "", own_parts, stored)
    for key, node in of_recipes.items():
        problems.append(f"{node.place}: {key}: is for recipes, and this is a single run: remove it")
    if links is not None:
        text = "is for recipes. Write `runs: {NAME: {…}, …}` with these names, or remove it"
        problems.append(f"{links.place}: {chain.KEY}: {text}")
    for path, name in references(run) if run else ():
        where = f"{tree.at(path).place}: {'.'.join(path)}"
        problems.append(f"{where}: got 'run:{name}', but only runs of a recipe have names")
    raise_if(problems, tree.place)
    assert run is not None  # without a run there are problems
    return run


def check_evaluation(tree: Node, model: type[Evaluation], stored: bool = False) -> Evaluation:
    """The keys that an evaluation needs.

    Args:
        tree: of a stored config and the overrides.
        model: which keys these are.
        stored: the transforms of training, which an evaluation does not use, are not tried.

    Raises:
        ConfigError: with all problems.
    """
    try:
        tree = _without_nulls(tree, model)
        return model.model_validate(tree.plain(), context={"stored": stored})
    except ValidationError as error:
        raise_if(explain(error, tree, model), "the command")
        raise


def check_recipe(tree: Node, above: Node, own_parts: bool = False) -> RecipeConfig:
    """The recipe in a tree.

    Args:
        tree: of the file.
        above: the overrides, which take precedence over each run's own keys.
        own_parts: the caller supplies networks: names of teachers and architectures are not
            checked.

    Raises:
        ConfigError: with all problems.
    """
    tree, above, taught, problems = chain.chained(tree, above)
    whole = merge(tree, above)
    entries, more = _entries(tree, whole)
    problems += more
    known = (*_RECIPE_KEYS, *_RUN_KEYS)
    for key, node in whole.value.items():
        if key not in known:
            problems.append(f"{node.place}: {key}: unknown key.{did_you_mean(key, known)}")
    runs: dict[str, RecipeRun] = {}
    trees: dict[str, Node] = {}
    for name in entries:
        trees[name], found = _layered(name, tree, above)
        problems += found
        if found:
            continue
        run, found = _recipe_run(name, trees[name], whole, own_parts)
        problems += found
        if run:
            runs[name] = run
        if run and name in taught and not run.config.methods:
            problems.append(
                f"{taught[name][1].place}: {chain.KEY}: run '{name}' has a teacher, but no method "
                "to learn from it. Add one, e.g. common.methods.kd={}"
            )
    raise_if(problems, tree.place)
    head = whole.only(_HEAD)
    try:
        recipe = RecipeConfig.model_validate({**head.plain(), "runs": runs})
    except ValidationError as error:
        raise_if(explain(error, head, RecipeConfig), tree.place)
        raise
    for name, path, text in check_references(recipe):
        place = trees[name].at(path).place
        problems.append(f"{place}: runs.{name}.{'.'.join(path)}: {text}")
    raise_if(problems, tree.place)
    try:
        in_order(recipe)
    except ConfigError as error:
        raise ConfigError(f"{tree.value['runs'].place}: runs: {error}") from None
    given = [name for name in runs if trees[name].has(("seed_offset",))]
    return _part(chain.with_own_seeds(recipe, taught, given))


def _part(recipe: RecipeConfig) -> RecipeConfig:
    """What `only` leaves of a recipe, whose runs are matched as in the whole.

    Else the whole recipe could not go on from a part of it.
    """
    part = selected(recipe)
    reasons, found = matched(recipe), matched(part)
    hidden = {name: reasons[name] for name, why in found.items() if why is None}
    told = {
        name: run.model_copy(update={"unmatched": hidden.get(name)})
        for name, run in part.runs.items()
    }
    return part.model_copy(update={"runs": told})


def _run(
    tree: Node, prefix: Prefix, own_parts: bool = False, stored: bool = False
) -> tuple[RunConfig | None, list[str]]:
    tree = _without_nulls(tree, RunConfig)
    try:
        context = {"own_parts": own_parts, "stored": stored}
        run = RunConfig.model_validate(tree.plain(), context=context)
    except ValidationError as error:
        return None, explain(error, tree, RunConfig, prefix)
    problems = _infinite(run.model_dump(), tree, prefix)
    if not own_parts:
        problems += _unknown_archs(run, tree, prefix)
    return run, problems


def _infinite(data: Any, tree: Node, prefix: Prefix, path: KeyPath = ()) -> list[str]:
    """Problems: infinite numbers and NaN."""
    if isinstance(data, float) and not math.isfinite(data):
        where = f"{tree.at(path).place}: {prefix(path)}{'.'.join(map(str, path))}"
        return [f"{where}: got {data}, expected a finite number"]
    items: Iterable[tuple[Any, Any]] = data.items() if isinstance(data, dict) else ()
    items = enumerate(data) if isinstance(data, list | tuple) else items
    return [p for key, value in items for p in _infinite(value, tree, prefix, (*path, key))]


def _unknown_archs(run: RunConfig, tree: Node, prefix: Prefix) -> list[str]:
    """Problems: architectures that neither segkd nor a plug-in nor smp has."""
    named: dict[tuple[str, ...], str] = {("student", "arch"): run.student.arch}
    named |= {("teachers", name, "arch"): teacher.arch for name, teacher in run.teachers.items()}
    for name, entry in run.methods.items():
        for below, keys in entry.networks().items():
            named["methods", name, *below, "arch"] = keys.get("arch", "")
    problems = []
    for path, arch in named.items():
        if not arch or arch in registry.models:
            continue
        known = registry.architectures()
        if arch not in known:
            where = f"{tree.at(path).place}: {prefix(path)}{'.'.join(path)}"
            problems.append(f"{where}: unknown architecture '{arch}'.{did_you_mean(arch, known)}")
    return problems


def _without_nulls(tree: Node, model: type[BaseModel], path: KeyPath = ()) -> Node:
    """Drops each ``null`` that is not a value of its key, so that the default applies."""
    node = tree.at(path)
    for key, child in node.value.items():
        here = (*path, key)
        if child.value is None and not child.empty and resets(here, tree, model):
            tree = tree.replaced(path, tree.at(path).without(key))
        elif isinstance(child.value, dict):
            tree = _without_nulls(tree, model, here)
    return tree


def _entries(tree: Node, whole: Node) -> tuple[dict[str, Node], list[str]]:
    """The runs of a recipe by name; a run that is ``null`` is removed."""
    written, runs = tree.value["runs"], whole.value["runs"]
    if not (isinstance(written.value, dict) and isinstance(runs.value, dict)):
        return {}, [f"{runs.place}: runs: got {runs.plain()!r}, expected e.g. `alone: {{}}`"]
    entries, problems = {}, []
    for name, entry in runs.value.items():
        if not _RUN_NAME.fullmatch(name):
            problems.append(
                f"{entry.place}: runs: '{name}' is not a valid name: use letters, digits, _ and -"
            )
        elif name not in written.value:
            hint = did_you_mean(name, written.value)
            problems.append(f"{entry.place}: runs.{name}: there is no such run.{hint}")
        elif entry.empty:
            problems.append(
                f"{entry.place}: runs.{name}: is empty: write {{}}, or null to remove it"
            )
        elif entry.value is not None:
            entries[name] = entry
    return entries, problems


def _layered(name: str, tree: Node, above: Node) -> tuple[Node, list[str]]:
    """All keys of one run: top-level keys, `common`, its own; then the overrides.

    Overrides of all runs change a teacher or method where a run has it: keys below an entry that
    the run itself removes do not bring it back.
    """
    merged, problems = Node({}, tree.place), []
    own = tree.at(("runs", name)) if tree.has(("runs", name)) else Node({})
    for layer in (tree, above):
        parts = {"": layer.only(_RUN_KEYS)}
        for path in (("common",), ("runs", name)):
            if layer.has(path):
                parts[".".join(path)] = layer.at(path)
        for key, part in parts.items():
            if layer is above and not key.startswith("runs"):
                part = _without_removed(part, own)
            if isinstance(part.value, dict):
                merged = merge(merged, part)
                problems += [
                    f"{node.place}: {key}.{own_key}: is a key of the recipe, not of a run: write "
                    "it at the top, beside `runs`"
                    for own_key, node in part.value.items()
                    if own_key in _OF_RECIPES
                ]
            else:
                problems.append(f"{part.place}: {key}: got {part.plain()!r}, expected a mapping")
    return Node(merged.value, tree.place), problems


def _without_removed(part: Node, own: Node) -> Node:
    """A mapping without the keys below what ``own`` sets to null."""
    if not (isinstance(part.value, dict) and isinstance(own.value, dict)):
        return part
    kept = {}
    for key, node in part.value.items():
        mine = own.value.get(key)
        if mine is None:
            kept[key] = node
        elif mine.value is not None:
            kept[key] = _without_removed(node, mine)
        elif not isinstance(node.value, dict):
            kept[key] = node
    return Node(kept, part.place)


def _recipe_run(
    name: str, tree: Node, whole: Node, own_parts: bool = False
) -> tuple[RecipeRun | None, list[str]]:
    """Checks one run; the key of a problem is in the run, in `common`, or at the top level."""

    def prefix(path: KeyPath) -> str:
        for above in (("runs", name), ("common",)):
            if path and whole.has((*above, *path)):
                return f"{'.'.join(above)}."
        return ""

    once = tree.at(("once",)).value if tree.has(("once",)) else False
    offset = tree.at(("seed_offset",)).value if tree.has(("seed_offset",)) else 0
    problems = []
    if not isinstance(once, bool):
        place = tree.at(("once",)).place
        problems.append(f"{place}: {prefix(('once',))}once: got {once!r}, expected true or false")
    if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
        place, where = tree.at(("seed_offset",)).place, prefix(("seed_offset",))
        problems.append(f"{place}: {where}seed_offset: got {offset!r}, expected 0, 1, …")
    misplaced = {"out": "set `out` of the recipe, which contains the folders of its runs"}
    if once is not True:
        misplaced["seed"] = "a recipe has `seeds`, e.g. seeds: [0, 1, 2]"
    for key, text in misplaced.items():
        if tree.has((key,)):
            problems.append(f"{tree.at((key,)).place}: {prefix((key,))}{key}: {text}")
    run, more = _run(tree.without("once").without("seed_offset"), prefix, own_parts)
    if not run or problems:
        return None, problems + more
    return RecipeRun(once=once, seed_offset=offset, config=run), more
