"""What a run says of its images with and without labels."""

from collections.abc import Iterator, Mapping

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.unlabeled import Joined, in_both
from segkd.engine.objective import teacher_of
from segkd.engine.pseudo_labels import batch_for, takes_pseudo_labels
from segkd.engine.setup import Components
from segkd.methods.base import Method
from segkd.structures import Batch, Outputs

_FEW = 0.01  # of the pixels


def about_labels(
    config: RunConfig, parts: Components, confident: Mapping[str, float]
) -> Iterator[str]:
    """Lines for the log; none where every image has a label.

    Args:
        confident: of ``confident_shares`` in the first batch.
    """
    data = parts.train_set
    if not data.unlabelled:
        return
    yield counted(data, config.data.batch_size)
    for text in overlaps(data, parts.val_set):
        yield f"WARNING: {text}"
    methods = parts.objective.methods
    if not methods:
        yield "WARNING: no method learns from the unlabelled images, as `methods:` is empty"
    for name, method in methods.items():
        if not method.needs.labels:
            continue
        if takes_pseudo_labels(method):
            yield (
                f"methods.{name}: labels of unlabelled images are the teacher's classes where "
                f"their probability is {method.config.pseudo_labels:g} or more"
                f"{_in_first_batch(confident.get(name))}; other pixels of these are void"
            )
            if confident.get(name, 1.0) < _FEW:
                yield (
                    f"WARNING: methods.{name} learns next to nothing from unlabelled images. Set "
                    f"methods.{name}.pseudo_labels to a smaller number, or use a better teacher"
                )
        else:
            yield f"methods.{name}: needs labels, so it leaves unlabelled images out"


def confident_shares(
    methods: Mapping[str, Method], batch: Batch, teachers: Mapping[str, Outputs]
) -> dict[str, float]:
    """By entry that takes pseudo-labels, their share in the pixels of unlabelled images."""
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
    """How many images of each kind there are, and how many of each a step has."""
    labelled = len(data) - data.unlabelled
    text = f"{labelled} labelled and {data.unlabelled} unlabelled images"
    if not isinstance(data, Joined):
        return text
    other = data.per_step(batch_size)
    return (
        f"{text}; of {batch_size} images a step {batch_size - other} are of the training split, "
        f"{other} of the unlabelled set"
    )


def _in_first_batch(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:.0f} % of the pixels in the first batch)"


def overlaps(data: Dataset, val_set: Dataset) -> Iterator[str]:
    """Says which files of the unlabelled set stand in another one."""
    others = {"the evaluation split": val_set}
    part = data
    if isinstance(data, Joined):
        part, others = data.other, {"the training split": data.main} | others
    for what, other in others.items():
        files = in_both(part, other)
        if files:
            yield (
                f"{len(files)} of {len(part)} unlabelled images are in {what} as well, the "
                f"first: {files[0]}"
            )
