"""Label maps of an evaluation in bands of rows, against scores that are up-sampled and kept whole.

    python benchmarks/evaluation.py           CPU, or CUDA where there is a device

From logits at stride 8 of a 1024x2048 image with 19 classes to its label map: one view, one with
its mirror image, and sliding windows of 768 pixels. Times are medians of interleaved repeats. Peak
memory is over that of the logits: `max_memory_allocated` on CUDA, the peak resident size in a fresh
process on CPU. Ratios are whole / bands: above 1, segkd is better. Both make the same labels but
for rounding: those that differ are counted.
"""

import argparse

import torch
import torch.nn.functional as F
from measuring import in_fresh_process, interleaved, peak_of
from torch import Tensor

from segkd.inference.scores import Tiles, View, label_map
from segkd.inference.views import windows

CLASSES, SIZE, STRIDE, WINDOW = 19, (1024, 2048), 8, (768, 768)
CASES = ("one view", "with mirror image", "sliding windows")
Parts = list[tuple[slice, slice, Tensor]]


def inputs(case: str, device: str, size: tuple[int, int] = SIZE) -> list[Parts]:
    """Per view, the logits of its windows; smooth, as those of a network are."""
    torch.manual_seed(0)
    found = []
    for _ in range(2 if case == "with mirror image" else 1):
        sliding = case == "sliding windows" and size == SIZE
        spans = [*windows(size, WINDOW if sliding else size, 1 / 3)]
        found.append([(*span, _logits(span, device)) for span in spans])
    return found


def _logits(span: tuple[slice, slice], device: str) -> Tensor:
    sides = [(part.stop - part.start) // STRIDE for part in span]
    noise = torch.randn(1, CLASSES, sides[0] // 8, sides[1] // 8)
    return F.interpolate(noise, sides, mode="bicubic").to(device)


def bands(views: list[Parts], size: tuple[int, int]) -> Tensor:
    return label_map([_view(p, size, number == 1) for number, p in enumerate(views)], size)


def _view(parts: Parts, size: tuple[int, int], flipped: bool) -> View:
    if len(parts) == 1:
        return View(parts[0][2], tuple(parts[0][2].shape[2:]), flipped)
    tiles = tuple((rows, columns, View(z, tuple(z.shape[2:]))) for rows, columns, z in parts)
    return View(Tiles(tiles, size), size, flipped, probabilities=True)


def whole(views: list[Parts], size: tuple[int, int]) -> Tensor:
    if len(views) == 1 and len(views[0]) == 1:
        return _large(views[0][0][2], size).argmax(1).to(torch.uint8)
    total = 0
    for number, parts in enumerate(views):
        scores = torch.zeros(1, CLASSES, *size, device=parts[0][2].device)
        count = torch.zeros(size, device=scores.device)
        for rows, columns, logits in parts:
            side = rows.stop - rows.start, columns.stop - columns.start
            scores[:, :, rows, columns] += _large(logits, side).softmax(1)
            count[rows, columns] += 1
        scores /= count
        total = total + (scores.flip(3) if number == 1 else scores)
    return total.argmax(1).to(torch.uint8)


def _large(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


FORMS = {"bands": bands, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        form, case = arguments.peak
        FORMS[form](inputs(case, device, (64, 128)), (64, 128))
        logits = inputs(case, device)
        print(peak_of(lambda: FORMS[form](logits, SIZE), device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32")
    print(f"{'case':19}{'ms':>9}{'whole':>9}{'ratio':>7}{'MiB':>9}{'whole':>9}{'ratio':>7}")
    for case in CASES:
        logits = inputs(case, device)
        differ = int((bands(logits, SIZE) != whole(logits, SIZE)).sum())
        if differ > 1e-5 * SIZE[0] * SIZE[1]:  # equal scores but for rounding
            raise SystemExit(f"{case}: {differ} labels differ")
        forms = {name: lambda form=form, z=logits: form(z, SIZE) for name, form in FORMS.items()}
        seconds = interleaved(forms, arguments.repeats, device)
        memory = {f: in_fresh_process("--device", device, "--peak", f, case) for f in FORMS}
        print(
            f"{case:19}{1e3 * seconds['bands']:9.1f}{1e3 * seconds['whole']:9.1f}"
            f"{seconds['whole'] / seconds['bands']:7.2f}{memory['bands']:9.1f}"
            f"{memory['whole']:9.1f}{memory['whole'] / max(memory['bands'], 1e-9):7.1f}"
            f"   {differ} labels differ",
            flush=True,
        )


if __name__ == "__main__":
    main()
