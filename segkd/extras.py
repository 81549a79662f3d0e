"""Optional packages, of extras of pyproject.toml."""

from importlib.util import find_spec

from segkd.errors import SegKDError


def require(*packages: str, extra: str = "export") -> None:
    """Checks that packages are installed.

    Args:
        packages: their names.
        extra: of pyproject.toml, which has them.

    Raises:
        SegKDError: one is missing; says what to install.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise SegKDError(
            f"this needs {', '.join(missing)}, which is not installed. Type: "
            f"pip install 'segkd[{extra}]' (in a clone: pip install -e '.[{extra}]')"
        )
