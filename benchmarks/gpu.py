"""What only a GPU can say of a training step: waits for the device, memory, precision, layout.

    python benchmarks/gpu.py                     needs a CUDA device; minutes
    python benchmarks/gpu.py --device cpu        the same code at a small size, to see that it runs

DeepLabV3 ResNet-101 teaches DeepLabV3 ResNet-18 (random weights: they change no time), 8 images of
512x1024. First the step of each method: its time over that of the teacher's forward pass and a lone
student's step, taken in turns (``ratio``), how often a step waits for the device
(``torch.cuda.set_sync_debug_mode``; the losses are read once per line of the log, not here), and
peak memory. Then kd's step with other settings of precision, memory format and compilation, in
turns, over the time with the defaults. A setting that fails, e.g. for lack of memory, is printed
with its reason, and the others go on.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from distillation_step import Steps, configuration, measured
from measuring import MIB, interleaved

from segkd.testing.waits import cuda_waits

METHODS: Mapping[str, Mapping[str, Any]] = {  # keys of an entry, by what is printed
    **{name: {name: {}} for name in ("kd", "cwd", "dist", "fitnets", "at", "mgd", "pairwise")},
    "cirkd": {"cirkd": {}},
    "cirkd 2x2": {"cirkd": {"pool": 2}},
    **{name: {name: {}} for name in ("holistic", "review_kd")},
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "fp32 teacher": {"teachers": {"main": {"precision": "fp32"}}},
    "bf16 run": {"runtime": {"precision": "bf16"}},
    "student contiguous": {"runtime": {"channels_last": False}},
    "teacher contiguous": {"teachers": {"main": {"channels_last": False}}},
    "compile losses": {"runtime": {"compile": "losses"}},
    "compile max": {"runtime": {"compile": "max"}},
}
Shape = tuple[int, tuple[int, int]]


def changed(tree: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of keys with others set."""
    result = dict(tree)
    for key, value in change.items():
        below = result.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, dict)
        result[key] = changed(below, value) if nested else value
    return result


class Step(Steps):
    """A step with further keys of its configuration."""

    def __init__(
        self,
        methods: Mapping[str, Any],
        shape: Shape,
        device: str,
        change: Mapping[str, Any] | None = None,
    ) -> None:
        self.change = change or {}
        super().__init__(dict(methods), *shape, device)

    def configuration(self, *arguments: Any) -> Any:
        config = configuration(*arguments, precision="fp32")
        return type(config).model_validate(changed(config.model_dump(), self.change))


def by_method(shape: Shape, device: str, repeats: int) -> None:
    print(f"{'method':12}{'ms':>9}{'ratio':>8}{'waits':>8}{'MiB':>9}")
    lone, on_cuda = Step({}, shape, device), device.startswith("cuda")
    for name, methods in METHODS.items():
        try:
            whole = Step(methods, shape, device)
            *_, seconds, ratio = measured(whole, lone, repeats, device)
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            found = len(cuda_waits(whole.train)) if on_cuda else None
            peak = torch.cuda.max_memory_allocated() / MIB if on_cuda else None
        except RuntimeError as error:  # out of memory: say so, and go on
            print(f"{name:12}{reason(error)}", flush=True)
            continue
        cells = ("" if value is None else f"{value:.0f}" for value in (found, peak))
        shown = f"{1e3 * seconds:9.1f}{ratio:8.2f}"
        print(f"{name:12}{shown}{next(cells):>8}{next(cells):>9}", flush=True)


def by_setting(shape: Shape, device: str, repeats: int) -> None:
    print(f"{'kd':20}{'ms':>9}{'ratio':>8}")
    steps: dict[str, Callable[[], None]] = {}
    for name, change in SETTINGS.items():
        try:
            step = Step({"kd": {}}, shape, device, change).step
            step()  # also compiles
            steps[name] = step
        except Exception as error:  # the compiler's have no common base
            print(f"{name:20}{reason(error)}", flush=True)
    seconds = interleaved(steps, repeats, device, warmup=2)
    for name, value in seconds.items():
        print(f"{name:20}{1e3 * value:9.1f}{value / seconds['defaults']:8.2f}", flush=True)


def reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    on_cuda = options.device.startswith("cuda")
    if on_cuda and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. --device cpu runs the same code, small")
    torch.backends.cudnn.benchmark = on_cuda
    shape = (8, (512, 1024)) if on_cuda else (2, (64, 128))
    name = torch.cuda.get_device_name() if on_cuda else "cpu"
    print(f"torch {torch.__version__}, {name}, {shape[0]}x{shape[1][0]}x{shape[1][1]}")
    by_method(shape, options.device, options.repeats)
    by_setting(shape, options.device, options.repeats)


if __name__ == "__main__":
    main()
