"""Writes VOC's split ``train_aug`` from SBD: masks and the list of names."""

from segkd.data.check import Progress
from segkd.data.voc import AUGMENTED, VOC, augmented_names, read_sbd
from segkd.data.writing import write_image
from segkd.errors import DataError
from segkd.files import write_text


def make_train_aug(dataset: VOC, *, progress: Progress | None = None) -> int:
    """Writes masks of SBD where VOC has none, and then the list; existing masks are kept.

    Args:
        dataset: any split of VOC.
        progress: called after each image with (done, total).

    Returns:
        The number of images.

    Raises:
        DataError: the split has another list already, SBD is missing or has a broken file, or
            images of VOC are missing.
    """
    path = dataset.list_file(AUGMENTED)
    if path.stem != AUGMENTED:
        raise DataError(
            f"{path} is there already, and is what the split {AUGMENTED} reads: use it as it is, "
            "or move it away to make the list from SBD"
        )
    names, folder, root = augmented_names(dataset), dataset.sbd_folder() / "cls", dataset.root
    missing = [name for name in names if not (root / "JPEGImages" / f"{name}.jpg").is_file()]
    if missing:
        raise DataError(
            f"{root / 'JPEGImages'}: {len(missing)} of {len(names)} images are missing, e.g. "
            f"{missing[0]}.jpg. Unpack VOCtrainval_11-May-2012.tar"
        )
    for done, name in enumerate(names, start=1):
        target = root / "SegmentationClassAug" / f"{name}.png"
        own = root / "SegmentationClass" / f"{name}.png"
        if not own.is_file() and not target.is_file():
            write_image(target, read_sbd(folder / f"{name}.mat"))
        if progress is not None:
            progress(done, len(names))
    write_text(path, "\n".join(names) + "\n")
    return len(names)
