"""The floors of the package: nothing imports from a floor above its own, and there is no circle.

All imports count, also those inside of functions and for types alone. Not seen are names in
strings: ``segkd/__init__.py`` and the registry load modules by name at their first use.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from sources import parsed

ROOT = Path(__file__).parent.parent
GROUND = """__init__ archive checkpoint collectives config_files conversion cpus errors extras
    faults files markdown method_config method_context method_names outline refusals registry
    runtime structures texts type_words yaml_tree"""
FLOORS = [  # from the ground up: what stands side by side, and what it is
    (GROUND, "errors, files, plain types, the registry: imported by all"),
    ("ops", "functions of tensors, torch alone"),
    ("losses metrics modules", "task losses, metrics of arrays, parts of networks"),
    ("methods.base", "what a method is"),
    ("methods.shared", "what several methods share"),
    ("methods", "one file a method"),
    ("data", "datasets, loader, transforms"),
    ("config synthetic viz", "configurations; drawn scenes; overlays and colours"),
    ("models", "networks, their taps and their files"),
    ("inference", "a student at work: label maps, lanes, files of them"),
    ("evaluation", "scores, tables, plots"),
    ("engine export", "training; files for devices"),
    ("catalog doctor model_card report", "what is said of runs, methods and machines"),
    ("explain pipeline publish", "segkd explain, init, distill; a student as a folder for others"),
    ("api lanes testing", "the Python interface; checks for authors of plug-ins"),
    ("commands", "one file a command"),
    ("cli", "the command line"),
    ("__main__", "python -m segkd"),
]
EXCEPTIONS = {  # (module, what it imports from above): why
    ("registry", base): "for types alone: what the entries derive from"
    for base in ("data.base", "losses.base", "methods.base", "models.network")
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "segkd").rglob("*.py"))
}
FLOOR_OF = {room: level for level, (rooms, _) in enumerate(FLOORS) for room in rooms.split()}


def imports(module: str, *, late: bool) -> Iterator[str]:
    """Modules of segkd that a module imports; with ``late`` in functions and for types as well."""
    nodes: list[ast.AST] = [parsed(MODULES[module])]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.expr):
            continue  # holds no statement
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if MODULES[module].stem == "__init__" else module.rpartition(".")[0]
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else base for name in names]
        yield from (name for name in found if name in MODULES and name != module)
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        nodes += ast.iter_child_nodes(node) if late or not is_late else []


def short(module: str) -> str:
    return module.removeprefix("segkd").removeprefix(".") or "__init__"


def room(module: str) -> str:
    """The entry of FLOORS that a module belongs to: the longest that is above it, "" if none is."""
    parts = short(module).split(".")
    heads = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((head for head in heads if head in FLOOR_OF), "")


def upward() -> set[tuple[str, str]]:
    """Imports from a higher floor, or from beside on any floor but the ground."""
    found = set()
    for module in MODULES:
        for target in imports(module, late=True):
            own, other = room(module), room(target)
            level = FLOOR_OF[own]
            if FLOOR_OF[other] > level or (FLOOR_OF[other] == level > 0 and own != other):
                found.add((short(module), short(target)))
    return found


def picture() -> str:
    """The floors as CONTRIBUTING.md shows them, the highest first."""
    lines = []
    for rooms, what in reversed(FLOORS):
        names = "ground floor" if rooms is GROUND else "  ".join(rooms.split())
        lines.append(f"{names:37}{what}")
    words = [word for word in GROUND.split() if word != "__init__"]
    return "\n".join(
        [*lines, *(f"    {'  '.join(words[at : at + 8])}" for at in range(0, len(words), 8))]
    )


def test_every_module_has_a_floor_and_every_room_a_module():
    assert {room(module) for module in MODULES} == FLOOR_OF.keys(), "add it to FLOORS"


def test_nothing_imports_from_above():
    found = upward()
    assert not found - EXCEPTIONS.keys(), "imports from above or beside: move one of both"
    assert not EXCEPTIONS.keys() - found, "exceptions that are no longer needed: remove them"


def test_there_is_no_circle_of_modules():
    order = TopologicalSorter({module: set(imports(module, late=False)) for module in MODULES})
    order.prepare()  # raises CycleError that names the circle


def test_contributing_shows_the_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```text\n{picture()}\n```" in text, f"put this picture there:\n{picture()}"


def test_imports_are_seen_wherever_they_stand():
    late, early = (set(imports("segkd.cli", late=late)) for late in (True, False))
    assert early < late and "segkd.commands.report" in late - early
    assert "segkd.methods.base" in set(imports("segkd.registry", late=True))  # for types alone
    assert set(imports("segkd.registry", late=False)) == {"segkd.errors", "segkd.outline"}
