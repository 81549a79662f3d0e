"""Masks of learned tokens: where a map resembles a token, as MasKD and FreeKD have them."""

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from segkd.errors import ConfigError
from segkd.methods.base import Context, MethodConfig
from segkd.ops.masked import image_mean
from segkd.ops.precision import full_precision
from segkd.structures import Batch, Outputs, Term

_SHARE = 0.1  # of all steps, in which tokens learn
_START = 0.01  # standard deviation of new tokens: all masks begin near 1/2
_EPS = 1e-12  # of a denominator that is 0 without valid positions


class TokenKeys(MethodConfig):
    """Keys of methods with ``TokenMasks``; a method's config repeats ``tokens`` for its default."""

    token_steps: NonNegativeInt | None = Field(
        None,
        description="first steps of the run, in which the tokens learn, and nothing else of the "
        "method; default: a tenth of the run; 0: they have learned in the run of `init_from`",
    )
    token_lr: PositiveFloat = Field(1e-2, description="learning rate of their Adam")

    def steps_for_tokens(self, total_steps: int) -> int:
        """``token_steps``, or its default for a run of ``total_steps``."""
        return round(_SHARE * total_steps) if self.token_steps is None else self.token_steps


class TokenMasks(nn.Module):
    """Learned tokens t, and the masks σ(t · f) of maps f.

    Args:
        tokens: number of tokens, T.
        channels: of the maps, C.
    """

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(_START * torch.randn(tokens, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """One mask a token: (B, C, h, w) to (B, T, h, w), between 0 and 1."""
        return token_masks(self.tokens, maps)


def token_masks(tokens: Tensor, maps: Tensor) -> Tensor:
    """σ(t · f) of tokens (T, C) at each position of maps (B, C, h, w): (B, T, h, w)."""
    with full_precision(maps.device):
        return torch.einsum("tc,bchw->bthw", tokens.to(maps.dtype), maps).sigmoid()


def overlap(masks: Tensor, valid: Tensor) -> Tensor:
    """How alike the masks of an image are: the mean Dice coefficient of all pairs.

        mean_{a ≠ b} 2 Σ_i m_a m_b / (Σ_i m_a² + Σ_i m_b²)

    Args:
        masks: (B, T, h, w).
        valid: (B, h, w) bool, the positions i.

    Returns:
        (B,), from 0 (disjoint) to 1 (equal); 0 for a single mask.
    """
    seen = masks.masked_fill(~valid.unsqueeze(1), 0).flatten(2)
    products = seen @ seen.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    dice = 2 * products / (squares.unsqueeze(1) + squares.unsqueeze(2)).clamp(min=_EPS)
    pairs = masks.shape[1] * (masks.shape[1] - 1)
    same = dice.diagonal(dim1=1, dim2=2).sum(dim=1)
    return (dice.sum(dim=(1, 2)) - same) / max(pairs, 1)


def overlap_term(masks: Tensor, valid: Tensor) -> Term:
    """``overlap`` of masks (B, T, h, w) as a term, a mean over images with valid positions."""
    images = valid.flatten(1).any(dim=1).sum(dtype=torch.float64)
    return Term(image_mean(overlap(masks, valid), valid), images)


def task_terms(logits: Tensor, batch: Batch, context: Context) -> dict[str, Term]:
    """The run's task losses of logits (B, K, h, w), by name. Raises ConfigError without any."""
    assert context.task_loss is not None  # set by the engine
    found = context.task_loss(Outputs(logits), batch)
    if not found:
        raise ConfigError(
            "no task loss of this run is of maps of logits, from which tokens learn what matters: "
            "its losses are of rows of lanes. Remove the method, or use a student that segments"
        )
    return found
