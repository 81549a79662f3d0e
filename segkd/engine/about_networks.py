"""Messages about the classes of networks and the members of ensembles, for the log."""

from collections.abc import Iterable, Mapping, Sequence

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.models.class_names import no_names
from segkd.models.frozen import BlackBox, Teacher
from segkd.models.network import Network
from segkd.modules.module_map import ModuleMap


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


def about_unknown(
    config: RunConfig, members: ModuleMap[Teacher | BlackBox], train_set: Dataset
) -> list[str]:
    """Messages about classes of the data that teachers of other classes cannot know.

    Args:
        config: the run.
        members: the teachers by name, without ensembles.
        train_set: the training images.
    """
    found = []
    for name, member in members.items():
        if not member.unknown:
            continue
        names = ", ".join(train_set.classes[number] for number in member.unknown)
        labels = config.task.weight > 0 and train_set.unlabelled < len(train_set)
        rest = (
            "the student learns them from labels alone"
            if labels
            else "nothing teaches them in this run, as it has no labels"
        )
        found.append(
            f"teachers.{name}: no class of it maps to {names}: methods on its logits exclude them "
            f"and leave out their pixels; {rest}"
        )
    return found
