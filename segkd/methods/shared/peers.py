"""Base of methods in which several networks learn together, each from the others."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import TypeVar

from segkd.methods.base import BuildContext, Context, MethodConfig, Needs, SelfMethod
from segkd.modules.module_map import ModuleMap, is_taken
from segkd.ops.resize import common_size, match_sizes
from segkd.structures import Outputs

STUDENT = "student"  # its name among the networks
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def _named(peers: Any) -> Any:
    if isinstance(peers, dict):
        if not peers:
            raise ValueError("give at least one peer, e.g. {second: {}} for one like the student")
        for name in peers:
            if not _NAME.fullmatch(name) or name == STUDENT or is_taken(name):
                raise ValueError(
                    f"'{name}' cannot be the name of a peer: use letters, digits, _ and -, "
                    f"and not '{STUDENT}', nor a word of torch's modules such as half"
                )
    return peers


class PeerKeys(MethodConfig):
    """Keys of a ``PeerMethod``."""

    peers: Annotated[PositiveInt | dict[str, dict[str, Any]], AfterValidator(_named)] = Field(
        1,
        description="networks beside the student: their number if they are like it, or "
        "{NAME: keys as of `student:`}, where {} is like it",
    )

    def networks(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """The peers that are described by keys of their own."""
        return {("peers", name): keys for name, keys in self.by_name().items() if keys}

    def by_name(self) -> dict[str, dict[str, Any]]:
        """The keys of each peer; none for one that is like the student."""
        if isinstance(self.peers, int):
            return {f"peer{number}": {} for number in range(1, self.peers + 1)}
        return self.peers


PeerT = TypeVar("PeerT", bound=PeerKeys, default=PeerKeys, covariant=True)


class PeerMethod(SelfMethod[PeerT]):
    """Student and peers learn from labels, which is up to the engine, and from each other."""

    needs = Needs(student=("logits",))
    kind = "online"

    def build(self, spec: BuildContext) -> None:
        """Makes the peers."""
        new_model = spec.new_model
        assert new_model is not None  # given by the engine
        self.networks: ModuleMap[nn.Module] = ModuleMap(
            {
                name: new_model(keys or None, f"peers.{name}")
                for name, keys in self.config.by_name().items()
            }
        )

    def peers(self) -> Mapping[str, nn.Module]:
        """The networks beside the student."""
        return dict(self.networks.items())

    def cohort(self, student: Outputs, context: Context) -> tuple[dict[str, Tensor], Tensor]:
        """The logits of student and peers, reduced to the smallest size among them.

        Returns:
            (B, K, h, w) each by name, zero where invalid; and the mask (B, h, w).
        """
        peers = {name: context.peers[name].logits for name in self.peers()}
        logits = {STUDENT: student.logits, **peers}
        mask = context.mask_at(*common_size(*logits.values()))
        return dict(zip(logits, match_sizes(*logits.values(), mask=mask), strict=True)), mask
