"""Maps the probabilities of a teacher with other classes to those of the data.

Several classes of the teacher may map to one of the data: their probabilities are added. Classes
without a counterpart in the data are dropped, and the rest is normalised.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from torch import Tensor

from segkd import registry
from segkd.config.schema import ClassMap
from segkd.errors import ConfigError, did_you_mean

FLOOR = 1e-8  # of probabilities, before the logarithm


def source_classes(config: ClassMap) -> tuple[str, ...]:
    """The teacher's class names, in its order. Raises ConfigError for an unknown dataset."""
    if not isinstance(config.source, str):
        return tuple(config.source)
    classes = getattr(registry.datasets.get(config.source), "classes", None)
    if not classes:
        raise ConfigError(
            f"classes.from: the classes of dataset '{config.source}' are not fixed. Give the "
            "teacher's class names as a list"
        )
    return tuple(classes)


def class_matrix(config: ClassMap, classes: Sequence[str], dataset: str) -> Tensor:
    """(K, K') float32: 1 where the teacher's class k' counts as class k of the data.

    Args:
        config: names, and the table or the file with it.
        classes: names of the data's K classes.
        dataset: name of the dataset, to find a table shipped with segkd.

    Raises:
        ConfigError: no table, unknown class names in it, or no class in common.
    """
    given, table = source_classes(config), _table(config, config.to or dataset)
    matrix = torch.zeros(len(classes), len(given))
    for theirs, ours in table.items():
        for name, known, side in ((theirs, given, "teacher"), (ours, classes, "data")):
            if name is not None and name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"classes.map: the {side} has no class '{name}'.{hint}")
        if ours is not None:
            matrix[classes.index(ours), given.index(theirs)] = 1
    if not matrix.any():
        raise ConfigError("classes.map: no class of the teacher is mapped to one of the data")
    return matrix


def described(matrix: Tensor, given: Sequence[str], classes: Sequence[str]) -> str:
    """Text: the number of mapped classes, and the names of the others.

    Args:
        matrix: (K, K') of ``class_matrix``.
        given: the teacher's K' class names.
        classes: the data's K class names.
    """
    text = f"{int(matrix.any(0).sum())} of its {len(given)} classes are mapped"
    unused = [name for name, used in zip(given, matrix.any(0), strict=True) if not used]
    missing = [name for name, found in zip(classes, matrix.any(1), strict=True) if not found]
    text += f"; not in the data: {', '.join(unused)}" if unused else ""
    return text + (f"; not in the teacher: {', '.join(missing)}" if missing else "")


def mapped(logits: Tensor, matrix: Tensor) -> Tensor:
    """Log-probabilities (B, K, h, w) of the data's classes.

    Args:
        logits: (B, K', h, w) of the teacher.
        matrix: (K, K') of ``class_matrix``.
    """
    probabilities = logits.float().softmax(1)
    shares = torch.einsum("kc,bchw->bkhw", matrix.to(probabilities), probabilities)
    return safe_log(shares / shares.sum(1, keepdim=True).clamp_min(FLOOR))


def safe_log(probabilities: Tensor) -> Tensor:
    """The logarithm of probabilities of any shape, finite at 0."""
    return probabilities.clamp_min(FLOOR).log()


def _table(config: ClassMap, dataset: str) -> Mapping[str, str | None]:
    if isinstance(config.map, Mapping):
        return config.map
    if config.map is not None:
        return _read(Path(config.map))
    shipped = files("segkd") / "class_maps"
    name = f"{config.source}_{dataset}.yaml" if isinstance(config.source, str) else ""
    known = sorted(entry.name for entry in shipped.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise ConfigError(
            f"classes: segkd has no table from '{config.source}' to '{dataset}', only "
            f"{', '.join(known)}. Give one as `map: {{teacher's class: class of the data}}`, or a "
            "YAML file"
        )
    return yaml.safe_load((shipped / name).read_text(encoding="utf-8"))


def _read(path: Path) -> Mapping[str, str | None]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"classes.map: {path} cannot be read: {error}") from error
    if not isinstance(table, dict) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in table.items()
    ):
        raise ConfigError(f"classes.map: {path}: expected lines `teacher's class: class`")
    return table
