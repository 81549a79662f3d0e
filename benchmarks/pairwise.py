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

import torch
import torch.nn.functional as F
from measuring import in_fresh_process, interleaved, peak_of
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


def step(form: str, student: Tensor, teacher: Tensor) -> Tensor:
    """One forward and backward; returns the value."""
    student.grad = None
    value = FORMS[form](student, teacher)
    value.backward()
    return value.detach()


def times(case: tuple[int, int, int], device: str, repeats: int) -> dict[str, float]:
    """Medians; forms are warmed up, and compared, on a quarter of the map."""
    quarter = inputs(case, (32, 64), device)
    values = [step(form, *quarter) for form in FORMS]
    torch.testing.assert_close(*values, rtol=1e-4, atol=0)
    maps = inputs(case, SIZE, device)
    steps = {form: lambda form=form: step(form, *maps) for form in FORMS}
    return interleaved(steps, repeats, device, warmup=0)


def peak(form: str, case: tuple[int, int, int], device: str) -> float:
    """MiB over the baseline that one step needs in this process."""
    step(form, *inputs((1, 2, 2), (8, 8), device))
    maps = inputs(case, SIZE, device)
    return peak_of(lambda: step(form, *maps), device)


def peak_in_fresh_process(form: str, case: tuple[int, int, int], device: str) -> float:
    return in_fresh_process("--device", device, "--peak", form, *map(str, case))


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
