"""Checks of a run with stored predictions, before it begins."""

from collections.abc import Mapping

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.prediction_crops import Store
from segkd.data.reading import listed
from segkd.errors import ConfigError, DataError
from segkd.methods.base import Method


def check_stores(
    stores: Mapping[str, Store],
    train_set: Dataset,
    config: RunConfig,
    methods: Mapping[str, Method],
) -> None:
    """Checks that all training images have predictions, which move with them.

    Sets without files are not read for this: their images are checked when they are used.

    Args:
        stores: by teacher.
        train_set: the training images.
        config: the run.
        methods: by entry.

    Raises:
        ConfigError: something changes the images, but not their predictions.
        DataError: predictions are missing.
    """
    if not stores:
        return
    if train_set.task == "lanes":
        raise ConfigError(
            f"{_key(stores)}: stored predictions are for segmentation: a flip would exchange lanes"
        )
    rewriting = [name for name, method in methods.items() if method.needs.rewrites_batch]
    if rewriting:
        raise ConfigError(
            f"{_key(stores)}: methods.{rewriting[0]} makes new images in each step, which have no "
            "stored predictions. Use a teacher that can be queried, or remove that method"
        )
    for name, store in stores.items():
        if not store.skip:
            _require_all(name, store, train_set, config.data.on_error == "skip")


def _require_all(name: str, store: Store, train_set: Dataset, lenient: bool) -> None:
    if lenient:
        return
    pairs = (train_set.files(index) for index in range(len(train_set)))
    images = [pair[0] for pair in pairs if pair is not None]
    missing = [image for image in images if store.folder.find(image) is None]
    if missing:
        shown = listed([str(path) for path in missing], 3)
        raise DataError(
            f"{len(missing)} of {len(train_set)} training images have no prediction in "
            f"{store.folder.root}: {shown}. Predict them as well, or set "
            f"teachers.{name}.black_box.missing=skip to leave them out"
        )


def _key(stores: Mapping[str, Store]) -> str:
    return f"teachers.{next(iter(stores))}.black_box.predictions"
