"""Messages for a batch norm with a single value per channel, which has no variance."""

from collections.abc import Iterator
from contextlib import contextmanager

from segkd.errors import ConfigError

_TORCH_SAYS = "more than 1 value per channel"
_TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


def is_single_value(error: ValueError) -> bool:
    """Whether torch's batch norm, or instance norm, refused a single value."""
    return _TORCH_SAYS in str(error)


@contextmanager
def single_value_explained(images: int, smallest_batch: int) -> Iterator[None]:
    """Turns torch's errors for too few or too small images into a ConfigError.

    Args:
        images: number of images of a process in a (micro-)step.
        smallest_batch: the ``data.batch_size`` with which each has two images.

    Raises:
        ConfigError: says which key to change.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in _TOO_SMALL):
            raise
        raise ConfigError(
            f"the images are too small for this network, which downsamples them to nothing "
            f"({str(error).splitlines()[0]}). Set a larger data.crop or data.resize"
        ) from error
    except ValueError as error:
        if not is_single_value(error):
            raise
        repair = (
            f"Set data.batch_size={smallest_batch} or more (with optim.accumulate as it is)"
            if images < 2
            else "Set a larger data.crop"
        )
        raise ConfigError(
            f"a batch norm receives a single value per channel, which has no variance: {images} "
            "image(s) per process and (micro-)step are too few for this network, which pools whole "
            f"images or downsamples them to one pixel. {repair}, or choose an arch without "
            "image-level pooling (e.g. fpn, unet)"
        ) from error
