"""Accuracy of an int8 file by the choices of its calibration.

    python benchmarks/calibration.py         the shipped teacher of `streets`: 8 minutes of CPU
    python benchmarks/calibration.py runs/NAME --limit 30 --only minmax,percentile

The first row is the float file, the second what `segkd export --int8` writes: ranges from the mean
of the images' smallest values to the mean of their largest, weights per output channel, all layers.
Other rows change one thing: `minmax` takes the extremes of all images. Printed are the score on the
validation split, its difference to the float file in points, and the share of pixels of eight
calibration images that keep their class.

A CPU without int8 instructions (VNNI on x86) cuts off large sums of products of uint8 and int8, so
that scores there are lower than on other devices: the script says so.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import onnxruntime.quantization as ort
import torch
from onnxruntime.quantization import CalibrationMethod

import segkd
from segkd.config.load import stored_evaluation
from segkd.cpus import saturates_int8
from segkd.engine.setup import open_dataset
from segkd.export import to_int8, to_onnx
from segkd.models.build import network_from_file

SOURCE = "pretrained:streets_fpn_mobilenetv3_large"


@dataclass(frozen=True)
class Choice:
    """What differs from the default.

    Attributes:
        images: for calibration; methods with histograms keep all activations of them in memory.
        keys: arguments of onnxruntime's ``quantize_static``.
        options: its ``extra_options``.
        keep: the nodes that stay float, of the list of all.
        symmetric: activations without zero points.
    """

    images: int = 64
    keys: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    keep: Callable[[list[onnx.NodeProto]], list[onnx.NodeProto]] = lambda nodes: []
    symmetric: bool = False


def by(method: CalibrationMethod) -> tuple[tuple[str, Any], ...]:
    return (("calibrate_method", method),)


def convolutions(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [node for node in nodes if node.op_type.startswith("Conv")]


def gates(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Channel attention: poolings of whole maps, and what follows up to the product."""
    kept, values = [], set()
    for node in nodes:
        whole = node.op_type in ("GlobalAveragePool", "ReduceMean")
        if whole or values & set(node.input):
            kept.append(node)
            values |= set(node.output) if node.op_type != "Mul" else set()
    return kept


EXTREMES = (("CalibMovingAverage", False),)
CHOICES = {
    "mean of minmax, 64 images": Choice(),
    "mean of minmax, 8 images": Choice(images=8),
    "minmax, 64 images": Choice(options=EXTREMES),
    "minmax, 8 images": Choice(images=8, options=EXTREMES),
    "minmax, 256 images": Choice(images=256, options=EXTREMES),
    "percentile 99.999": Choice(
        16, by(CalibrationMethod.Percentile), (("CalibPercentile", 99.999),)
    ),
    "percentile 99.9": Choice(16, by(CalibrationMethod.Percentile), (("CalibPercentile", 99.9),)),
    "entropy": Choice(16, by(CalibrationMethod.Entropy)),
    "symmetric": Choice(symmetric=True),
    "symmetric, minmax": Choice(options=EXTREMES, symmetric=True),
    "weights per tensor": Choice(keys=(("per_channel", False),)),
    "weights per tensor, minmax": Choice(keys=(("per_channel", False),), options=EXTREMES),
    "first layer float": Choice(keep=lambda nodes: convolutions(nodes)[:1]),
    "last layer float": Choice(keep=lambda nodes: convolutions(nodes)[-1:]),
    "attention float": Choice(keep=gates),
}


def quantised(source: Path, path: Path, choice: Choice, images: list) -> float:
    """Writes the int8 file of a choice; returns the share of pixels that keep their class."""
    usual = ort.quantize_static

    def changed(model: str, *others: Any, **keys: Any) -> None:
        keys |= dict(choice.keys)
        keys["extra_options"] = {**keys["extra_options"], **dict(choice.options)}
        kept = [node.name for node in choice.keep(list(onnx.load(model).graph.node))]
        keys["nodes_to_exclude"] = [*keys["nodes_to_exclude"], *kept]
        usual(model, *others, **keys)

    with mock.patch.object(ort, "quantize_static", changed):
        return to_int8(source, path, images, symmetric=choice.symmetric).agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default=SOURCE, help="of a student or teacher")
    parser.add_argument("--limit", type=int, help="score on the first images only")
    parser.add_argument("--only", default="", help="rows that begin with one of these, by commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    network, payload = network_from_file(given.source)
    overrides = [f"eval.limit={given.limit}"] if given.limit else []
    data = open_dataset(stored_evaluation(payload, overrides), "train")
    if saturates_int8():
        print("this CPU cuts off large sums: scores of int8 files are lower here than elsewhere")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        to_onnx(network, file, size=network.info.crop)
        whole = segkd.evaluate(file, overrides=overrides).score
        print("| calibration | mIoU % | points | pixels kept % | file MB |")
        print("| :-- | --: | --: | --: | --: |")
        size = file.stat().st_size / 1e6
        print(f"| float | {100 * whole:.2f} | | | {size:.2f} |", flush=True)
        for name, choice in CHOICES.items():
            if not name.startswith(tuple(given.only.split(","))):
                continue
            count = min(choice.images, len(data))
            images = [data.read(number * len(data) // count).image for number in range(count)]
            path = Path(folder) / "int8.onnx"
            kept = quantised(file, path, choice, images)
            score = segkd.evaluate(path, overrides=overrides).score
            print(
                f"| {name} | {100 * score:.2f} | {100 * (score - whole):+.2f} | {100 * kept:.2f} | "
                f"{path.stat().st_size / 1e6:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
