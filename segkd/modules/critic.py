"""A critic of whole class maps, after SAGAN, and its Wasserstein losses.

Zhang et al.: Self-Attention Generative Adversarial Networks, ICML 2019, arXiv 1805.08318.
Gulrajani et al.: Improved Training of Wasserstein GANs, NIPS 2017, arXiv 1704.00028.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from segkd.ops.masked import image_mean, position_mask
from segkd.ops.mode import eval_mode
from segkd.ops.queued import queued
from segkd.ops.resize import match_sizes

_SMALLEST = 16  # four strided convolutions leave one cell of it
_EPS = 1e-12  # inside the root of the gradient's norm: its derivative at 0 is 0, not NaN


class SelfAttention(nn.Module):
    """x + γ · attention(x) over all positions of an image; γ is initialised to 0.

    Queries and keys have C/8 channels. Keys have no bias: it would cancel in the softmax.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, kernel_size=1)
        self.key = nn.Conv2d(channels, inner, kernel_size=1, bias=False)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C, h, w)."""
        query, key, value = (
            layer(features).flatten(2) for layer in (self.query, self.key, self.value)
        )
        attention = (query.transpose(1, 2) @ key).softmax(dim=2)  # (B, N, N), rows sum to 1
        mixed = value @ attention.transpose(1, 2)
        return features + self.gamma * mixed.view_as(features)


class Critic(nn.Module):
    """One score per image: how similar a map of class probabilities is to a teacher's.

    Four 4x4 convolutions of stride 2 with LeakyReLU 0.1, self-attention after the last two,
    adaptive average pooling to 4x4, and a 4x4 convolution to the score. Nothing is normalised
    over the batch, so the score of an image depends on that image only. Maps below 16x16 are
    padded with zeros, the value of invalid positions. Weights and sums are never in half
    precision, even under autocast: a gradient penalty needs double backward.

    Args:
        num_classes: K.
        condition_on_image: the image is an input as well.
        width: channels of the first convolution; the next ones have 2, 4 and 8 times as many.
        spectral_norm: divide the weights of the four convolutions by their largest singular
            value. The power iteration runs in training mode only and depends only on the weights,
            so it is equal on all processes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        condition_on_image: bool = True,
        width: int = 64,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = num_classes + 3 * condition_on_image
        for number in range(4):
            channels = width * 2**number
            layer: nn.Module = nn.Conv2d(before, channels, kernel_size=4, stride=2, padding=1)
            if spectral_norm:
                layer = parametrizations.spectral_norm(layer)
            layers += [layer, nn.LeakyReLU(0.1)]
            if number >= 2:
                layers.append(SelfAttention(channels))
            before = channels
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        # No bias: it would cancel in a difference of scores.
        self.score = nn.Conv2d(before, 1, kernel_size=4, bias=False)

    def forward(self, maps: Tensor, image: Tensor | None = None) -> Tensor:
        """Scores images.

        Args:
            maps: (B, K, h, w), 0 at invalid positions.
            image: (B, 3, h, w) if conditioned on images, else None.

        Returns:
            (B,).
        """
        dtype = self.score.weight.dtype
        inputs = maps.to(dtype) if image is None else torch.cat([maps, image], dim=1).to(dtype)
        missing = [max(0, _SMALLEST - size) for size in inputs.shape[-2:]]
        if any(missing):
            inputs = F.pad(inputs, (0, missing[1], 0, missing[0]))
        with torch.autocast(inputs.device.type, enabled=False):
            return self.score(self.body(inputs)).flatten()


def frozen(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """``module(*inputs)`` with constant parameters, in evaluation mode.

    Gradients reach only the inputs, of any shape, and no buffer changes.
    """
    constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
    with eval_mode(module):
        return functional_call(module, constants, inputs)


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """(‖∂score/∂x‖ − 1)² per image at x = mix · real + (1 − mix) · fake (WGAN-GP, equation 3).

    Args:
        score: (B, K, h, w) -> (B,); the score of an image depends on that image only.
        real, fake: (B, K, h, w); detached.
        mix: (B,) in [0, 1].

    Returns:
        (B,), differentiable in the parameters of ``score``.
    """
    real, fake = real.detach(), fake.detach()
    mix = queued(mix, fake.device, fake.dtype).view(-1, 1, 1, 1)
    mixed = torch.lerp(fake, real, mix).requires_grad_()
    # The backward of a matrix product is a matrix product: autocast would use half precision.
    with torch.autocast(mixed.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(score(mixed).sum(), mixed, create_graph=True)
    norm = (gradient.square().flatten(1).sum(dim=1) + _EPS).sqrt()
    return (norm - 1).square()


def critic_losses(
    student: Tensor,
    teacher: Tensor,
    *,
    critic: nn.Module,
    loss: Literal["wgan-gp", "hinge"] = "wgan-gp",
    penalty: float = 10.0,
    mix: Tensor | None = None,
    image: Tensor | None = None,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of a critic's loss by name, to be summed.

    ``minus_wasserstein`` (minus the estimated distance of both distributions) and ``penalty``; with
    hinge ``fake`` and ``real``. All are means over images that have a valid position.

    Args:
        student: logits (B, K, h, w); detached.
        teacher: logits or log-probabilities (B, K, h', w').
        critic: as ``Critic``; in training mode if it has a spectral norm.
        loss: hinge has no penalty, and should have a critic with a spectral norm.
        penalty: factor of the gradient penalty.
        mix: (B,) in [0, 1], the teacher's share at which the penalty is taken; None: random.
        image: (B, 3, H, W), in about −1 to 1; averaged to the size of the maps.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.

    Returns:
        Scalars.
    """
    fake, real, image, valid = prepared(student.detach(), teacher, image, mask)
    images = None if image is None else torch.cat([image, image])
    of_fake, of_real = critic(torch.cat([fake, real]), images).chunk(2)
    if loss == "hinge":
        return {
            "fake": image_mean(F.relu(1 + of_fake), valid),
            "real": image_mean(F.relu(1 - of_real), valid),
        }

    def score(maps: Tensor) -> Tensor:
        return critic(maps.masked_fill(~valid.unsqueeze(1), 0), image)

    mix = torch.rand(len(fake)) if mix is None else mix
    penalties = gradient_penalty(score, real, fake, mix)
    return {
        "minus_wasserstein": image_mean(of_fake - of_real, valid),
        "penalty": penalty * image_mean(penalties, valid),
    }


def prepared(
    student: Tensor, teacher: Tensor, image: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Inputs of a critic at one size, zero at invalid positions.

    Args:
        student: logits (B, K, h, w).
        teacher: logits or log-probabilities (B, K, h', w'); detached.
        image: (B, 3, H, W) or None.
        mask: (B, h, w) bool at the smaller of both sizes, True where positions are valid; None:
            all.

    Returns:
        Probabilities of student and teacher, (B, K, h, w) each, the image (B, 3, h, w) or None,
        and the mask (B, h, w).

    Raises:
        ValueError: the mask has another shape.
    """
    student, teacher = match_sizes(student, teacher.detach())
    mask = position_mask(student, mask)
    hidden = ~mask.unsqueeze(1)
    # The softmax of log-probabilities gives the probabilities: both kinds of teachers work.
    fake, real = (z.softmax(dim=1).masked_fill(hidden, 0) for z in (student, teacher))
    if image is not None:
        height, width = mask.shape[1:]
        image = F.adaptive_avg_pool2d(image, (height, width)).masked_fill(hidden, 0)
    return fake, real, image, mask
