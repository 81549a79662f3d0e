"""``chain:`` of a recipe: runs in which each student is the teacher of the next.

``chain: [big, middle, small]`` is a teacher assistant; a name that is repeated side by side,
``[first, again, again]``, is trained again from its own result (``again``, then ``again_2``). A
list of such lists is several chains, which may begin with the same runs.
"""

from collections.abc import Collection
from itertools import pairwise

from segkd.config.schema import RecipeConfig
from segkd.errors import did_you_mean
from segkd.yaml_tree import Node, merge

KEY = "chain"
TEACHER = "previous"  # entry of `teachers:` of each run after the first

Taught = dict[str, tuple[str, Node]]  # by run, the run before it, and the place of its name


def chained(tree: Node, above: Node) -> tuple[Node, Node, Taught, list[str]]:
    """A recipe without the key, whose runs have their teachers instead.

    Args:
        tree: of the file, with ``runs`` as a mapping.
        above: the overrides.

    Returns:
        Both trees, the runs that have a teacher by the chain, and problems. The teacher is
        ``teachers.previous``; teachers that a run inherits are removed, those in the run's own
        block stay.
    """
    whole = merge(tree, above)
    runs = whole.value["runs"]
    chain = whole.value.get(KEY)
    if (
        chain is None
        or not isinstance(runs.value, dict)
        or (chain.value is None and not chain.empty)
    ):
        return tree.without(KEY), above.without(KEY), {}, []
    lists, problems = _lists(chain, runs)
    tree, above = tree.without(KEY), above.without(KEY)
    before: Taught = {}
    for names in lists:
        found, more = _generations(names)
        problems += more
        for (previous, _, _), (name, source, node) in pairwise(found):
            tree = _copied(tree, name, source, previous)
            above = _copied(above, name, source, previous)
            known = before.setdefault(name, (previous, node))[0]
            if known != previous:
                problems.append(
                    f"{node.place}: {KEY}: '{name}' comes after '{known}' and after '{previous}', "
                    "but learns from one of them. Write a run of its own for each"
                )
    for name, (previous, node) in before.items():
        given = merge(tree, above)
        path = ("runs", name, "teachers", TEACHER, "checkpoint")
        if given.has(path):
            text = f"`{KEY}` makes it run:{previous}. Remove it here, or the run from `{KEY}`"
            problems.append(f"{given.at(path).place}: {'.'.join(path)}: {text}")
        above = _taught(tree, above, name, previous, node)
    return tree, above, before, problems


def with_own_seeds(recipe: RecipeConfig, taught: Taught, given: Collection[str]) -> RecipeConfig:
    """Students that learn from their like get another ``seed_offset``.

    With the same random weights and the same images in the same order, a student repeats the steps
    of its teacher, which then has nothing to teach.

    Args:
        recipe: whose runs depend on each other without a circle.
        taught: of ``chained``.
        given: names of runs whose ``seed_offset`` is in the config.
    """
    runs = dict(recipe.runs)

    def offset(name: str) -> int:
        previous = taught[name][0] if name in taught else None
        if previous is None or name in given:
            return runs[name].seed_offset
        if runs[name].config.student != runs[previous].config.student:
            return runs[name].seed_offset
        return offset(previous) + 1

    found = {name: offset(name) for name in runs}
    runs = {name: run.model_copy(update={"seed_offset": found[name]}) for name, run in runs.items()}
    return recipe.model_copy(update={"runs": runs})


def _lists(chain: Node, runs: Node) -> tuple[list[list[Node]], list[str]]:
    """The chains as lists of names that exist; a chain that does not is left out."""
    items = chain.value if isinstance(chain.value, list) else None
    nested = items is not None and any(isinstance(item.value, list) for item in items)
    chains = items if items is not None and nested else [chain]
    lists, problems = [], []
    for one in chains:
        names = one.value if isinstance(one.value, list) else []
        texts = [name.value for name in names]
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            problems.append(
                f"{one.place}: {KEY}: got {one.plain()!r}, expected the names of at least two "
                "runs, e.g. [big, middle, small]"
            )
            continue
        known = [key for key, run in runs.value.items() if run.value is not None or run.empty]
        unknown = [name for name in names if name.value not in known]
        problems += [
            f"{name.place}: {KEY}: there is no run '{name.value}'.{did_you_mean(name.value, known)}"
            for name in unknown
        ]
        if not unknown:
            lists.append(names)
    return lists, problems


def _generations(names: list[Node]) -> tuple[list[tuple[str, str, Node]], list[str]]:
    """(name of the run, name as written, its node): repeated names are numbered from 2."""
    found: list[tuple[str, str, Node]] = []
    problems = []
    for node in names:
        number = sum(source == node.value for _, source, _ in found)
        if number and found[-1][1] != node.value:
            problems.append(
                f"{node.place}: {KEY}: '{node.value}' stands twice with others in between, but a "
                "run has one teacher. Write a run of its own for the second"
            )
        name = f"{node.value}_{number + 1}" if number else node.value
        found.append((name, node.value, node))
    return found, problems


def _copied(tree: Node, name: str, source: str, after: str) -> Node:
    """The tree with the keys of run ``source`` below those of ``name``, which follows ``after``."""
    runs = tree.child("runs")
    if name == source or runs is None or not isinstance(runs.value, dict):
        return tree
    if source not in runs.value:
        return tree
    own = runs.value.get(name)
    made = runs.value[source] if own is None else merge(runs.value[source], own)
    ordered: dict[str, Node] = {}
    for key, run in runs.value.items():
        ordered[key] = run
        if key == after and name not in runs.value:
            ordered[name] = made
    return tree.replaced(("runs",), Node({**ordered, name: made}, runs.place))


def _taught(tree: Node, above: Node, name: str, previous: str, place: Node) -> Node:
    """The overrides with the teacher of a run, below those of the user for the same run."""
    own = {
        key
        for layer in (tree, above)
        if layer.has(("runs", name, "teachers"))
        for key in _keys(layer.at(("runs", name, "teachers")))
    }
    inherited = {
        key: Node(None, place.place)
        for layer in (tree, above)
        for path in (("teachers",), ("common", "teachers"))
        if layer.has(path)
        for key in _keys(layer.at(path))
        if key not in own
    }
    checkpoint = Node({"checkpoint": Node(f"run:{previous}", place.place)}, place.place)
    teachers = Node({**inherited, TEACHER: checkpoint}, place.place)
    run = tree.at(("runs", name))
    layer = Node({name: Node({"teachers": teachers}, run.place)}, tree.at(("runs",)).place)
    return merge(Node({"runs": layer}, tree.place), above)


def _keys(node: Node) -> list[str]:
    return list(node.value) if isinstance(node.value, dict) else []
