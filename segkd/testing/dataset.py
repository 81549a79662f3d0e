"""``check_dataset``: whether runs can train on a dataset and be scored on it."""

from collections.abc import Collection, Mapping
from typing import Any

from segkd import registry
from segkd.data.base import DataConfig, Dataset
from segkd.errors import ConfigError
from segkd.testing.check import Report, refuse_beside_instance, validated
from segkd.testing.dataset_checks import DATASET_CHECKS, DatasetSubject


def check_dataset(
    dataset: type[Dataset] | Dataset | str,
    config: DataConfig | Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    images: int = 8,
    only: str | Collection[str] = (),
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Reads some samples of a split in all the ways in which runs do.

    Unlike ``segkd data check``, which looks for faults in the files of a set, this looks for faults
    in the code that reads them: a few images are enough.

    Args:
        dataset: its class, its registered name, or an opened split of it.
        config: keys of ``data:`` for a class or a name, e.g. ``{"root": folder}``.
        split: of a class or a name, to open; default: train.
        images: how many to read at most, spread over the split.
        only: names of checks to run, see ``DATASET_CHECKS``; empty: all.
        skip: checks to leave out, each with the reason; a class may declare them as ``exempt``.

    Returns:
        Which checks passed, and which were skipped and why.

    Raises:
        CheckFailed: an AssertionError that names each check that does not hold, what was seen,
            and why it matters.
        ConfigError: an unknown name or key, or what an opened split does not need.
        DataError: the split cannot be opened.
    """
    opened = _opened(dataset, config, split)
    subject = DatasetSubject(opened, images)
    name = str(getattr(opened, "name", type(opened).__name__))
    exempt = getattr(type(opened), "exempt", None)
    return DATASET_CHECKS.run(subject, name, only=only, skip=skip, exempt=exempt)


def _opened(
    dataset: object, config: DataConfig | Mapping[str, Any] | None, split: str | None
) -> Dataset:
    if isinstance(dataset, Dataset):
        refuse_beside_instance("check_dataset", {"config": config, "split": split})
        return dataset
    if isinstance(dataset, str):
        dataset = registry.datasets.get(dataset)
    if not (isinstance(dataset, type) and issubclass(dataset, Dataset)):
        raise ConfigError(
            f"check_dataset: got {dataset!r}, expected a class derived from segkd.data.base."
            "Dataset, an opened split of one, or the name of a registered one"
        )
    if not isinstance(config, DataConfig):
        name = str(getattr(dataset, "name", ""))
        config = validated("check_dataset", dataset.Config, {"name": name, **(config or {})})
    return dataset(config, split or "train")
