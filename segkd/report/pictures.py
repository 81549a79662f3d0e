"""Galleries of images: overlays of each network, and maps of disagreement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segkd.config.schema import EvaluationConfig
from segkd.data.base import Dataset
from segkd.data.loader import eval_loader
from segkd.data.palette import distinct
from segkd.data.picked import Picked
from segkd.inference.views import label_maps
from segkd.ops.mode import eval_mode
from segkd.report.look import Look
from segkd.report.networks import Actor
from segkd.runtime import Runtime
from segkd.viz import overlay as viz
from segkd.viz.overlay import blend

_WIDTH = 420  # pixels of a tile


@dataclass(frozen=True)
class Tile:
    """A small image with a title.

    Attributes:
        title: shown above it.
        jpeg: bytes of the file.
    """

    title: str
    jpeg: bytes


@dataclass(frozen=True)
class Shown:
    """One image with the predictions of all networks.

    Attributes:
        name: name of the image.
        caption: its name and scores.
        tiles: from left to right.
    """

    name: str
    caption: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Choice:
    """Positions within a ``Look``.

    Attributes:
        gains: images on which the student is best.
        losses: images on which it is worst.
    """

    gains: list[int]
    losses: list[int]


def choose(student: Look, reference: Look | None, most: int = 4) -> Choice:
    """Images with the largest gain and loss over a reference; without one the best and worst.

    Args:
        student: results of the student.
        reference: results of another network on the same images.
        most: largest length of each list. No image is in both; with a reference, scores differ.
    """
    scores = student.image_miou
    if reference is not None:
        scores = scores - reference.image_miou
    order = [int(i) for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])]
    if reference is None:
        half = min(most, len(order) // 2)
        return Choice(order[: len(order) - half][:most], order[::-1][:half])
    gains = [i for i in order if scores[i] > 0]
    losses = [i for i in reversed(order) if scores[i] < 0]
    return Choice(gains[:most], losses[:most])


def draw(
    chosen: Sequence[int],
    dataset: Dataset,
    actors: Sequence[Actor],
    looks: dict[str, Look],
    reference: Actor | None,
    runtime: Runtime,
    config: EvaluationConfig,
) -> list[Shown]:
    """The chosen images with label, overlays of each network, and the disagreement.

    Args:
        chosen: positions within the looks.
        dataset: the evaluation images.
        actors: networks; the last is the student.
        looks: by fingerprint of a network.
        reference: the network that the student is compared with, if any.
        runtime: device and precision.
        config: scales, flip and sliding window.
    """
    student = actors[-1]
    indices = looks[student.fingerprint].indices
    shown = []
    picked = Picked(dataset, [int(indices[place]) for place in chosen])
    for place, (batch, names) in zip(chosen, eval_loader(picked), strict=True):
        assert batch.labels is not None  # evaluation images have labels
        label = batch.labels[0].numpy()
        height, width = label.shape
        size = (height, width)
        maps = {}
        for actor in actors:
            with eval_mode(actor.network), runtime.autocast():
                images = batch.images.to(runtime.device)
                found = label_maps(actor.network, images, size, config.eval)
            maps[actor.fingerprint] = found[0].cpu().numpy()
        image = batch.images[0].permute(1, 2, 0).numpy()
        tiles = [
            Tile("image", _jpeg(_sized(image, size))),
            _overlay("label", image, label, dataset),
        ]
        tiles += [_overlay(a.name, image, maps[a.fingerprint], dataset) for a in actors]
        if reference is not None:
            pair = maps[student.fingerprint], maps[reference.fingerprint]
            drawn = disagreement(_sized(image, size), label, *pair, dataset.ignore_index)
            tiles.append(Tile("disagreement", _jpeg(_small(drawn))))
        scores = {a.name: looks[a.fingerprint].image_miou[place] for a in actors}
        listed = ", ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())
        shown.append(Shown(names[0], f"{names[0]}: mean IoU {listed}", tuple(tiles)))
    return shown


def disagreement(
    image: np.ndarray,
    label: np.ndarray,
    student: np.ndarray,
    reference: np.ndarray,
    ignore_index: int,
) -> np.ndarray:
    """Where only one of two networks is right, over the dimmed grey image.

    Args:
        image: (H, W, 3) uint8 RGB.
        label, student, reference: (H, W) class ids.
        ignore_index: label of void pixels.

    Returns:
        (H, W, 3) uint8 RGB: green where only the student is right, orange where only the reference
        is, light grey where both are wrong; void pixels are never coloured.
    """
    return viz.disagreement(image, label, student, reference, label != ignore_index)


def _overlay(title: str, image: np.ndarray, label: np.ndarray, dataset: Dataset) -> Tile:
    drawn = blend(image, label, distinct(dataset.palette))
    return Tile(title, _jpeg(_small(drawn)))


def _sized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    return image if image.shape[:2] == size else cv2.resize(image, size[::-1])


def _small(image: np.ndarray) -> np.ndarray:
    """Resized to the width of a tile; narrow images are enlarged by a whole factor."""
    import cv2

    height, width = image.shape[:2]
    if width >= _WIDTH:
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    factor = max(1, _WIDTH // width)
    return image.repeat(factor, 0).repeat(factor, 1)


def _jpeg(image: np.ndarray) -> bytes:
    import cv2

    image = _small(image)[..., ::-1]
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
