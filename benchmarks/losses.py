"""Feature losses against the forms of public codes: seconds and peak memory of one step.

    python benchmarks/losses.py
    python benchmarks/losses.py --losses at,ofd --repeats 30

The forms of mmrazor, mdistiller, CIRKD and FGD are written here from their formulas. A step is
forward and backward of the loss alone, with a mask in segkd (padding), without one in the others,
which have none. Times are medians of interleaved repeats. Peak memory is over that of the inputs:
`max_memory_allocated` on CUDA, the peak resident size in a fresh process on CPU. Ratios are
segkd / other: below 1, segkd is better.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import in_fresh_process, interleaved, peak_of
from torch import Tensor, nn

from segkd.methods.at import at_loss
from segkd.methods.cwd import cwd_loss
from segkd.methods.defeat import defeat_loss
from segkd.methods.fgd import GlobalContext, fgd_loss
from segkd.methods.fitnets import fitnets_loss
from segkd.methods.mgd import mgd_loss
from segkd.methods.ofd import ofd_loss
from segkd.methods.sp import sp_loss

SHAPE = 2, 512, 64, 128
LOGITS = 2, 19, 64, 128
Maps = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Forms:
    """Both forms of each loss, with the parts that both need, on one device."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        batch, channels, height, width = shape
        self.mask = torch.ones(batch, height, width, dtype=torch.bool, device=device)
        self.mask[:, :, -8:] = False
        self.foreground = torch.rand(batch, height, width, device=device) < 0.2
        self.kept = torch.rand(batch, height, width, device=device) < 0.5
        self.margin = -torch.rand(channels, device=device)
        if channels > 64:  # the logits need none of it
            self.own_context = GlobalContext(channels).to(device)
            self.context = GlobalContext(channels).to(device)
            self.generator = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            ).to(device)

    def of(self, loss: str) -> dict[str, Loss]:
        return {"segkd": getattr(self, f"{loss}_ours"), "other": getattr(self, loss)}

    def at_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return at_loss(s, t, mask=self.mask)

    def at(self, s: Tensor, t: Tensor) -> Tensor:
        one, other = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (s, t))
        return (one - other).pow(2).mean()

    def ofd_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return ofd_loss(s, t, margin=self.margin, mask=self.mask)

    def ofd(self, s: Tensor, t: Tensor) -> Tensor:
        t = torch.max(t, self.margin.view(1, -1, 1, 1))
        loss = F.mse_loss(s, t, reduction="none")
        return (loss * ((s > t) | (t > 0)).float()).sum()

    def fitnets_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return fitnets_loss(s, t, mask=self.mask)

    def fitnets(self, s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(s, t)

    def defeat_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return defeat_loss(s, t, foreground=self.foreground, mask=self.mask)

    def defeat(self, s: Tensor, t: Tensor) -> Tensor:
        inside = self.foreground.unsqueeze(1).float()
        squares = (s - t).pow(2)
        near, far = squares * inside, squares * (1 - inside)
        return near.sum() / inside.sum() + far.sum() / (1 - inside).sum()

    def mgd_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return mgd_loss(s, t, mask=self.mask, keep=self.kept, generate=self.generator)

    def mgd(self, s: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(self.generator(s * self.kept.unsqueeze(1).float()), t, reduction="sum")

    def fgd_ours(self, s: Tensor, t: Tensor) -> Tensor:
        relate = self.own_context, self.context
        return fgd_loss(s, t, foreground=self.foreground, mask=self.mask, relate=relate)

    def fgd(self, s: Tensor, t: Tensor) -> Tensor:
        everywhere = torch.ones_like(self.mask)
        own_spatial, own_channel = _attentions(s)
        spatial, channel = _attentions(t)
        inside = self.foreground.unsqueeze(1).float()
        root = spatial.sqrt().unsqueeze(1) * channel.sqrt()[:, :, None, None]
        mine, theirs = s * root, t * root
        near = F.mse_loss(mine * inside, theirs * inside, reduction="sum")
        far = F.mse_loss(mine * (1 - inside), theirs * (1 - inside), reduction="sum")
        shift = (own_spatial - spatial).abs().sum() + (own_channel - channel).abs().sum()
        one, other = self.own_context(s, everywhere), self.context(t, everywhere)
        return near + far + shift + F.mse_loss(one, other, reduction="sum")

    def sp_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return sp_loss(s, t, mask=self.mask)

    def sp(self, s: Tensor, t: Tensor) -> Tensor:
        one, other = (F.normalize(x.flatten(1) @ x.flatten(1).T) for x in (s, t))
        return (one - other).pow(2).mean()

    def cwd_ours(self, s: Tensor, t: Tensor) -> Tensor:
        return cwd_loss(s, t, mask=self.mask, temperature=4.0)

    def cwd(self, s: Tensor, t: Tensor) -> Tensor:
        one, other = ((x.flatten(2) / 4.0).flatten(0, 1) for x in (s, t))
        distance = F.kl_div(one.log_softmax(1), other.softmax(1), reduction="sum")
        return distance * 16.0 / len(one)


LOSSES = {
    "at": SHAPE,
    "ofd": SHAPE,
    "fitnets": SHAPE,
    "defeat": SHAPE,
    "fgd": SHAPE,
    "sp": SHAPE,
    "cwd": LOGITS,
    "mgd": (2, 128, 64, 128),
}


def _attentions(maps: Tensor) -> Maps:
    size = maps.abs()
    spatial = size.mean(1).flatten(1).div(0.5).softmax(1) * maps[0, 0].numel()
    channel = size.mean((2, 3)).div(0.5).softmax(1) * maps.shape[1]
    return spatial.view(len(maps), *maps.shape[2:]), channel


def inputs(shape: tuple[int, ...], device: str) -> Maps:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, *shape, device=device)
    return student.requires_grad_(), teacher


def step(form: Loss, student: Tensor, teacher: Tensor) -> None:
    """One forward and backward."""
    student.grad = None
    form(student, teacher).backward()


def times(loss: str, device: str, repeats: int) -> dict[str, float]:
    maps = inputs(LOSSES[loss], device)
    forms = Forms(LOSSES[loss], device).of(loss)
    steps = {name: lambda form=form: step(form, *maps) for name, form in forms.items()}
    return interleaved(steps, repeats, device, warmup=2)


def peak(name: str, loss: str, device: str) -> float:
    """MiB over the inputs that one step needs in this process."""
    shape = LOSSES[loss]
    small = (1, shape[1], 2, 8)
    step(Forms(small, device).of(loss)[name], *inputs(small, device))  # libraries are loaded
    maps = inputs(shape, device)
    form = Forms(shape, device).of(loss)[name]
    return peak_of(lambda: step(form, *maps), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--losses", default=",".join(LOSSES), help="names, with commas")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(*arguments.peak, device))
        return
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32")
    print(
        f"{'loss':9}{'shape':14}{'ms':>8}{'other':>8}{'ratio':>7}{'MiB':>8}{'other':>8}{'ratio':>7}"
    )
    for loss in arguments.losses.split(","):
        seconds = times(loss, device, arguments.repeats)
        memory = {
            name: in_fresh_process("--device", device, "--peak", name, loss) for name in seconds
        }
        shape = "x".join(map(str, LOSSES[loss]))
        slower = seconds["segkd"] / seconds["other"]
        larger = memory["segkd"] / max(memory["other"], 1e-9)
        print(
            f"{loss:9}{shape:14}{1e3 * seconds['segkd']:8.1f}{1e3 * seconds['other']:8.1f}"
            f"{slower:7.2f}{memory['segkd']:8.1f}{memory['other']:8.1f}{larger:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
