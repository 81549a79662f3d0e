"""Layers of an encoder that nothing reads, e.g. behind its last stage with ``encoder_depth: 4``."""

from typing import Any

import torch
from torch import Tensor, nn


class Unused(nn.Module):
    """In place of a layer whose output nothing reads: returns its first argument.

    Attributes:
        weights_ignored: files may have the weights of the former layer.
    """

    weights_ignored = True

    def forward(self, first: Any, *_: Any) -> Any:
        """``first``, as it is."""
        return first


def drop_unused(encoder: nn.Module, side: int) -> list[str]:
    """Replaces modules that no returned feature depends on by ``Unused``.

    They would be stored, counted as parameters and, in some encoders, computed. Files that have
    their weights still load (``checkpoint.adopt``).

    Args:
        encoder: takes images (B, 3, side, side) and returns a list of features, or a pair of
            features and prefix tokens.
        side: of the image with which dependence is traced.

    Returns:
        Paths of the replaced modules.
    """
    wanted = {name: item for name, item in encoder.named_parameters() if item.requires_grad}
    if not wanted:
        return []
    training, image = encoder.training, torch.zeros(1, 3, side, side)
    encoder.eval()  # statistics of batch norms stay what they are
    with torch.enable_grad():
        total = torch.stack([item.sum() for item in _tensors(encoder(image))]).sum()
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    used = {name for name, one in zip(wanted, found, strict=True) if one is not None}
    paths = _unused(encoder, used, "")
    for path in paths:
        parent, _, last = path.rpartition(".")
        setattr(encoder.get_submodule(parent), last, Unused())
    encoder.train(training)
    return paths


def _unused(module: nn.Module, used: set[str], prefix: str) -> list[str]:
    """Paths of the largest modules with parameters of which none is used."""
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        names = [f"{path}.{own}" for own, _ in child.named_parameters()]
        if names and not used.intersection(names):
            found.append(path)
        else:
            found += _unused(child, used, f"{path}.")
    return found


def _tensors(value: object) -> list[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
