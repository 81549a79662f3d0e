"""How long students take for one image on a CPU: PyTorch, ONNX Runtime and OpenVINO, also int8.

    python benchmarks/enet_latency.py [--arch enet erfnet deeplabv3] [--size 512 1024] [--threads 2]
        [--repeats 50] [--int8] [--stages 3] [--no-compile]

Without ``--arch`` it is ENet alone. All take bytes and answer the same logits, which is checked
first; they take turns, and medians are compared. ``--no-compile`` leaves torch.compile out, which
needs a C++ compiler; OpenVINO runs if it is installed. int8 files are calibrated on random images,
and weights are random, so that only their time has a meaning.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from segkd.commands.display import say
from segkd.config.schema import ModelConfig
from segkd.export import to_int8, to_onnx
from segkd.export.bundle import Bundle
from segkd.export.latency import latency_table, measure, without_openvino
from segkd.models.build import build_network

_CONFIGS: dict[str, dict[str, Any]] = {
    "enet": {},
    "erfnet": {},
    "deeplabv3": {"encoder": "resnet18", "weights": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["enet"], choices=list(_CONFIGS))
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--stages", type=int, default=3, help="4: ENet-SAD's")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    for arch in options.arch:
        report(arch, options)


def report(arch: str, options: argparse.Namespace) -> None:
    """Prints the table of one network."""
    torch.manual_seed(0)
    size = tuple(options.size)
    config = ModelConfig(arch=arch, **_CONFIGS[arch])
    if arch == "enet" and options.stages != 3:
        config = config.model_copy(update={"options": {"stages": options.stages}})
    network = build_network(config, options.classes).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{arch}.onnx"
        exported = to_onnx(network, path, size=size)
        files = {"ONNX fp32": path}
        if options.int8:
            files["ONNX int8"] = path.with_name(f"{arch}.int8.onnx")
            images = Bundle(network).example(4, size).permute(0, 2, 3, 1).numpy()
            to_int8(path, files["ONNX int8"], list(images))
        rows = measure(
            network,
            files,
            size=size,
            threads=options.threads,
            repeats=options.repeats,
            compiled=options.compile,
        )
        table = latency_table(
            rows, network, size=size, threads=options.threads, repeats=options.repeats
        )
    say(table)
    say(without_openvino() or "OpenVINO is installed")
    say(f"largest difference of logits between PyTorch and ONNX Runtime: {exported.difference:.1e}")


if __name__ == "__main__":
    main()
