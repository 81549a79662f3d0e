"""Images without any masks: splits, and label maps of the teacher to measure agreement with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from segkd.config.networks import TeacherConfig
from segkd.data.folder import Folder
from segkd.data.layout import find_layout
from segkd.data.loader import eval_loader
from segkd.data.unlabeled import WithoutLabels, natural
from segkd.data.writing import write_image
from segkd.errors import ConfigError
from segkd.inference.views import label_maps
from segkd.models.frozen import BlackBox
from segkd.models.network import Network
from segkd.models.teacher import build_teachers, open_networks
from segkd.pipeline.source import DataSource
from segkd.runtime import Runtime

TRAIN, VAL = "train", "val"
_MOST = 200  # images of the validation
_SHARE = 10  # every tenth
_FEWEST = 4  # images
Bar = Callable[[int, int], None]


def describe_images(source: DataSource, classes: Sequence[str], labels: Path) -> None:
    """Fills in the spec of a folder without masks; every tenth image is for validation.

    Args:
        source: of the folder; is changed.
        classes: names, those of the teacher.
        labels: folder of the label maps of the validation images.

    Raises:
        DataError: there is no image.
        ConfigError: there are too few.
    """
    found = source.found
    assert found is not None  # else there are masks
    root = found.root
    images = sorted(find_layout(root).images, key=lambda path: natural(path.relative_to(root)))
    if len(images) < _FEWEST:
        raise ConfigError(
            f"{root}: has {len(images)} images; {_FEWEST} are the least to learn from"
        )
    step = max(2, min(_SHARE, len(images) // 2), -(-len(images) // _MOST))
    chosen = images[step - 1 :: step]
    gone = set(chosen)
    names = {
        TRAIN: [path for path in images if path not in gone],
        VAL: chosen,
    }
    found.lists = {
        split: tuple(path.relative_to(root).as_posix() for path in paths)
        for split, paths in names.items()
    }
    found.counts = {split: len(paths) for split, paths in names.items()}
    found.how = f"there are no masks; every {step}th image is for validation"
    found.spec = {
        "classes": list(classes),
        "splits": {
            TRAIN: {"images": "."},
            VAL: {"images": ".", "masks": str(labels.resolve())},
        },
    }


def label_by_teacher(
    source: DataSource,
    data: dict[str, Any],
    teacher: TeacherConfig | None,
    network: Network | BlackBox | None,
    progress: Bar,
    device: str = "auto",
) -> None:
    """Writes the teacher's label maps of the validation images; existing ones are kept.

    Args:
        source: the images.
        data: keys of ``data:``, with sizes.
        teacher: as configured, or None for ``network``.
        network: of the caller.
        progress: called with (done, total).
        device: as ``runtime.device``.

    Raises:
        SegKDError: the teacher cannot be opened, or fails.
    """
    dataset = Folder(Folder.Config.model_validate({"name": "folder", **data}), VAL)
    targets = [mask for _, mask in dataset.pairs if mask is not None]
    if all(target.is_file() for target in targets):
        return
    name, classes = "teacher", dataset.classes
    configs = {} if teacher is None else {name: teacher}
    number = len(classes)
    opened = open_networks(configs, {name: network} if network else {}, number, classes)
    teachers = build_teachers(
        configs, {name: ["logits"]}, number, networks=opened, classes=classes, dataset="folder"
    )
    runtime = Runtime.start(device, "fp32")
    single = teachers.alone(name).to(runtime.device)
    batches = eval_loader(WithoutLabels(dataset), batch_size=1)
    with torch.no_grad():
        for number, (batch, _) in enumerate(batches):
            target = targets[number]
            if not target.is_file():
                image = dataset.read_unlabelled(number).image
                size = (image.shape[0], image.shape[1])
                found = label_maps(single, batch.images.to(runtime.device), size)[0]
                write_image(target, found.cpu().numpy())
            progress(number + 1, len(targets))
