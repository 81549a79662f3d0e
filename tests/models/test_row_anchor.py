import pytest
import torch

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, SegKDError
from segkd.models.build import build_network
from segkd.models.row_anchor import RowAnchor
from segkd.testing import check_network

SMALL = {"size": [64, 96], "rows": 6, "cells": 10, "hidden": 16}


def build(classes=5, **options):
    config = ModelConfig(arch="row_anchor", encoder="tu-test_resnet", options=SMALL | options)
    return build_network(config, classes)


def test_it_keeps_the_promises():
    check_network(RowAnchor, {"encoder": "tu-test_resnet", "options": SMALL})


def test_the_published_network_has_the_published_layers():
    """ResNet-18, 8 channels of 9x25, 2048 units, 201 classes of 18 rows and 4 lanes."""
    config = ModelConfig(arch="row_anchor", encoder="resnet18")
    with torch.device("meta"):
        network = RowAnchor(config, 5)
    shapes = [tuple(layer.weight.shape) for layer in network.classify if hasattr(layer, "weight")]
    assert shapes == [(2048, 1800), (201 * 18 * 4, 2048)]
    # y = 249, 269 … 589 of 590 are the rows of CULane's predictions
    y = [share * 590 - 0.5 for share in network.rows]
    assert y == pytest.approx(range(249, 590, 20), abs=0.06)


def test_logits_are_cells_against_none():
    network = build().eval()
    outputs = network(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert outputs.logits.shape == (2, 5, 6, 10) and len(outputs.rows) == 6
    assert outputs.logits[:, 0].eq(0).all()
    assert outputs.detach().rows == outputs.rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": [64, 90]}, "multiples of 32"),
        ({"size": 64}, "expected two numbers"),
        ({"size": [0, 96]}, "multiples of 32"),
        ({"rows": 1}, "options.rows: got 1, expected 2 or more"),
        ({"cells": True}, "options.cells: got True"),
        ({"span": [0.9, 0.4]}, "expected the shares of the height"),
        ({"span": ["a", 1]}, "options.span"),
        ({"depth": 3}, "has no such option"),
    ],
)
def test_wrong_options_are_one_message(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_one_class_has_no_lane():
    with pytest.raises(ConfigError, match="so no lane"):
        build(classes=1)


def test_an_encoder_of_one_size_is_refused():
    config = ModelConfig(arch="row_anchor", encoder="tu-swin_tiny_patch4_window7_224")
    with pytest.raises(ConfigError, match=r"takes images of 224x224 alone.*resnet18"):
        build_network(config, 5)


def test_images_of_another_size_are_refused_with_the_option():
    with pytest.raises(SegKDError, match=r"64x96 only, got 64x128.*options.size=\[H, W\]"):
        build()(torch.zeros(1, 3, 64, 128, dtype=torch.uint8))
