"""Files of the package, parsed once for all tests that look at their text."""

import ast
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file; who gets it leaves it as it is."""
    return ast.parse(path.read_text(encoding="utf-8"))
