"""What a network keeps and what depends on it: modes, statistics, copies, files."""

import copy
import pickle

import torch
from torch import Tensor

from segkd.config.schema import ModelConfig
from segkd.models.network import Network
from segkd.testing.check import CheckList, require, require_finds
from segkd.testing.method_subject import exactly, same
from segkd.testing.network_subject import NetworkSubject

CHECKS: CheckList[NetworkSubject] = CheckList("network")

_STEPS = 6


@CHECKS.add(
    "With statistics of the batch, scores depend on the batch size, and a teacher's prediction "
    "on the other images."
)
def batch_neighbours(subject: NetworkSubject) -> None:
    """In evaluation mode the logits of an image are the same alone and in a batch."""
    network, images = _evaluated(subject), subject.images(3)
    together = _logits(network, images)
    alone = torch.cat([_logits(network, image[None]) for image in images])
    same(alone, together, "images one by one, beside as a batch", rtol=1e-4, atol=1e-4)


@CHECKS.add(
    "Two evaluations must give the same score, and an evaluation must not change the network."
)
def evaluation(subject: NetworkSubject) -> None:
    """In evaluation mode a second forward pass gives identical bits, whatever the state of torch's
    generator, and no parameter or buffer changes."""
    network, images = _evaluated(subject), subject.images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    first = _logits(network, images)
    torch.manual_seed(2)
    second = _logits(network, images)
    exactly(second, first, "the second time")
    exactly(dict(network.state_dict()), before, "its state afterwards")


@CHECKS.add("Parts of a student may be frozen in evaluation mode while the rest trains.")
def modes(subject: NetworkSubject) -> None:
    """After `forward`, `tap_info` and `known_taps` each module is in the mode in which it was
    before."""
    network = subject.network()
    for number, module in enumerate(network.modules()):
        module.training = number % 3 != 2  # a mixture
    network.training = True
    before = {path: module.training for path, module in network.named_modules()}

    def look(what: str) -> None:
        now = {path: module.training for path, module in network.named_modules()}
        changed = [path or "the network" for path in now if now[path] != before.get(path)]
        require_finds(changed[:3], f"after {what} the mode has changed of")

    network.known_taps()
    look("`known_taps`")
    network.tap_info(["logits"])
    look("`tap_info`")
    network(subject.images(), network.known_taps())
    look("`forward`")


@CHECKS.add("A network that does not learn from labels cannot be trained or distilled.")
def learns(subject: NetworkSubject) -> None:
    """A few steps of Adam on two images of one class reduce the cross-entropy."""
    network, images = subject.network(), subject.images(2, subject.sizes()[-1])
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(_STEPS):
        loss = -network(images).logits.log_softmax(1)[:, 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    text = f"from {losses[0]:.3f} the cross-entropy came to {min(losses):.3f} in {_STEPS} steps"
    require(min(losses) < 0.9 * losses[0], text)


@CHECKS.add(
    "A checkpoint holds state and configuration; evaluation, export and later runs build the "
    "network from them."
)
def state_round_trip(subject: NetworkSubject) -> None:
    """A fresh network, built from the saved configuration, gives identical bits with the loaded
    state."""
    network, images = _evaluated(subject), subject.images()
    if subject.build is None:
        other = copy.deepcopy(network)
        with torch.no_grad():
            for value in other.state_dict().values():
                value.zero_()
    else:
        config = ModelConfig.model_validate(network.config.model_dump(mode="json"))
        require(config == network.config, f"the configuration comes back as {config}")
        torch.manual_seed(7)
        other = subject.build(network.num_classes)
    other.load_state_dict(network.state_dict())
    exactly(_logits(other.eval(), images), _logits(network, images), "after loading its state")


@CHECKS.add("`ema` averages the weights in a deep copy of the student.")
def deep_copies(subject: NetworkSubject) -> None:
    """A deep copy, and one that was pickled, give identical bits; what a copy learns does not reach
    the original."""
    network, images = _evaluated(subject), subject.images()
    expected = _logits(network, images)
    other = copy.deepcopy(network)
    exactly(_logits(other, images), expected, "of a deep copy")
    exactly(_logits(pickle.loads(pickle.dumps(network)), images), expected, "after pickling")
    with torch.no_grad():
        for value in [*other.parameters(), *other.buffers()]:
            value.add_(1) if value.is_floating_point() else None
    other.train()(images)
    exactly(_logits(network, images), expected, "the original after its copy learned")


@CHECKS.add("`runtime.precision: bf16` and `runtime.channels_last: true` are common on GPUs.")
def half_and_layout(subject: NetworkSubject) -> None:
    """Under autocast the logits are finite and close to those in float32; channels-last memory
    changes them by rounding only."""
    network, images = _evaluated(subject), subject.images()
    expected = _logits(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        half = _logits(network, images).float()
    require(bool(half.isfinite().all()), "under autocast logits are not finite")
    apart = (half - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6)
    require(bool(apart < 0.3), f"under autocast logits are {apart:.2f} standard deviations apart")
    network.to(memory_format=torch.channels_last)
    found = _logits(network, images.contiguous(memory_format=torch.channels_last))
    same(found, expected, "with channels last", rtol=1e-3, atol=1e-3)


def _evaluated(subject: NetworkSubject) -> Network:
    """In evaluation mode, after a step that moved its batch statistics."""
    network = subject.network()
    with torch.no_grad():
        network(subject.images())
    return network.eval()


@torch.no_grad()
def _logits(network: Network, images: Tensor) -> Tensor:
    return network(images).logits
