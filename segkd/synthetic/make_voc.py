"""Writes VOC's split ``train_aug`` from SBD: masks and the list of names."""

from collections.abc import Callable
from pathlib import Path

from segkd.data.voc import AUGMENTED, VOC, augmented_names, read_sbd
from segkd.errors import DataError
from segkd.files import write_atomic, write_text

Progress = Callable[[int, int], None]  # (done, total)


def make_train_aug(dataset: VOC, *, progress: Progress | None = None) -> int:
    """Masks of SBD where VOC has none of its own, and then the list; made masks are kept.

    Args:
        dataset: any split of VOC.
        progress: called after each image with (done, total).

    Returns:
        The number of images.

    Raises:
        DataError: SBD is not there, a file of it is broken, or images of VOC are missing.
    """
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
            _write_mask(target, folder / f"{name}.mat")
        if progress is not None:
            progress(done, len(names))
    write_text(root / "ImageSets" / "Segmentation" / f"{AUGMENTED}.txt", "\n".join(names) + "\n")
    return len(names)


def _write_mask(target: Path, source: Path) -> None:
    import cv2

    _, data = cv2.imencode(".png", read_sbd(source))
    write_atomic(target, lambda file: file.write(data.tobytes()))
