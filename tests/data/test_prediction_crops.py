"""Stored predictions move with their image, whatever the augmentation does."""

import itertools

import numpy as np
import pytest

from segkd.data.base import DataConfig
from segkd.data.prediction_crops import StoredCrops, cells
from segkd.data.predictions import Prediction, top_of
from segkd.data.transforms import TrainTransform

DRAW = np.random.default_rng(0)
SEEDS = range(6)
VOID = 255


class Turning(DataConfig):
    rotation: float = 12.0


CONFIGS = {
    "crop": DataConfig(name="x", crop=(24, 40)),
    "padded": DataConfig(name="x", crop=(70, 90), scale=(0.5, 1.0)),
    "resized": DataConfig(name="x", crop=(24, 40), resize=(50, 60), color_jitter=0.4),
    "turned": Turning(name="x", crop=(32, 40)),
    "distorted": DataConfig(
        name="x",
        crop=(32, 40),
        augment=[
            {"Affine": {"rotate": [-20, 20], "shear": [-5, 5], "p": 0.9}},
            {"GaussNoise": {"p": 0.5}},
            {"GridDropout": {"p": 0.5}},
            {"HorizontalFlip": {"p": 0.5}},
        ],
    ),
}


def answers(config):
    return StoredCrops({"t": None}, config)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_places_are_those_of_the_label(name):
    """A label taken at the places is the label that the augmentation returns, pixel by pixel."""
    config = CONFIGS[name]
    image = DRAW.integers(0, 256, (60, 80, 3), np.uint8)
    label = DRAW.integers(0, 200, (60, 80)).astype(np.uint8)
    for seed in SEEDS:
        _, expected, inside = TrainTransform(config, VOID)(image, label, seed)
        rows, columns = answers(config).places(image, seed)
        assert (np.isnan(rows) == ~inside).all() and (np.isnan(columns) == ~inside).all()
        assert inside.any()
        row, column = rows[inside].astype(int), columns[inside].astype(int)
        assert (label[row, column] == expected[inside]).all()


def test_places_of_very_large_images_are_those_of_blocks(monkeypatch):
    config = DataConfig(name="x", crop=(20, 30), scale=(1, 1), flip=0)
    image = np.zeros((60, 80, 3), np.uint8)
    exact = answers(config).places(image, 3)
    monkeypatch.setattr("segkd.data.prediction_crops._EXACT", 60 * 80 // 4)
    for coarse, fine in zip(answers(config).places(image, 3), exact, strict=True):
        assert 0 < np.abs(coarse - fine).max() <= 0.5


def slow_cells(prediction, places, image_size, stride, classes):
    """Pixel by pixel: the mean of what each known pixel of a cell names, and of the rest."""
    height, width = places[0].shape
    h, w = -(-height // stride), -(-width // stride)
    listed, tail = np.zeros((2, classes, h, w))
    known = np.zeros((h, w), bool)
    for i, j in itertools.product(range(h), range(w)):
        pixels, inside = 0, 0
        for y in range(i * stride, min((i + 1) * stride, height)):
            for x in range(j * stride, min((j + 1) * stride, width)):
                if np.isnan(places[0][y, x]):
                    continue
                inside += 1
                row = int(places[0][y, x] * prediction.size[0] / image_size[0])
                column = int(places[1][y, x] * prediction.size[1] / image_size[1])
                values = prediction.values[:, row, column]
                if values.sum() == 0:
                    continue
                pixels += 1
                ids = range(classes) if prediction.ids is None else prediction.ids[:, row, column]
                listed[ids, i, j] += values
                if prediction.ids is not None:
                    others = [k for k in range(classes) if k not in ids]
                    tail[others, i, j] += max(1 - values.sum(), 0) / len(others)
        listed[:, i, j] /= max(pixels, 1)
        tail[:, i, j] /= max(pixels, 1)
        known[i, j] = pixels > 0 and 2 * pixels >= inside
    return listed, tail, known


@pytest.mark.parametrize("kind", ["all", "top", "labels"])
@pytest.mark.parametrize("stride", [1, 4, 7])
def test_cells_are_means_over_their_pixels(kind, stride):
    config = CONFIGS["padded"]
    image = np.zeros((60, 80, 3), np.uint8)
    values = DRAW.random((5, 15, 20)) ** 4
    prediction = Prediction((values / values.sum(0)).astype(np.float32))
    if kind == "top":
        prediction = top_of(prediction.values, 2)
    if kind == "labels":
        ids = DRAW.integers(0, 5, (1, 60, 80))
        prediction = Prediction((DRAW.random((1, 60, 80)) > 0.4).astype(np.float32), ids)
    for seed in range(2):
        places = answers(config).places(image, seed)
        found = cells(prediction, places, (60, 80), stride, 5)
        listed, tail, known = slow_cells(prediction, places, (60, 80), stride, 5)
        np.testing.assert_allclose(found.listed, listed, atol=1e-5)
        np.testing.assert_allclose(found.tail, tail, atol=1e-5)
        assert (found.known == known).all()
        assert kind != "top" or tail.any()
