"""Cross-entropy of up-sampled logits in bands, against up-sampling them whole.

    python benchmarks/task_loss.py            CPU, or CUDA where there is a device

A step is forward and backward of the loss alone, from logits at stride 8. Times are medians of
interleaved repeats. Peak memory is over that of the inputs: `max_memory_allocated` on CUDA, the
peak resident size in a fresh process on CPU. Ratios are whole / bands: above 1, segkd is better.
"""

import argparse

import torch
import torch.nn.functional as F
from measuring import in_fresh_process, interleaved, peak_of
from torch import Tensor

from segkd.losses.upsampled import upsampled_cross_entropy

CASES = {  # logits, labels
    "cityscapes": ((2, 19, 64, 128), (512, 1024)),
    "ade20k": ((2, 150, 64, 64), (512, 512)),
    "voc 513": ((2, 21, 65, 65), (513, 513)),  # no whole factor
}


def bands(logits: Tensor, target: Tensor) -> Tensor:
    return upsampled_cross_entropy(logits, target, ignore_index=255) / target.numel()


def whole(logits: Tensor, target: Tensor) -> Tensor:
    large = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(large, target, ignore_index=255)


FORMS = {"bands": bands, "whole": whole}


def inputs(case: str, device: str, tiny: bool = False) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shape, size = ((1, 3, 2, 2), (16, 16)) if tiny else CASES[case]
    logits = torch.randn(shape, device=device, requires_grad=True)
    return logits, torch.randint(0, shape[1], (shape[0], *size), device=device)


def step(form: str, logits: Tensor, target: Tensor) -> None:
    """One forward and backward."""
    logits.grad = None
    FORMS[form](logits, target).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        form, case = arguments.peak
        step(form, *inputs(case, device, tiny=True))
        maps = inputs(case, device)
        print(peak_of(lambda: step(form, *maps), device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32")
    print(f"{'case':12}{'ms':>9}{'whole':>9}{'ratio':>7}{'MiB':>9}{'whole':>9}{'ratio':>7}")
    for case in CASES:
        maps = inputs(case, device)
        steps = {form: lambda form=form, maps=maps: step(form, *maps) for form in FORMS}
        seconds = interleaved(steps, arguments.repeats, device)
        memory = {f: in_fresh_process("--device", device, "--peak", f, case) for f in FORMS}
        ratio = seconds["whole"] / seconds["bands"]
        smaller = memory["whole"] / max(memory["bands"], 1e-9)
        print(
            f"{case:12}{1e3 * seconds['bands']:9.1f}{1e3 * seconds['whole']:9.1f}{ratio:7.2f}"
            f"{memory['bands']:9.1f}{memory['whole']:9.1f}{smaller:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
