"""Pictures that have no answer: read or asked in vain. The others are answered."""

from collections.abc import Mapping

from segkd.errors import ODD_VALUES, DataError, SegKDError

FAILURES = (SegKDError, *ODD_VALUES, MemoryError)  # of a network that is given a picture
_SHOWN = 10


def why(error: Exception, name: str) -> str:
    """The reason in a line, with the picture that it is about."""
    text = str(error).strip() or type(error).__name__
    return f"{name}: {text.splitlines()[0]}"


def raise_if_broken(broken: Mapping[str, str], count: int) -> None:
    """Raises DataError (exit code 2) that names what has no answer, if there is any.

    Args:
        broken: reasons by name.
        count: pictures that were answered.
    """
    if not broken:
        return
    # The advice that follows the reason is for trainings.
    reasons = [reason.partition(". ")[0] for reason in list(broken.values())[:_SHOWN]]
    more = f"\n  … and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    lines = "\n  ".join(reasons)
    raise DataError(
        f"{len(broken)} of {count + len(broken)} pictures have no answer:\n  {lines}{more}"
    )
