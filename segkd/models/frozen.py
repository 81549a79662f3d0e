"""What answers as a teacher: a frozen network, or a black box; and how answers are averaged."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkd.errors import SegKDError
from segkd.models.class_map import FLOOR, mapped, safe_log
from segkd.models.network import Network
from segkd.structures import Outputs


class Frozen(nn.Module):
    """In eval mode for good: ``train()`` does not reach it."""

    def train(self, mode: bool = True) -> "Frozen":
        return self


class Teacher(Frozen):
    """A frozen network that answers ``taps``, without gradient.

    Args:
        network: is put into eval mode, and its parameters no longer require gradients.
        taps: what to answer beside the logits.
        half: run under autocast to this type; None: in fp32.
        gradient: keep the autograd graph from the images on, for methods that differentiate the
            teacher's outputs by its features. Parameters stay frozen.
        class_map: (K, K') of ``class_map.class_matrix``: the network has K' classes, the outputs
            are log-probabilities of K.
    """

    def __init__(
        self,
        network: Network,
        taps: Collection[str] = (),
        *,
        half: torch.dtype | None = None,
        gradient: bool = False,
        class_map: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False
        self.taps, self.half, self.gradient = tuple(sorted(taps)), half, gradient
        self.num_classes, self.divisor = network.num_classes, network.divisor
        self.about_classes = ""  # what the map covers, for the log
        self.register_buffer("class_map", class_map, persistent=False)
        if class_map is not None:
            self.num_classes = len(class_map)

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images (B, 3, H, W) uint8."""
        if images.is_cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.gradient:
            images = images.float().requires_grad_()
        plain = self.half is None or images.is_meta  # on which only operations are counted
        autocast = nullcontext() if plain else torch.autocast(images.device.type, self.half)
        # Not inference mode: its tensors may take no part in a training graph.
        with torch.set_grad_enabled(self.gradient), autocast:
            outputs = self.network(images, self.taps)
            if self.class_map is None:
                return outputs
            logits = mapped(outputs.logits, self.class_map)
        return replace(outputs, logits=logits, kind="log_prob")

    def _apply(self, move: Callable, *args, **kwargs) -> "Teacher":
        super()._apply(move, *args, **kwargs)
        if any(parameter.is_cuda for parameter in self.network.parameters()):
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self


class BlackBox(Frozen):
    """A teacher of which only probabilities are known, e.g. a remote service.

    Args:
        answer: takes images (B, 3, H, W) uint8, returns probabilities (B, K, h, w).
        stride: H / h.
    """

    def __init__(self, answer: Callable[[Tensor], Tensor], num_classes: int, stride: int = 1):
        super().__init__()
        self.training = False
        self.answer, self.num_classes, self.stride, self.divisor = answer, num_classes, stride, 1

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs:
        """Outputs with ``kind="log_prob"``. Raises SegKDError if the answer is no distribution."""
        answer = self.answer(images).float()
        if answer.ndim != 4 or answer.shape[1] != self.num_classes or answer.min() < 0:
            raise SegKDError(
                f"a black-box teacher answered shape {tuple(answer.shape)}, smallest value "
                f"{float(answer.min()):.3g}; expected probabilities (B, {self.num_classes}, h, w)"
            )
        total = answer.sum(1, keepdim=True).clamp_min(FLOOR)
        return Outputs(safe_log(answer / total), kind="log_prob")


def average(parts: list[Outputs]) -> Outputs:
    """The mean of distributions, at the element-wise smallest (h, w), as log-probabilities.

    Existence, if all parts have it, is the logit of the mean probability.
    """
    size = [min(part.logits.shape[axis] for part in parts) for axis in (2, 3)]
    # The softmax of log-probabilities gives the probabilities back.
    shares = (part.logits.float().softmax(1) for part in parts)
    total = sum(F.adaptive_avg_pool2d(share, size) for share in shares)
    exist = None
    if all(part.exist is not None for part in parts):
        chances = torch.stack([part.exist.float().sigmoid() for part in parts])
        exist = chances.mean(0).logit(eps=1e-6)  # 1 - 1e-8 is 1 in float32
    return Outputs(safe_log(total / len(parts)), exist=exist, kind="log_prob")
