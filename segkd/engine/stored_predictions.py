"""Checks of a run with stored predictions, before it begins."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.data.prediction_crops import Store, image_path
from segkd.data.reading import listed
from segkd.errors import ConfigError, DataError
from segkd.methods.base import Method

_READ = 32  # images of sets without files, whose names are known after reading them


def check_stores(
    stores: Mapping[str, Store],
    train_set: Dataset,
    config: RunConfig,
    methods: Mapping[str, Method],
) -> list[str]:
    """Checks that training images have predictions, which move with them.

    Args:
        stores: by teacher.
        train_set: the training images.
        config: the run.
        methods: by entry.

    Returns:
        A line per store: how many training images have a prediction; a warning if few.

    Raises:
        ConfigError: something changes the images, but not their predictions.
        DataError: predictions are missing, or all of them although ``missing: skip`` allows it.
    """
    if not stores:
        return []
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
    images = _images(train_set)
    of = f"{len(images)} training images"
    if len(images) < len(train_set):
        of = f"{len(images)} of the {len(train_set)} training images, which were looked at,"
    skips = config.data.on_error == "skip"
    return [_coverage(name, store, images, of, skips) for name, store in stores.items()]


def _coverage(name: str, store: Store, images: list[Path], of: str, skips: bool) -> str:
    """The line about a store; ``of``: the images as text, ``skips``: unusable ones are skipped."""
    files = {image: store.folder.find(image) for image in images}
    missing = [image for image in images if files[image] is None]
    key, root = f"teachers.{name}.black_box", store.folder.root
    _require_own(f"{key}.predictions", files)
    if images and len(missing) == len(images):
        raise DataError(
            f"{key}.predictions: none of {of} has a prediction in {root}, which holds "
            f"{store.folder.count}, e.g. {store.folder.example}; the first image is {images[0]}. "
            "Predictions have the names of their images: predict these images, e.g. with segkd "
            "query, or name the folder of their predictions"
        )
    if missing and not (store.skip or skips):
        raise DataError(
            f"{len(missing)} of {of} have no prediction in {root}: "
            f"{listed([str(path) for path in missing], 3)}. Predict them as well, or set "
            f"{key}.missing=skip to leave them out"
        )
    text = f"teacher {name}: predictions of {len(images) - len(missing)} of {of}"
    if not missing:
        return text
    how = "are left out" if store.skip else "are skipped, see data.on_error"
    sign = "WARNING: " if 2 * len(missing) > len(images) else ""
    return f"{sign}{text}; {len(missing)} {how}, e.g. {missing[0]}"


def _require_own(key: str, files: Mapping[Path, Path | None]) -> None:
    """Raises DataError if one prediction would be taken for two images of the same name."""
    taken: dict[Path, Path] = {}
    for image, file in files.items():
        other = image if file is None else taken.setdefault(file, image)
        if os.path.realpath(other) != os.path.realpath(image):
            raise DataError(
                f"{key}: {file} would be the prediction of {other} and of {image}, which have the "
                "same name. Predict the folder that has both below it: predictions then have the "
                "folders of their images"
            )


def _images(train_set: Dataset) -> list[Path]:
    """The training images that can be looked at: all, but only some of those without files."""
    every = range(len(train_set))
    found = {index: pair[0] for index in every if (pair := train_set.files(index)) is not None}
    others = [index for index in every if index not in found]
    spread = np.linspace(0, len(others) - 1, min(_READ, len(others))).round()
    for index in (others[int(position)] for position in spread):
        found[index] = image_path(train_set, index, train_set.read_unlabelled(index))
    return [found[index] for index in sorted(found)]


def _key(stores: Mapping[str, Store]) -> str:
    return f"teachers.{next(iter(stores))}.black_box.predictions"
