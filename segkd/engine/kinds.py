"""What a run says of its images with and without labels."""

from collections.abc import Iterator

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.unlabeled import Joined, in_both
from segkd.engine.pseudo_labels import takes_pseudo_labels
from segkd.engine.setup import Parts


def about_labels(config: RunConfig, parts: Parts) -> Iterator[str]:
    """Lines for the log; none where every image has a label."""
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
                f"their probability is {method.config.pseudo_labels:g} or more; other pixels of "
                "these are void"
            )
        else:
            yield f"methods.{name}: needs labels, so it leaves unlabelled images out"


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
