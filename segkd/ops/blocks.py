"""How much of a large map is taken at a time."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BlockSize:
    """Elements per block, by device.

    Attributes:
        cpu: what fits the cache.
        device: elsewhere enough to keep a device busy without doubling the memory of the maps.
    """

    cpu: int
    device: int

    def on(self, device: torch.device | str) -> int:
        """Elements per block on a device."""
        return self.cpu if torch.device(device).type == "cpu" else self.device
