"""Optional packages, of the extra ``export``."""

from importlib.util import find_spec

from segkd.errors import SegKDError


def require(*packages: str) -> None:
    """Checks that packages are installed.

    Raises:
        SegKDError: one is missing; says what to install.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise SegKDError(
            f"this needs {', '.join(missing)}, which is not installed. Type: "
            "pip install 'segkd[export]' (in a clone: pip install -e '.[export]')"
        )
