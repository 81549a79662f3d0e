"""How long ENet takes for one image on a CPU: PyTorch eager, compiled, and ONNX Runtime.

    python benchmarks/enet_latency.py [--size 512 1024] [--threads 2] [--repeats 50] [--stages 3]

All three take bytes and answer the same logits, which is checked first; they take turns, and
medians are compared. ``--no-compile`` leaves torch.compile out, which needs a C++ compiler.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from segkd.commands.display import say
from segkd.config.schema import ModelConfig
from segkd.export import to_onnx
from segkd.export.latency import latency_table, measure
from segkd.models.build import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--stages", type=int, default=3, help="4: ENet-SAD's")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    torch.manual_seed(0)
    size = tuple(options.size)
    stages = {} if options.stages == 3 else {"stages": options.stages}
    config = ModelConfig(arch="enet", options=stages)
    network = build_network(config, options.classes).eval()
    with tempfile.TemporaryDirectory() as folder:
        exported = to_onnx(network, Path(folder) / "enet.onnx", size=size)
        rows = measure(
            network,
            {"ONNX Runtime": exported.path},
            size=size,
            threads=options.threads,
            repeats=options.repeats,
            compiled=options.compile,
        )
        table = latency_table(
            rows, network, size=size, threads=options.threads, repeats=options.repeats
        )
    say(table)
    say(f"largest difference of logits between PyTorch and ONNX Runtime: {exported.difference:.1e}")


if __name__ == "__main__":
    main()
