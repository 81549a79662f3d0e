"""KD and CWD against the forms that public codes use: seconds and peak memory of one step.

    python benchmarks/kd_losses.py            CPU, or CUDA where there is a device
    python benchmarks/kd_losses.py --repeats 50 --device cpu

A step is forward and backward of the loss alone. Times are medians of interleaved repeats. Peak
memory is over the baseline with both inputs made: `max_memory_allocated` on CUDA, the peak
resident size in a fresh process on CPU. Ratios are alternative / segkd: above 1, segkd is better.
"""

import argparse

import torch
import torch.nn.functional as F
from measuring import in_fresh_process, interleaved, peak_of
from torch import Tensor

from segkd.methods.cwd import cwd_loss
from segkd.methods.kd import kd_loss

SHAPES = {
    "kd": [(2, 19, 64, 128), (2, 19, 128, 256), (8, 19, 128, 256)],
    "cwd": [(2, 19, 64, 128), (2, 19, 128, 256), (2, 512, 64, 128)],
}
TEMPERATURE = 4.0


def rows(maps: Tensor, loss: str) -> Tensor:
    """(R, D): one softmax per row, over classes for KD and over positions for CWD."""
    maps = maps / TEMPERATURE
    return maps.permute(0, 2, 3, 1).flatten(0, 2) if loss == "kd" else maps.flatten(2).flatten(0, 1)


def softmax_then_log(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    student, teacher = rows(student, loss).softmax(1).log(), rows(teacher, loss).softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


def log_softmax_kl_div(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    student, teacher = rows(student, loss).log_softmax(1), rows(teacher, loss).softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


def ours(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    function = kd_loss if loss == "kd" else cwd_loss
    return function(student, teacher, temperature=TEMPERATURE)


FORMS = {
    "segkd": ours,
    "softmax().log()": softmax_then_log,
    "log_softmax + kl_div": log_softmax_kl_div,
}


def inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)


def step(form: str, loss: str, student: Tensor, teacher: Tensor) -> None:
    """One forward and backward."""
    student.grad = None
    FORMS[form](student, teacher, loss).backward()


def times(loss: str, shape: tuple[int, ...], device: str, repeats: int) -> dict[str, float]:
    maps = inputs(shape, device)
    steps = {form: lambda form=form: step(form, loss, *maps) for form in FORMS}
    return interleaved(steps, repeats, device, warmup=3)


def peak(form: str, loss: str, shape: tuple[int, ...], device: str) -> float:
    """MiB over the baseline that one step needs in this process."""
    step(form, loss, *inputs((1, 2, 2, 2), device))
    maps = inputs(shape, device)
    return peak_of(lambda: step(form, loss, *maps), device)


def peak_in_fresh_process(form: str, loss: str, shape: tuple[int, ...], device: str) -> float:
    return in_fresh_process("--device", device, "--peak", form, loss, ",".join(map(str, shape)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        form, loss, sizes = arguments.peak
        print(peak(form, loss, tuple(map(int, sizes.split(","))), device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32")
    print(f"{'loss':5}{'shape':18}{'form':22}{'ms':>9}{'ratio':>7}{'MiB':>9}{'ratio':>7}")
    for loss, shapes in SHAPES.items():
        for shape in shapes:
            seconds = times(loss, shape, device, arguments.repeats)
            memory = {form: peak_in_fresh_process(form, loss, shape, device) for form in FORMS}
            for form in FORMS:
                slower = seconds[form] / seconds["segkd"]
                larger = memory[form] / max(memory["segkd"], 1e-9)
                print(
                    f"{loss:5}{'x'.join(map(str, shape)):18}{form:22}{1e3 * seconds[form]:9.2f}"
                    f"{slower:7.2f}{memory[form]:9.1f}{larger:7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
