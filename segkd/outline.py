"""Classes as their source files show them, without importing any module.

Importing segkd's methods or networks loads torch, which takes seconds; reading their files takes
milliseconds. The registry looks names up this way and imports only what is asked for.
"""

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from typing import Any


@dataclass(frozen=True)
class Outline:
    """A class at the top level of a module.

    Attributes:
        module: dotted name of the module.
        name: of the class.
        bases: names of its bases, without their modules and type arguments.
        about: first line of the docstring; empty without one.
        literals: class attributes whose values are literals.
        assigned: names of all class attributes that have a value.
        defined: these, and names of methods and properties.
        inherited: ``literals``, and those of bases in the same packages.
    """

    module: str
    name: str
    bases: tuple[str, ...]
    about: str
    literals: Mapping[str, Any]
    assigned: frozenset[str]
    defined: frozenset[str]
    inherited: Mapping[str, Any] = field(default_factory=dict)


def subclasses(base: str, packages: Sequence[str]) -> list[Outline]:
    """Classes of the packages that derive from the class called ``base``, also by others there.

    Raises:
        ImportError: a package does not exist, or has no source files.
        SyntaxError: a module cannot be parsed.
    """
    found = [outline for package in packages for outline in _outlines(_spec(package))]
    named = {outline.name: outline for outline in found}

    def derives(name: str, below: tuple[str, ...] = ()) -> bool:
        above = named[name].bases if name in named and name not in below else ()
        return base in above or any(derives(parent, (*below, name)) for parent in above)

    def inherited(outline: Outline, below: tuple[str, ...] = ()) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for parent in reversed(outline.bases):
            if parent in named and parent not in below:
                values |= inherited(named[parent], (*below, outline.name))
        kept = {name: value for name, value in values.items() if name not in outline.defined}
        return {**kept, **outline.literals}

    below = [outline for outline in found if derives(outline.name)]
    return [replace(outline, inherited=inherited(outline)) for outline in below]


def assigned_list(module: str, variable: str) -> list[str] | None:
    """The names in ``variable = [A, B, …]`` of a top-level module; None if it has no such line.

    None also if the module is not installed.
    """
    spec = importlib.util.find_spec(module)
    for node in _tree(spec).body if spec else ():
        for name, value in _assignments(node):
            if name == variable and isinstance(value, ast.List):
                names = [_last_name(item) for item in value.elts]
                return [name for name in names if name] if all(names) else None
    return None


def _spec(module: str) -> ModuleSpec:
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"there is no module {module}", name=module)
    return spec


def _outlines(package: ModuleSpec) -> Iterator[Outline]:
    """Those of a package's modules, with its packages."""
    prefix = f"{package.name}."
    for info in pkgutil.iter_modules(package.submodule_search_locations, prefix):
        spec = info.module_finder.find_spec(info.name, None)
        assert spec is not None  # it has just been listed
        for node in _tree(spec).body:
            if isinstance(node, ast.ClassDef):
                yield _outline(info.name, node)
        if info.ispkg:
            yield from _outlines(spec)


def _tree(module: ModuleSpec) -> ast.Module:
    source = getattr(module.loader, "get_source", lambda name: None)(module.name)
    if source is None:
        raise ImportError(f"{module.name} has no source file, which is needed", name=module.name)
    return ast.parse(source, module.origin or module.name)


def _outline(module: str, node: ast.ClassDef) -> Outline:
    assigned = dict(pair for statement in node.body for pair in _assignments(statement))
    literals = {}
    for name, value in assigned.items():
        try:
            literals[name] = ast.literal_eval(value)
        except ValueError:  # an expression
            continue
    bases = tuple(filter(None, map(_last_name, node.bases)))
    about = (ast.get_docstring(node) or "").partition("\n")[0]
    functions = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    defined = frozenset(assigned) | functions
    return Outline(module, node.name, bases, about, literals, frozenset(assigned), defined)


def _assignments(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of ``name = value`` and ``name: type = value``."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if value is not None:
        yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))


def _last_name(node: ast.expr) -> str:
    """``Base`` of ``Base``, ``module.Base`` and ``Base[Config]``; empty for other expressions."""
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
