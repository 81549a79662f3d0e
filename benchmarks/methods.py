"""What each method costs: seconds and peak memory of its losses, against a student's own step.

    python benchmarks/methods.py                      all methods, one line each
    python benchmarks/methods.py --methods kd,cirkd
    python benchmarks/methods.py --write              also into segkd/method_costs.json

Every tap has 2 x 512 channels x 64x128 positions and logits have 19 classes, as for 512x1024
crops at stride 8. A step is forward and backward of all terms with default keys, the own steps of
a critic, and the update of banks; not what a method does beforehand, nor further images that it
lets the networks see. `ratio` is to forward and backward of DeepLabV3 ResNet-18 on 2x256x512
pixels, measured in turns with the method; above 0.25 a method is marked. Peak memory is over the
baseline with the inputs made: `max_memory_allocated` on CUDA, on CPU the peak resident size in a
fresh process. `train M` are parameters that the method trains beside the student. A peer is the
reference student, so that its own forward and backward are part of the method's step.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import in_fresh_process, interleaved, peak_of

import segkd
from segkd import registry
from segkd.config.schema import ModelConfig, TaskConfig
from segkd.engine.task_losses import TaskLosses
from segkd.files import write_text
from segkd.methods.base import BuildContext, Context, Method, TapInfo
from segkd.models.build import build_network
from segkd.models.network import Network
from segkd.runtime import generator
from segkd.structures import Batch, Outputs

IMAGES, CHANNELS, CLASSES, STRIDE = 2, 512, 19, 8
POSITIONS, SMALL = (64, 128), (8, 16)
REFERENCE_IMAGES = (2, 3, 256, 512)
LIMIT = 0.25
COSTS = Path(segkd.__path__[0]) / "method_costs.json"


class Probe:
    """One method on random outputs of both networks."""

    def __init__(self, name: str, size: tuple[int, int], device: str) -> None:
        torch.manual_seed(0)
        kind: type[Method] = registry.methods.get(name)
        self.method, self.device = kind(kind.Config()), torch.device(device)
        needs = self.method.needs
        infos = [
            {tap: TapInfo(CHANNELS, STRIDE) for tap in taps} | {"logits": TapInfo(CLASSES, STRIDE)}
            for taps in (needs.student, needs.teacher)
        ]
        spec = BuildContext(*infos, CLASSES, new_model=reference)
        self.method.build(spec)
        self.method.to(device)
        shape = (IMAGES, 3, *(length * STRIDE // 2 for length in size))  # of REFERENCE_IMAGES
        self.images = torch.randint(256, shape, dtype=torch.uint8, device=device)
        pixels = [STRIDE * length for length in size]
        labels = torch.randint(CLASSES, (IMAGES, *size)).repeat_interleave(STRIDE, 1)
        self.batch = Batch(
            torch.randint(256, (IMAGES, 3, *pixels), dtype=torch.uint8),
            labels.repeat_interleave(STRIDE, 2),
            torch.ones(IMAGES, *pixels, dtype=torch.bool),
            torch.arange(IMAGES),
            extra={"exist": torch.ones(IMAGES, CLASSES - 1)},
        ).to(self.device)
        self.task = TaskLosses(TaskConfig(), CLASSES)
        self.student = self._outputs(infos[0], size, IMAGES).detach()
        batch = self.method.prepare(self.batch, self._context(self.batch))
        self.student = self._outputs(infos[0], size, len(batch)).detach()
        self.teacher = self._outputs(infos[1], size, len(batch)) if needs.teacher else None
        self.fill_banks(self.student, batch)

    def step(self) -> None:
        method, student = self.method, self.student
        for tensor in student.tensors():
            tensor.requires_grad_().grad = None
        batch = method.prepare(self.batch, self._context(self.batch))
        context = self._context(batch)
        context.peers = {name: peer(self.images) for name, peer in method.peers().items()}
        terms = method.loss(student, self.teacher, batch, context)
        own = [outputs.logits.square().mean() for outputs in context.peers.values()]
        sum([term.value for term in terms.values()] + own).backward()
        seen = student.detach()
        critic = method.preparation_steps(1) is None
        for _ in range(method.inner_steps if critic else 0):
            terms = method.inner_loss(seen, self.teacher, batch, self._context(batch))
            sum(term.value for term in terms.values()).backward()
        self.fill_banks(seen, batch)

    @torch.no_grad()
    def fill_banks(self, student: Outputs, batch: Batch) -> None:
        self.method.after_step(student, self.teacher, batch, self._context(batch))

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.method.parameters())

    def _outputs(self, infos: dict[str, TapInfo], size: tuple[int, int], images: int) -> Outputs:
        values = {
            tap: torch.randn(images, info.channels, *size, device=self.device)
            for tap, info in infos.items()
        }
        return Outputs(values.pop("logits"), values)

    def _context(self, batch: Batch) -> Context:
        indices = batch.index.tolist()
        return Context(
            batch=batch,
            step=1,
            generator=generator("benchmark"),
            image_generators=[generator("benchmark", index) for index in indices],
            task_loss=self.task,
            student_forward=lambda images: self.student.detach(),
        )


def reference(config: object = None, key: str = "") -> Network:
    """The reference student, in training mode."""
    return build_network(ModelConfig(arch="deeplabv3", encoder="resnet18"), CLASSES).train()


def reference_step(device: str) -> Callable[[], None]:
    """Forward and backward of the reference student."""
    torch.manual_seed(0)
    student = reference().to(device)
    images = torch.randint(256, REFERENCE_IMAGES, dtype=torch.uint8, device=device)

    def step() -> None:
        student.zero_grad()
        student(images).logits.square().mean().backward()

    return step


def measured(name: str, student: Callable[[], None], repeats: int, device: str) -> dict:
    probe = Probe(name, POSITIONS, device)
    steps = {"method": probe.step, "reference": student}
    seconds = interleaved(steps, repeats, device)
    parameters = probe.parameters
    del probe, steps
    return {
        "seconds": round(seconds["method"], 4),
        "ratio": round(seconds["method"] / seconds["reference"], 3),
        "peak_mib": round(in_fresh_process("--device", device, "--peak", name)),
        "parameters": parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", default="", help="names, with commas; default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--write", action="store_true", help=f"into {COSTS.name}")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        Probe(arguments.peak, SMALL, arguments.device).step()  # loads what a first step loads
        print(peak_of(Probe(arguments.peak, POSITIONS, arguments.device).step, arguments.device))
        return
    names = arguments.methods.split(",") if arguments.methods else registry.methods.names()
    student = reference_step(arguments.device)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} CPU threads")
    print(f"{'method':12}{'ms':>9}{'ratio':>8}{'peak MiB':>10}{'train M':>9}")
    for name in names:
        row = measured(name, student, arguments.repeats, arguments.device)
        mark = "  above a quarter of a student's step" if row["ratio"] > LIMIT else ""
        print(
            f"{name:12}{1e3 * row['seconds']:9.1f}{row['ratio']:8.3f}{row['peak_mib']:10}"
            f"{row['parameters'] / 1e6:9.2f}{mark}",
            flush=True,
        )
        if arguments.write:
            known = json.loads(COSTS.read_text()) if COSTS.is_file() else {}
            costs = dict(sorted({**known, name: row}.items()))
            write_text(COSTS, json.dumps(costs, indent=2) + "\n")


if __name__ == "__main__":
    main()
