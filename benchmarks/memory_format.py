"""Contiguous against channels-last networks: training steps and answers, in milliseconds.

    python benchmarks/memory_format.py [--networks fpn_lite0 enet ...] [--size 160 192] [--batch 8]
        [--repeats 5] [--device cpu]

A training step is forward and backward of the logits' mean square, without optimiser and loss. With
OMP_NUM_THREADS=1 it is CPU time, of which other processes take little. Weights are random.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measuring import clock_of, interleaved
from torch import Tensor

from segkd.commands.display import say
from segkd.config.schema import ModelConfig
from segkd.models.build import build_network
from segkd.models.network import Network


def _smp(arch: str, encoder: str, **options: object) -> dict[str, Any]:
    return {"arch": arch, "encoder": encoder, "weights": None, "options": options}


def _narrow(encoder: str, width: int) -> dict[str, Any]:
    """An FPN as the recipes of CamVid and street scenes have it."""
    halves = {"decoder_pyramid_channels": width, "decoder_segmentation_channels": width // 2}
    return _smp("fpn", encoder, **halves)


_NETWORKS: dict[str, dict[str, Any]] = {
    "fpn_lite0": _narrow("tu-tf_efficientnet_lite0", 64),
    "fpn_lite2": _narrow("tu-tf_efficientnet_lite2", 128),
    "fpn_mobilenetv3_small": _narrow("tu-mobilenetv3_small_050", 64),
    "fpn_mobilenetv3_large": _smp("fpn", "tu-mobilenetv3_large_100"),
    "fpn_resnet18": _smp("fpn", "resnet18"),
    "deeplabv3_resnet18": _smp("deeplabv3", "resnet18"),
    "deeplabv3_resnet50": _smp("deeplabv3", "resnet50"),
    "deeplabv3plus_mobilenet_v2": _smp("deeplabv3plus", "mobilenet_v2"),
    "pspnet_resnet18": _smp("pspnet", "resnet18"),
    "segformer_b0": _smp("segformer", "mit_b0"),
    "enet": {"arch": "enet"},
    "erfnet": {"arch": "erfnet"},
    "espnetv2": {"arch": "espnetv2"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(_NETWORKS), choices=list(_NETWORKS))
    parser.add_argument("--size", type=int, nargs=2, default=(160, 192), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    images = torch.randint(0, 256, (options.batch, 3, *options.size), dtype=torch.uint8)
    images = images.to(options.device)
    say(
        "| network | step, contiguous | channels-last | times as fast | answer, contiguous | "
        "channels-last | times as fast |\n| :-- | --: | --: | --: | --: | --: | --: |"
    )
    for name in options.networks:
        taken = measured(ModelConfig(**_NETWORKS[name]), images, options.repeats)
        row = [name]
        for work in ("step", "answer"):
            plain, last = taken[f"{work} contiguous"], taken[f"{work} channels-last"]
            row += [f"{1000 * plain:.0f}", f"{1000 * last:.0f}", f"{plain / last:.2f}"]
        say(f"| {' | '.join(row)} |")


def measured(config: ModelConfig, images: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of a training step and of an answer, in both formats."""
    functions: dict[str, Callable[[], object]] = {}
    for form, layout in (
        ("contiguous", torch.contiguous_format),
        ("channels-last", torch.channels_last),
    ):
        torch.manual_seed(0)
        network = build_network(config, 19).to(images.device).to(memory_format=layout)
        given = images.contiguous(memory_format=layout)
        functions[f"step {form}"] = lambda network=network, given=given: _step(network, given)
        functions[f"answer {form}"] = lambda network=network, given=given: _answer(network, given)
    device = images.device.type
    return interleaved(functions, repeats, device, clock=clock_of(device))


def _step(network: Network, images: Tensor) -> None:
    network.train().zero_grad()
    network(images).logits.square().mean().backward()


def _answer(network: Network, images: Tensor) -> None:
    with torch.inference_mode():
        network.eval()(images)


if __name__ == "__main__":
    main()
