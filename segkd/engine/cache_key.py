"""What stored outputs of a teacher depend on: its weights, the images, and the augmentation."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segkd import __version__
from segkd.config.schema import RunConfig
from segkd.config.teacher_cache import CacheConfig
from segkd.data.base import DataConfig, Dataset
from segkd.data.output_files import fingerprint
from segkd.data.unlabeled import Joined
from segkd.errors import DataError
from segkd.models.frozen import Teacher

_AUGMENTATION = {"crop", "scale", "pad", "flip", "color_jitter", "augment"}
_ELSEWHERE = {  # in the files themselves, or without influence on an image
    *("root", "train_split", "val_split", "batch_size", "workers", "cache", "on_error"),
    *("labels", "unlabeled"),
}


def cache_facts(
    config: RunConfig, cache: CacheConfig, name: str, teacher: Teacher, images: Dataset
) -> dict[str, Any]:
    """Plain data that differs if other outputs would be stored.

    Args:
        config: the run.
        cache: the teacher's ``cache:``.
        name: of the teacher.
        teacher: the frozen network.
        images: the training images.
    """
    pixels = config.data.model_dump(mode="json", exclude=_ELSEWHERE | _AUGMENTATION)
    facts: dict[str, Any] = {
        "segkd": __version__,
        "kind": cache.kind,
        "teacher": _of_teacher(config, name, teacher),
        "data": {"images": len(images), "reading": pixels, "files": _digest(_images(images))},
    }
    # Of the opened set: the doctor's config does not name it any more.
    rows = getattr(images.other if isinstance(images, Joined) else images, "rows", None)
    if rows:
        facts["data"]["rows"] = list(rows)
    if cache.kind == "views":
        facts["views"] = {"seed": cache.seed, **_of_augmentation(config.data)}
    return facts


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of a folder for these facts."""
    return f"{facts['kind']}-{_digest([json.dumps(facts, sort_keys=True)])[:16]}"


def differences(facts: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Names of the facts that differ, such as ``views.crop``."""
    one, other = dict(_flat(facts)), dict(_flat(others))
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def _of_teacher(config: RunConfig, name: str, teacher: Teacher) -> dict[str, Any]:
    own = config.teachers[name].model_dump(
        mode="json", exclude={"cache", "checkpoint", "weights", "normalize"}
    )
    if own["input_scale"] == 1:  # caches of versions without this key go on
        del own["input_scale"]
    network = teacher.network
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    mapped = None if teacher.class_map is None else _digest_of({"map": teacher.class_map})
    # Networks of other libraries reorder their outputs, not their weights, to the data's classes.
    turned = hasattr(network, "reorder_classes") and network.classes_match and network.info.named
    return {
        **({"classes": list(network.classes)} if turned else {}),
        "config": own,
        "layers": _digest([type(network).__qualname__, layers]),
        "weights": _digest_of(network.state_dict()),
        "normalize": [list(side) for side in network.normalization.statistics],
        "class_map": mapped,
        "precision": str(teacher.dtype or torch.float32).removeprefix("torch."),
    }


def _of_augmentation(data: DataConfig) -> dict[str, Any]:
    facts = data.model_dump(mode="json", include=_AUGMENTATION)
    if data.augment or data.color_jitter:
        facts["albumentations"] = version("albumentations")
    return facts


def _images(dataset: Dataset) -> Iterator[str]:
    """Lines that identify the images of a set: names, sizes and times of their files."""
    if isinstance(dataset, Joined):
        yield from (*_images(dataset.main), "unlabelled", *_images(dataset.other))
        return
    pairs = [dataset.files(index) for index in range(len(dataset))]
    paths = [pair[0].absolute() for pair in pairs if pair is not None]
    if len(paths) < len(pairs):
        yield from _samples(dataset)
    above = os.path.commonpath([path.parent for path in paths]) if paths else ""
    yield from (_line(path, above) for path in paths)


def _line(path: Path, above: str) -> str:
    name = path.relative_to(above).as_posix()
    try:
        facts = path.stat()
    except OSError:
        return f"{name} missing"
    return f"{name} {facts.st_size} {facts.st_mtime_ns}"


def _samples(dataset: Dataset) -> Iterator[str]:
    """Lines about a set without files: what it is, and three of its images."""
    yield f"{type(dataset).__qualname__} {getattr(dataset, 'name', '')} {dataset.split}"
    for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        try:
            yield f"{index} {fingerprint(dataset.read(index).image)}"
        except DataError:
            yield f"{index} unreadable"


def _digest(texts: Iterator[str] | list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _digest_of(tensors: Mapping[str, Any]) -> str:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {getattr(tensor, 'dtype', tensor)} ".encode())
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
