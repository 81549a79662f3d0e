"""CIRKD against the forms of public codes: seconds and peak memory.

    python benchmarks/cirkd.py                 CPU, or CUDA where there is a device
    python benchmarks/cirkd.py --size 64x128   the full size of 512x1024 crops at stride 8

Mini-batch term: forward and backward, features that require a gradient, against the double loop
over pairs of images that keeps a map of similarities per pair. Bank update: what a step stores
for 19 classes, against a loop over images and classes. Times are medians of interleaved repeats,
with one thread of a CPU in CPU time.
Peak memory is over the baseline with the inputs made, `max_memory_allocated` on CUDA and the peak
resident size in a fresh process on CPU. `maps` is the same in units of the student's features of
the batch; `scratch` is what the forward pass of segkd needs beyond its gradient of that size.
`all products` is the form for anchors that are no keys, which gives the same value and gradient:
segkd computes half of its products, as those of two images serve both orders.
"""

import argparse

import torch
import torch.nn.functional as F
from measuring import MIB, clock_of, in_fresh_process, interleaved, peak_of
from torch import Tensor

from segkd.methods.base import Context
from segkd.methods.cirkd import cirkd_loss
from segkd.methods.shared.teacher_bank import BankKeys, TeacherBank
from segkd.ops.similarity_kl import similarity_kl, unit_nodes
from segkd.ops.symmetric_kl import symmetric_kl
from segkd.structures import Batch

CLASSES, TEMPERATURE = 19, 0.1
QUEUES = {"pixel_queue": 2000, "region_queue": 200}  # their length changes no time


