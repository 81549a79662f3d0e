"""The class map of an entry of ``teachers:``, and the names of the classes of a model of others."""

from collections.abc import Sequence

from segkd.config.schema import ClassMap, TeacherConfig
from segkd.errors import ConfigError, shortened
from segkd.models.class_map import ClassTable, class_table, source_classes
from segkd.models.frozen import BlackBox
from segkd.models.label_sets import as_set, is_set, label_set
from segkd.models.network import Network
from segkd.models.student_info import unnamed


def table_of_teacher(
    name: str,
    config: TeacherConfig | None,
    network: Network | BlackBox,
    classes: Sequence[str],
    dataset: str,
) -> ClassTable | None:
    """The configured class map; None without one.

    Args:
        name: of the teacher.
        config: of the teacher; None: an object of the caller.
        network: the teacher.
        classes: names of the data's classes.
        dataset: name of the dataset.

    Raises:
        ConfigError: see ``class_table``; names the teacher.
    """
    if config is None or config.class_map is None:
        return None
    # A model of another library has names of its own.
    given = network.classes if config.library and isinstance(network, Network) else ()
    try:
        return class_table(config.class_map, classes, dataset, given)
    except ConfigError as error:
        raise ConfigError(f"teachers.{name}.{error}") from error


def own_names(table: ClassMap, given: Sequence[str], model: str) -> Sequence[str]:
    """The names of a model's classes: its own, unless it has none or a list is configured.

    Args:
        table: of the config.
        given: the model's own names.
        model: its id or folder, for messages.

    Raises:
        ConfigError: ``from`` names other classes, or another number of them.
    """
    if not table.source:
        return given
    wanted = source_classes(table)
    repair = f"Remove `from` to use the model's own names: {shortened(list(given))}"
    if len(wanted) != len(given):
        raise ConfigError(
            f"classes.from: {len(wanted)} classes, but {model} has {len(given)}. {repair}"
        )
    if unnamed(given) or not (isinstance(table.source, str) and is_set(table.source)):
        return wanted
    if as_set(given, label_set(table.source)) is None:
        raise ConfigError(
            f"classes.from: the classes of {model} are not those of {table.source}. {repair}"
        )
    return given
