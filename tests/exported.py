"""A trained toy student and its exported files, made once for all tests that read them."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from toy_run import toy_config

from segkd.engine.run import train_run
from segkd.export import to_int8, to_onnx
from segkd.models.build import network_from_file

SIZE = (32, 48)  # of the toy set's images
_FOLDER = tempfile.TemporaryDirectory(prefix="segkd-tests-")


@cache
def toy_student() -> Path:
    """The folder of a run of a few steps."""
    folder = Path(_FOLDER.name) / "run"
    train_run(toy_config(folder, steps=12))
    return folder


@cache
def toy_onnx(bake="normalize", resize=None) -> Path:
    """The exported toy student."""
    path = Path(_FOLDER.name) / f"{bake}_{resize}.onnx"
    to_onnx(network_from_file(toy_student())[0], path, size=SIZE, bake=bake, resize=resize)
    return path


@cache
def toy_int8() -> Path:
    """The quantised toy student."""
    path = Path(_FOLDER.name) / "int8.onnx"
    to_int8(toy_onnx(), path, pictures(6))
    return path


def pictures(count, size=SIZE, seed=0):
    """Random pictures (H, W, 3) uint8."""
    draw = torch.Generator().manual_seed(seed)
    shape = (count, *size, 3)
    return list(torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8).numpy())


def images(count, size=SIZE, seed=0):
    """Random images (B, 3, H, W) uint8."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=draw, dtype=torch.uint8)