def double_loop(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = (F.normalize(x, dim=1).flatten(2).mT for x in (student, teacher))
    total = student.new_zeros(())
    for i in range(len(student)):
        for j in range(len(student)):
            rows_s, rows_t = (x[i] @ x[j].T / TEMPERATURE for x in (student, teacher))
            log_s, p_t = rows_s.log_softmax(1), rows_t.softmax(1)
            total = total + F.kl_div(log_s, p_t, reduction="batchmean")
    return total / len(student) ** 2


def all_products(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = unit_nodes(student), unit_nodes(teacher)
    anchors = student.flatten(0, 1), teacher.flatten(0, 1)
    total = similarity_kl(*anchors, student, teacher, temperature=TEMPERATURE)
    return total / (student[..., 0].numel() * len(student))


FORMS = {"segkd": cirkd_loss, "all products": all_products, "double loop": double_loop}


def features(shape: list[int], device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student = torch.randn(shape, device=device, requires_grad=True)
    return student, student.detach() + torch.randn(shape, device=device)


def loss_step(form: str, student: Tensor, teacher: Tensor) -> None:
    student.grad = None
    FORMS[form](student, teacher).backward()


def forward_only(student: Tensor, teacher: Tensor) -> None:
    keep = torch.ones_like(student[..., 0], dtype=torch.bool)
    symmetric_kl(student, teacher, keep, TEMPERATURE)


# -- bank update -----------------------------------------------------------------------------------


class LoopBank:
    """A loop over images and classes that stores the same: pixels of the class and their mean."""

    def __init__(self, channels: int, device: str) -> None:
        keys = BankKeys()
        self.pixels = torch.zeros(CLASSES, QUEUES["pixel_queue"], channels, device=device)
        self.regions = torch.zeros(CLASSES, QUEUES["region_queue"], channels, device=device)
        self.pixel_at, self.region_at = [0] * CLASSES, [0] * CLASSES
        self.count = keys.pixels_per_class

    def fill(self, maps: Tensor, labels: Tensor, *, regions: bool) -> None:
        for nodes, own in zip(F.normalize(maps, dim=1).flatten(2), labels.flatten(1), strict=True):
            for label in own.unique().tolist():
                if label >= CLASSES:
                    continue
                where = (own == label).nonzero()[:, 0]
                chosen = where[torch.randperm(len(where), device=where.device)[: self.count]]
                at = torch.arange(len(chosen)) + self.pixel_at[label]
                self.pixels[label, at % self.pixels.shape[1]] = nodes[:, chosen].T
                self.pixel_at[label] += len(chosen)
                if regions:
                    mean = F.normalize(nodes[:, where].mean(1), dim=0)
                    self.regions[label, self.region_at[label] % self.regions.shape[1]] = mean
                    self.region_at[label] += 1


def bank_updates(shape: list[int], regions: bool, repeats: int, device: str) -> dict[str, float]:
    images, channels, h, w = shape
    maps = features(shape, device)[1]
    # Patches of one class, as streets have them, and some void.
    cells = torch.randint(CLASSES + 1, (images, h // 4, w // 4))
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels = labels.masked_fill(labels == CLASSES, 255).to(device)
    pixels = torch.zeros(images, 3, 1, 1, dtype=torch.uint8, device=device)
    inside = torch.ones_like(labels, dtype=torch.bool)
    batch = Batch(pixels, labels, inside, torch.arange(images))
    generators = [torch.Generator().manual_seed(image) for image in range(images)]
    context = Context(batch, image_generators=generators)
    kinds = ("pixel", "region") if regions else ("pixel",)
    bank = TeacherBank(BankKeys(**QUEUES), kinds, CLASSES, channels).to(device)
    loop = LoopBank(channels, device)
    updates = {
        "segkd": lambda: bank.fill(maps, context),
        "class loop": lambda: loop.fill(maps, labels, regions=regions),
    }
    return interleaved(updates, repeats, device, clock=clock_of(device))


# -- memory ----------------------------------------------------------------------------------------


def peak(form: str, shape: list[int], device: str) -> float:
    """MiB over the baseline that one step needs in this process."""
    step = forward_only if form == "forward" else lambda *maps: loss_step(form, *maps)
    warm, inputs = features([1, 2, 2, 2], device), features(shape, device)
    if form == "forward":
        warm, inputs = (
            [x.detach().flatten(2).mT.contiguous().requires_grad_() for x in maps]
            for maps in (warm, inputs)
        )
    step(*warm)
    return peak_of(lambda: step(*inputs), device)


def peak_in_fresh_process(form: str, shape: list[int], device: str) -> float:
    return in_fresh_process("--device", device, "--peak", form, "x".join(map(str, shape)))


def sizes(text: str) -> list[int]:
    return [int(size) for size in text.split("x")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--bank", action="store_true", help="the bank update alone")
    parser.add_argument("--size", type=sizes, default=[32, 64], help="of the maps: HxW")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, size = arguments.device, arguments.size
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(arguments.peak[0], sizes(arguments.peak[1]), device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32")
    if not arguments.bank:
        show_terms(size, arguments.repeats, device)
    show_banks(2 * arguments.repeats, device)


def show_terms(size: list[int], repeats: int, device: str) -> None:
    h, w = size
    print(f"\nmini-batch term, {'shape':18}{'segkd ms':>10}", end="")
    print("".join(f"{form + ' ms':>17}{'ratio':>7}" for form in list(FORMS)[1:]))
    for channels in (128, 512):
        shape = [2, channels, h, w]
        maps = features(shape, device)
        steps = {form: lambda form=form, maps=maps: loss_step(form, *maps) for form in FORMS}
        seconds = interleaved(steps, repeats, device, clock=clock_of(device))
        ours, *others = (1e3 * seconds[form] for form in FORMS)
        print(f"{'':17}{'x'.join(map(str, shape)):18}{ours:10.1f}", end="")
        print("".join(f"{other:17.1f}{ours / other:7.2f}" for other in others), flush=True)
    print(f"\nmemory, {'shape':18}{'segkd MiB':>10}{'maps':>7}{'scratch':>9}", end="")
    print(f"{'double loop MiB':>17}{'maps':>7}")
    for images in (2, 4, 8):
        shape = [images, 128, h, w]
        unit = 4 * images * 128 * h * w / MIB
        ours, theirs, forward = (
            peak_in_fresh_process(form, shape, device)
            for form in ("segkd", "double loop", "forward")
        )
        print(f"{'':8}{'x'.join(map(str, shape)):18}{ours:10.1f}{ours / unit:7.1f}", end="")
        print(f"{forward - unit:9.1f}{theirs:17.1f}{theirs / unit:7.1f}", flush=True)


def show_banks(repeats: int, device: str) -> None:
    print(f"\nbank update, {'shape':18}{'segkd ms':>10}{'class loop ms':>16}{'ratio':>8}")
    for regions in (False, True):
        shape = [2, 512, 64, 128]
        seconds = bank_updates(shape, regions, repeats, device)
        ours, theirs = (1e3 * value for value in seconds.values())
        print(f"{'':13}{'x'.join(map(str, shape)):18}{ours:10.2f}{theirs:16.2f}", end="")
        print(f"{theirs / ours:8.1f}   {'pixels and regions' if regions else 'pixels'}")


if __name__ == "__main__":
    main()
