"""Which keys of `data`, `eval` and `runtime` an evaluation reads; others are refused."""

from collections.abc import Iterable, Sequence

from segkd import registry
from segkd.config.schema import LaneRules
from segkd.data.base import DataConfig, Dataset
from segkd.runtime import limit_threads
from segkd.yaml_tree import overrides_tree

_THREADS = ("runtime", "threads")
_OF_ANY = (
    "eval.batch_size",
    "eval.limit",
    "runtime.device",
    "runtime.precision",
    "runtime.threads",
)
_OF_LABEL_MAPS = ("scales", "flip", "sliding", "overlap", "boundary")
_OF_DATA = ("name", "root", "val_split", "resize", "workers", "on_error")


def evaluation_keys(data: DataConfig) -> tuple[str, ...]:
    """The keys that are read where a student is scored on the set of a block ``data:``."""
    own = [key for key in type(data).model_fields if key not in DataConfig.model_fields]
    keys = _below("data", (*_OF_DATA, *own))
    return (*keys, *_keys_of_task(registry.datasets.get(data.name)))


def keys_beside_dataset(kind: type[Dataset], data: Iterable[str] = ()) -> tuple[str, ...]:
    """The keys that are read where the dataset itself is given.

    Args:
        kind: its class.
        data: the keys of ``data`` that hold for it, too; a dataset has its own.
    """
    return (*_below("data", ("name", "workers", *data)), *_keys_of_task(kind))


def limit_given_threads(overrides: Sequence[str]) -> None:
    """Sets torch's CPU threads if overrides name ``runtime.threads``.

    The value in a student's file was chosen for the machine of its training, and is not taken.

    Args:
        overrides: ``key=value`` texts; a value that is no positive integer is left to their check.
    """
    above = overrides_tree(overrides)
    threads = above.at(_THREADS).plain() if above.has(_THREADS) else None
    if isinstance(threads, int) and threads > 0:
        limit_threads(threads)


def _keys_of_task(kind: type[Dataset]) -> tuple[str, ...]:
    if kind.task != "lanes":
        return (*_below("eval", _OF_LABEL_MAPS), *_OF_ANY)
    metric = getattr(kind, "metric", "")
    if metric == "bdd100k":  # its lanes are pixels, which no rule decodes
        return _OF_ANY
    if metric == "tusimple":  # accuracy, without a threshold of IoU
        return (*_below("eval.lanes", (k for k in LaneRules.model_fields if k != "iou")), *_OF_ANY)
    return ("eval.lanes", *_OF_ANY)


def _below(block: str, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{block}.{key}" for key in keys)
