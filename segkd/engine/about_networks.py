"""Messages about the classes of networks and the members of ensembles, for the log."""

from collections.abc import Iterable, Mapping, Sequence

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.models.class_names import no_names
from segkd.models.network import Network


def about_classes(
    config: RunConfig, networks: Mapping[str, Network], classes: Sequence[str]
) -> list[str]:
    """Messages about weights without class names, and about reordered classes.

    Args:
        config: the run.
        networks: ``student`` and ``teacher NAME``.
        classes: names of the data's classes.
    """
    found: list[str] = []
    for name, network in networks.items():
        key = "student" if name == "student" else f"teachers.{name.removeprefix('teacher ')}"
        own = config.student if key == "student" else config.teachers.get(key.partition(".")[2])
        if network.match and own is not None and not own.classes:
            found.append(no_names(key, network.match.file, classes))
        if network.classes_match:
            found.append(f"{key}: {network.classes_match}")
    return found


def licence_of(networks: Mapping[str, Network], teacher: str) -> dict[str, str]:
    """The licence of a teacher whose weights others published, as ``{"licence": …}``."""
    network = networks.get(f"teacher {teacher}")
    known = network.licence if network is not None else None
    return {} if known is None else {"licence": known}


def about_ensembles(config: RunConfig, used: Iterable[str], train_set: Dataset) -> list[str]:
    """Messages about ensembles that are weighted by labels, which no image has.

    Args:
        config: the run.
        used: names of the teachers whose outputs are used.
        train_set: the training images.
    """
    names = [name for name in used if name in config.teachers]
    by_loss = [name for name in names if config.teachers[name].combine == "by_loss"]
    if train_set.unlabelled < len(train_set):
        return []
    text = "`combine: by_loss` needs labels, and no image has any: it is the mean of its members"
    return [f"teachers.{name}: {text}" for name in by_loss]
