"""Docstrings of public functions: one each, shapes where there are arrays, errors raised."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "segkd").rglob("*.py"))
    if path.stem != "__main__"
]
ARRAYS = re.compile(r"\b(Tensor|ndarray)\b")
TABLES = re.compile(r"(dict|Mapping)\[str, [^\[\]]*Tensor\]")  # state dicts: any shapes
# "(B, C, h, w)", "(n, 2)", "0-d", "a scalar", "of any shape": what tells a reader the layout.
SHAPE = re.compile(
    r"\(([\w*·+.'/ ×…-]+,)+ ?[\w*·+.'/ ×…-]*\)|\(\w+\)|0-d|scalar|shape|same size|size"
)

# An unwritten method of a base class; what a check says of what it checks.
SELF_EXPLAINING = {"NotImplementedError", "AssertionError"}


def public(module):
    """(name, class or None, function) of all public functions and methods of a module's own."""
    for name, entry in vars(module).items():
        if name.startswith("_") or getattr(entry, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(entry):
            yield name, None, entry
        elif inspect.isclass(entry):
            for inner, member in vars(entry).items():
                member = getattr(member, "__func__", getattr(member, "fget", member))
                is_default = getattr(member, "__name__", "") == "<lambda>"
                if inspect.isfunction(member) and not (inner.startswith("_") or is_default):
                    yield f"{name}.{inner}", entry, member


def described(function, owner):
    """The docstring of a function, or of the method of a base class that it overrides."""
    text = function.__doc__ or ""
    for base in owner.__mro__[1:] if owner is not None and not text else ():
        member = vars(base).get(function.__name__)
        member = getattr(member, "__func__", getattr(member, "fget", member))
        text = text or getattr(member, "__doc__", None) or ""
    return text


def raised(function):
    """Names of the errors that a function raises in its own body."""
    nodes = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body.copy()
    names = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(ast.unparse(node.exc.func))
        nodes += ast.iter_child_nodes(node)
    return {name for name in names if name.endswith("Error")} - SELF_EXPLAINING


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_say_what_they_do_take_and_raise(name):
    module = importlib.import_module(name)
    silent, shapeless, sudden = [], [], []
    for title, owner, function in public(module):
        text = described(function, owner)
        if not text.strip():
            silent.append(title)
            continue
        hints = [TABLES.sub("", str(hint)) for hint in inspect.get_annotations(function).values()]
        own = function.__doc__ and not inspect.isgeneratorfunction(function)
        if own and any(map(ARRAYS.search, hints)) and not SHAPE.search(text):
            shapeless.append(title)
        if function.__doc__ and raised(function) and "aises" not in text:
            sudden.append(title)
    assert not silent, "public functions without a docstring"
    assert not shapeless, "functions of arrays whose docstrings give no shape"
    assert not sudden, "functions that raise errors their docstrings do not name"
