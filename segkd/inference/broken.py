"""Images without a prediction: unreadable, or refused by the network. The others are predicted."""

from collections.abc import Mapping

from segkd.errors import ODD_VALUES, DataError, SegKDError
from segkd.inference.media import Frames, Source

FAILURES = (SegKDError, *ODD_VALUES, MemoryError)  # of a network on an image
_SHOWN = 10


def why(error: Exception, name: str) -> str:
    """The reason in one line after the name of the image; advice is for training, and left out."""
    text = str(error).strip() or type(error).__name__
    return f"{name}: {text.splitlines()[0].partition('. ')[0]}"


def broken_text(broken: Mapping[str, str], count: int) -> str:
    """A sentence about images without a prediction, with the first names; "" if there are none.

    Args:
        broken: reasons by name.
        count: number of predicted images.
    """
    if not broken:
        return ""
    reasons = list(broken.values())[:_SHOWN]
    more = f"\n  … and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    lines = "\n  ".join(reasons)
    return f"{len(broken)} of {count + len(broken)} images have no prediction:\n  {lines}{more}"


def raise_if_broken(broken: Mapping[str, str], count: int) -> None:
    """Raises an error if there are images without a prediction, see ``broken_text``.

    Raises:
        DataError: with the first names and reasons.
    """
    if text := broken_text(broken, count):
        raise DataError(text)


def left_text(name: str, seen: int, total: int) -> str:
    """What a command says that was stopped before the last image.

    Args:
        name: of the source.
        seen: number of its images, with broken ones.
        total: number of all of them.
    """
    return (
        f"{name}: not finished; what is written is complete. {total - seen} of {total} images are "
        "left: the same command predicts all of them anew"
    )


def early_end(source: Frames, seen: int) -> str:
    """A sentence about a video that ends before its header says so; "" if it does not.

    Frames that cannot be decoded up to the end are not handed over as broken ones, since headers
    of some formats only estimate the number of frames.

    Args:
        source: of the images.
        seen: number of its images, with broken ones.
    """
    if not isinstance(source, Source) or source.kind != "video" or seen >= source.count:
        return ""
    return (
        f"{source.name} ends after {seen} of {source.count} frames: no later one can be decoded. "
        "Was it cut off? Headers of some formats only estimate their number"
    )
