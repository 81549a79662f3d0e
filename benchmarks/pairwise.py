"""Pair-wise affinity against its direct form: seconds and peak memory of one step.

    python benchmarks/pairwise.py             CPU, or CUDA where there is a device
    python benchmarks/pairwise.py --repeats 5 --device cpu --threads 2

A step is forward and backward of the loss alone, at 64x128 positions (N 8192), all of them nodes.
The direct form is what public codes write: both maps of N x N cosines, their squared difference.
Times are medians of interleaved repeats. Peak memory is over the baseline with both inputs made:
`max_memory_allocated` on CUDA, the peak resident size in a fresh process on CPU. Ratios are
direct / segkd: above 1, segkd is better.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segkd.methods.pairwise import pairwise_loss

SIZE = (64, 128)
CASES = [(1, 128, 512), (2, 128, 512), (1, 512, 512), (2, 512, 512)]  # images, C_s, C_t


def direct(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))
    return (student.mT @ student - teacher.mT @ teacher).square().mean()


FORMS = {"segkd": pairwise_loss, "direct": direct}


def inputs(case: tuple[int, int, int], size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    images, c_s, c_t = case
    torch.manual_seed(0)
    student = torch.randn(images, c_s, *size, device=device, requires_grad=True)
    return student, torch.randn(images, c_t, *size, device=device)


def step(form: str, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Seconds of one forward and backward, and the value."""
    student.grad = None
    synchronize = torch.cuda.synchronize if student.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    value = FORMS[form](student, teacher)
    value.backward()
    synchronize()
    return time.perf_counter() - start, value.detach()


def times(case: tuple[int, int, int], device: str, repeats: int) -> dict[str, float]:
    """Medians; the first round is on a quarter of the map and only warms up."""
    taken = {form: [] for form in FORMS}
    for size in [(32, 64), *[SIZE] * repeats]:
        student, teacher = inputs(case, size, device)
        values = []
        for form in FORMS:
            seconds, value = step(form, student, teacher)
            taken[form].append(seconds)
            values.append(value)
        torch.testing.assert_close(*values, rtol=1e-4, atol=0)
    return {form: statistics.median(seconds[1:]) for form, seconds in taken.items()}


def peak(form: str, case: tuple[int, int, int], device: str) -> float:
    """MiB over the baseline that one step needs in this process."""
    step(form, *inputs((1, 2, 2), (8, 8), device))
    student, teacher = inputs(case, SIZE, device)
    if device == "cpu":
        before = peak_resident_size()
        step(form, student, teacher)
        return peak_resident_size() - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(form, student, teacher)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_resident_size() -> float:
    """MiB. Unlike getrusage's, Linux's VmHWM is not inherited from the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak_in_fresh_process(form: str, case: tuple[int, int, int], device: str) -> float:
    command = [sys.executable, __file__, "--device", device, "--peak", form, *map(str, case)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        form, *case = arguments.peak
        print(peak(form, tuple(map(int, case)), device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32")
    print(f"{'images':8}{'C_s/C_t':10}{'form':8}{'ms':>9}{'ratio':>7}{'MiB':>9}{'ratio':>7}")
    for case in CASES:
        seconds = times(case, device, arguments.repeats)
        memory = {form: peak_in_fresh_process(form, case, device) for form in FORMS}
        for form in FORMS:
            slower, larger = seconds[form] / seconds["segkd"], memory[form] / memory["segkd"]
            print(
                f"{case[0]:<8}{f'{case[1]}/{case[2]}':10}{form:8}{1e3 * seconds[form]:9.1f}"
                f"{slower:7.1f}{memory[form]:9.1f}{larger:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
