"""Training sets with unlabelled images: log lines, checks, and shares of pseudo labels."""

from collections.abc import Iterator, Mapping

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.unlabeled import Joined, has_labels, in_both
from segkd.engine.objective import Objective
from segkd.engine.pseudo_labels import batch_for, takes_pseudo_labels
from segkd.engine.setup import Components
from segkd.engine.step_record import teacher_of
from segkd.errors import ConfigError
from segkd.methods.base import Method
from segkd.structures import Batch, Outputs

_FEW = 0.01  # of the pixels


def about_labels(
    config: RunConfig, parts: Components, confident: Mapping[str, float]
) -> Iterator[str]:
    """Log lines about unlabelled images; none if every image has a label.

    Args:
        confident: ``confident_shares`` of the first batch.
    """
    data = parts.train_set
    if not data.unlabelled:
        return
    yield counted(data, config.data.batch_size)
    for text in overlaps(data, parts.val_set):
        yield f"WARNING: {text}"
    methods = parts.objective.methods
    if not methods:
        yield "WARNING: no method uses the unlabelled images: `methods:` is empty"
    for name, method in methods.items():
        if method.needs.labels:
            yield from _about_method(name, method, confident.get(name))


def _about_method(name: str, method: Method, share: float | None) -> Iterator[str]:
    """Lines about a method that needs labels; ``share``: as of ``confident_shares``."""
    sees_all = method.needs.inner_labels
    if not takes_pseudo_labels(method):
        yield (
            f"methods.{name}: its own layers need labels, so they skip unlabelled images"
            if sees_all
            else f"methods.{name}: needs labels, so it skips unlabelled images"
        )
        return
    rest = "their other pixels are void"
    if sees_all:
        rest = "the student learns from all of their pixels"
    yield (
        f"methods.{name}: pseudo labels of unlabelled images are the teacher's classes with a "
        f"probability of {method.config.pseudo_labels:g} or more{_in_first_batch(share)}; {rest}"
    )
    if share is not None and share < _FEW and not sees_all:
        yield (
            f"WARNING: methods.{name} hardly uses the unlabelled images. Set "
            f"methods.{name}.pseudo_labels to a smaller number, or use a better teacher"
        )


def require_labels(objective: Objective, train_set: Dataset, batch: Batch) -> None:
    """Checks that losses and methods have the labels that they need.

    Args:
        objective: task losses and methods.
        train_set: the training images.
        batch: the first one, after a method has rewritten it.

    Raises:
        ConfigError: the data has no labels, or the method that rewrites batches drops them.
    """
    task = objective.task_weight > 0
    needy = {name: method for name, method in objective.methods.items() if method.needs.labels}
    if not (task or needy):
        return
    dropped = batch.labels is None
    if not dropped:
        bare = batch.labelled is not None and not bool(batch.labelled.any())
        if not bare or has_labels(train_set):
            return
    if task:
        why = "the training images have none"
        if has_labels(train_set):
            names = [name for name, m in objective.methods.items() if m.needs.rewrites_batch]
            why = f"methods.{', '.join(names)} removes them"
        raise ConfigError(
            f"the task loss needs labels, {why}. Set task.weight=0 to learn only from the teacher"
        )
    for name, method in needy.items():
        if dropped or not takes_pseudo_labels(method):
            able = method.needs.teacher and not dropped
            repair = f"set methods.{name}.pseudo_labels=0.9" if able else "remove this entry"
            raise ConfigError(
                f"methods.{name}: needs labels, the training images have none. Use a labelled "
                f"training split, or {repair}"
            )


def confident_shares(
    methods: Mapping[str, Method], batch: Batch, teachers: Mapping[str, Outputs]
) -> dict[str, float]:
    """By entry that takes pseudo labels, the share of labelled pixels in unlabelled images."""
    if batch.labelled is None or batch.labels is None:
        return {}
    bare = ~batch.labelled
    pixels = max(1, int(batch.not_padding[bare].sum()))
    found = {}
    for name, method in methods.items():
        if method.needs.labels and takes_pseudo_labels(method) and bare.any():
            own = batch_for(method, batch, teachers.get(teacher_of(method, teachers)))
            found[name] = int(own.valid[bare].sum()) / pixels
    return found


def counted(data: Dataset, batch_size: int) -> str:
    """Text: the numbers of labelled and unlabelled images, in all and per step."""
    labelled = len(data) - data.unlabelled
    text = f"{labelled} labelled and {data.unlabelled} unlabelled images"
    if not isinstance(data, Joined):
        return text
    other = data.per_step(batch_size)
    return (
        f"{text}; each step has {batch_size - other} images of the training split and {other} of "
        "the unlabelled set"
    )


def _in_first_batch(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:.0f} % of the pixels in the first batch)"


def overlaps(data: Dataset, val_set: Dataset) -> Iterator[str]:
    """Lines about files of the unlabelled set that are in another set as well."""
    others = {"the evaluation split": val_set}
    part = data
    if isinstance(data, Joined):
        part, others = data.other, {"the training split": data.main} | others
    for what, other in others.items():
        files = in_both(part, other)
        if files:
            yield (
                f"{len(files)} of {len(part)} unlabelled images are also in {what}, the first: "
                f"{files[0]}"
            )
