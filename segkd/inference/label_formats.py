"""File names and values of the label maps of benchmarks."""

from dataclasses import dataclass, replace
from pathlib import Path

from segkd import registry
from segkd.data.cityscapes import CLASSES, LABEL_IDS
from segkd.errors import ConfigError, did_you_mean

VOID, UNKNOWN = -1, -2
ADE20K = "ade20k"


@dataclass(frozen=True)
class Format:
    """File names and values of label maps, of annotations and predictions alike.

    Attributes:
        name: of the dataset.
        classes: K names.
        values: pairs of a value in the files (an id, or a packed RGB colour) and its class, or
            ``VOID``: not counted in labels, no class in predictions.
        others: meaning of all other values: ``UNKNOWN``, which is refused, or ``VOID``.
        label_ending: ending of the names of annotations; empty: any image.
        image_ending: ending of the names of images, which predictions may keep.
        colors: whether the files hold RGB colours.
        categories: of each class; may be empty.
        class_ids: whether predictions hold class ids 0 to K - 1 whatever annotations hold.
        order: the class of each of these class ids; empty: the same.
        naming, meaning: how to name predictions and what to write into them, for messages.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[tuple[int, int], ...]
    others: int = UNKNOWN
    label_ending: str = ""
    image_ending: str = ""
    colors: bool = False
    categories: tuple[str, ...] = ()
    class_ids: bool = False
    order: tuple[int, ...] = ()
    naming: str = "A prediction is named like its label: same folders, same name"
    meaning: str = "Write class ids"

    @property
    def predicted(self) -> "Format":
        """The format of predictions."""
        if not self.class_ids:
            return self
        count = len(self.classes)
        values = tuple(enumerate(self.order or range(count)))
        return replace(
            self,
            values=values if count > 255 else (*values, (255, VOID)),
            others=UNKNOWN,
            colors=False,
            meaning=f"With --class-ids write 0 to {count - 1}",
        )


_CATEGORIES = (
    *("flat",) * 2,
    *("construction",) * 3,
    *("object",) * 3,
    *("nature",) * 2,
    "sky",
    *("human",) * 2,
    *("vehicle",) * 6,
)
_HIGHEST_ID = 33
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)

CITYSCAPES = Format(
    name="cityscapes",
    classes=CLASSES,
    values=(
        *((identity, VOID) for identity in (*range(_HIGHEST_ID + 1), 255)),
        *((int(identity), position) for position, identity in enumerate(LABEL_IDS)),
    ),
    label_ending="_gtFine_labelIds.png",
    categories=_CATEGORIES,
    naming="A prediction is named <city>_<sequence>_<frame>*.png",
    meaning="Write label ids (road 7 … bicycle 33), not train ids or colours",
)


def format_of(dataset: str, spec: Path | None = None) -> Format:
    """The format of a dataset.

    Args:
        dataset: cityscapes, camvid, voc, ade20k or folder.
        spec: of ``folder``: the YAML that declares classes and values.

    Raises:
        ConfigError: a dataset without files, or ``folder`` without its YAML.
    """
    makers = {"cityscapes": lambda: CITYSCAPES, "camvid": _camvid, "voc": _voc, ADE20K: _ade20k}
    if (dataset == "folder") != (spec is not None):
        raise ConfigError(
            "--spec FILE goes with --dataset folder, which requires it: the YAML that declares "
            "classes and their ids or colours, see datasets/README.md"
        )
    if spec is not None:
        return _folder(spec)
    if dataset not in makers:
        hint = did_you_mean(dataset, [*makers, "folder"])
        raise ConfigError(f"there are no files to score for dataset '{dataset}'.{hint}")
    return makers[dataset]()


def _camvid() -> Format:
    classes = registry.datasets.get("camvid").classes
    return _numbered("camvid", classes, 0, (11, 255), "Write class ids 0 to 10")


def _voc() -> Format:
    meaning = "Write class ids 0 to 20, as grey values or as palette indices"
    return _numbered("voc", _known("voc", _VOC), 0, (255,), meaning)


def _ade20k() -> Format:
    names = _known(ADE20K, tuple(f"class {number}" for number in range(1, 151)))
    return _numbered(ADE20K, names, 1, (0,), "Write ids 1 to 150, as the benchmark requires")


def _known(name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """The class names of a dataset, if it is registered."""
    return tuple(registry.datasets.get(name).classes) if name in registry.datasets else default


def _numbered(
    name: str, classes: tuple[str, ...], first: int, void: tuple[int, ...], meaning: str
) -> Format:
    """A format whose ids are consecutive from ``first``."""
    own = tuple((first + position, position) for position in range(len(classes)))
    return Format(name, classes, (*((value, VOID) for value in void), *own), meaning=meaning)


def _folder(spec: Path) -> Format:
    from segkd.data.folder import FolderConfig, load_spec

    found = load_spec(FolderConfig(name="folder", spec=spec))
    count = len(found.classes)
    colors = found.masks == "colors"
    return Format(
        name="folder",
        classes=tuple(entry.name for entry in found.classes),
        values=tuple((value, at if at < count else VOID) for value, at in found.values()),
        others=UNKNOWN if found.undeclared == "error" else VOID,
        label_ending=found.mask_ending,
        image_ending=found.image_ending,
        colors=colors,
        meaning=f"Write the {'colours' if colors else 'ids'} that {spec} declares",
    )
