"""The networks that methods train beside the student (``Method.peers``).

Each has an optimiser and an average of its own; everything else of a step is the student's.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from segkd.config.schema import RunConfig
from segkd.engine.optim import EMA, build_optimizer, parameter_groups, set_lr
from segkd.engine.timing import StepTimer
from segkd.errors import ConfigError, SegKDError
from segkd.methods.base import Method
from segkd.models.network import Network
from segkd.structures import Outputs

PeerOutputs = Mapping[str, Mapping[str, Outputs]]  # by entry of `methods:` and name


class Peers:
    """The peers of all methods of a run.

    Args:
        methods: built methods by entry.

    Raises:
        ConfigError: a peer has no map of the image.

    Attributes:
        networks: the peers by ``ENTRY.NAME``; their weights are part of their methods.
        optimizers: by the same names; without those of peers that are frozen as a whole.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.networks: dict[str, Network] = {}
        self._by_entry: dict[str, dict[str, Network]] = {}
        for entry, method in methods.items():
            for name, network in method.peers().items():
                assert isinstance(network, Network)  # made by `new_model`
                if network.rows:
                    raise ConfigError(
                        f"methods.{entry}.peers.{name}: {network.title} classifies rows of lanes, "
                        "and peers learn from each other pixel by pixel. Use a network that "
                        "segments"
                    )
                self.networks[f"{entry}.{name}"] = network
                self._by_entry.setdefault(entry, {})[name] = network
        self.optimizers: dict[str, Optimizer] = {}
        self._averages: dict[str, EMA] = {}

    def start(self, config: RunConfig) -> None:
        """Makes optimisers and averages, once it is known which parameters are trained."""
        for name, network in self.networks.items():
            groups = parameter_groups(network)
            if any(groups.values()):
                self.optimizers[name] = build_optimizer(config.optim, groups)
            if config.ema:
                self._averages[name] = EMA(network, config.ema)

    def outputs(self, images: Tensor, timer: StepTimer | None = None) -> PeerOutputs:
        """Outputs for images (B, 3, H, W) by entry and name, timed as a part of their methods.

        Raises:
            ConfigError: a peer cannot take images of this size; names it.
        """
        timer = timer or StepTimer(images.device)
        found: dict[str, dict[str, Outputs]] = {}
        for entry, networks in self._by_entry.items():
            with timer.part(f"method/{entry}"):
                found[entry] = {
                    name: _run(f"methods.{entry}: peer {name}", network, images)
                    for name, network in networks.items()
                }
        return found

    def set_lr(self, share: float) -> None:
        """Sets the learning rates to a share of the full ones."""
        for optimizer in self.optimizers.values():
            set_lr(optimizer, share)

    def update_averages(self) -> None:
        """Moves the averages towards the networks."""
        for name, average in self._averages.items():
            average.update(self.networks[name])

    def evaluated(self) -> dict[str, Network]:
        """The networks to evaluate and save: the averages, if there are any."""
        averaged = {name: average.average for name, average in self._averages.items()}
        found: dict[str, Network] = {}
        for name, network in (self.networks | averaged).items():
            assert isinstance(network, Network)  # an average is a copy of the network
            found[name] = network
        return found

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of all peers."""
        return (p for network in self.networks.values() for p in network.parameters())

    def buffers(self) -> Iterator[Tensor]:
        """Buffers of all peers and of their averages, of any shape."""
        modules = [*self.networks.values(), *(a.average for a in self._averages.values())]
        return (buffer for module in modules for buffer in module.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and averages by name; the weights are in the state of the methods."""
        return {
            "optimizers": {name: one.state_dict() for name, one in self.optimizers.items()},
            "averages": {name: one.state_dict() for name, one in self._averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, average in self._averages.items():
            average.load_state_dict(state["averages"][name])


def _run(where: str, network: Network, images: Tensor) -> Outputs:
    """The network's outputs for images (B, 3, H, W); a refusal of them begins with ``where``."""
    try:
        return network(images)
    except SegKDError as error:
        raise ConfigError(f"{where}: {error}") from error
