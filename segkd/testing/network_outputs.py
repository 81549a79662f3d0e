"""What a network returns: logits, taps and their sizes, for images as they are."""

import torch
from torch import Tensor, nn

from segkd.config.schema import AuxHeadConfig
from segkd.errors import SegKDError
from segkd.models.network import Network
from segkd.structures import Outputs
from segkd.testing.check import CheckList, NotApplicable, require, require_finds
from segkd.testing.method_subject import exactly, same
from segkd.testing.network_subject import NetworkSubject, probabilities

CHECKS: CheckList[NetworkSubject] = CheckList("network")


@CHECKS.add(
    "Configurations and methods refer to these names; learning rates differ for encoder and "
    "decoder."
)
def declaration(subject: NetworkSubject) -> None:
    """`divisor` and `tap_names()` are defined, with `logits` among the taps and no duplicates;
    `group_of` returns encoder or decoder for each parameter."""
    network = subject.network()
    require(isinstance(network.divisor, int) and network.divisor > 0, f"{network.divisor=}")
    names = list(network.tap_names())
    require("logits" in names, f"`logits` is not among the taps {names}")
    require(len(set(names)) == len(names), f"a tap is there twice: {names}")
    groups = {network.group_of(name) for name, _ in network.named_parameters()}
    require(groups <= {"encoder", "decoder"}, f"parameters are in the groups {sorted(groups)}")


@CHECKS.add("Losses, metrics and export expect logits; a softmax would be applied twice.")
def logits(subject: NetworkSubject) -> None:
    """`forward` returns Outputs with finite floating-point logits (B, K, h, w) that have a graph in
    training and are not probabilities. There is no `aux` without auxiliary heads."""
    network, images = subject.network(), subject.images()
    outputs = network(images)
    require(isinstance(outputs, Outputs), f"`forward` returned a {type(outputs).__name__}")
    found = outputs.logits
    shape, classes = tuple(found.shape), network.num_classes
    fits = found.ndim == 4 and shape[:2] == (len(images), classes)
    require(fits, f"logits have the shape {shape}, expected ({len(images)}, {classes}, h, w)")
    require(found.is_floating_point() and found.requires_grad, f"logits are {found.dtype}")
    require(bool(found.isfinite().all()), "logits are not finite")
    require(not probabilities(found.detach()), "logits are probabilities, or their logarithms")
    require(outputs.aux == {} or bool(network.aux_heads), f"auxiliary logits: {outputs.aux.keys()}")


@CHECKS.add(
    "Masks and labels are resized to logits and taps, and adapters are built for their channels, "
    "as `tap_info` says."
)
def sizes(subject: NetworkSubject) -> None:
    """Logits and all taps have the channels and strides of `tap_info`, at several sizes that are
    not square."""
    network = subject.network().eval()
    info = network.tap_info(network.known_taps())
    for height, width in subject.sizes():
        with torch.no_grad():
            outputs = network(subject.images(1, (height, width)), list(info))
        for tap, (channels, stride) in ((t, (i.channels, i.stride)) for t, i in info.items()):
            if tap == "logits" and outputs.rows:
                continue  # rows and cells, no map
            expected = (1, channels, height // stride, width // stride)
            found = tuple(outputs.tap(tap).shape)
            text = f"'{tap}' has the shape {found} for {height}x{width} pixels, "
            require(found == expected, text + f"expected {expected} (stride {stride})")


@CHECKS.add(
    "Crops and images have any size that is a multiple of the divisor. For other sizes the user "
    "needs to know a good one."
)
def divisor(subject: NetworkSubject) -> None:
    """Odd multiples of `divisor` work; other sizes raise a SegKDError."""
    network = subject.network().eval()
    if network.fixed_size:
        raise NotApplicable(f"takes {network.fixed_size} only")
    step, odd = network.divisor, subject.step() // network.divisor + 1 | 1
    with torch.no_grad():
        for size in ((odd * step, (odd + 2) * step), ((odd + 2) * step, odd * step)):
            found = network(subject.images(1, size)).logits
            require(bool(found.isfinite().all()), f"logits are not finite at {size}")
            ratios = [side / small for side, small in zip(size, found.shape[2:], strict=True)]
            text = f"logits are {tuple(found.shape[2:])} at {size}"
            require(max(ratios) < 1.3 * min(ratios), text)
        if step > 1:
            try:
                network(subject.images(1, (odd * step + 1, odd * step)))
            except SegKDError:
                return
            raise AssertionError(f"{odd * step + 1}x{odd * step} pixels are not refused")


@CHECKS.add(
    "Methods read values inside the network by these names. What one method taps must not change "
    "what others get."
)
def taps(subject: NetworkSubject) -> None:
    """Each known tap can be requested. Its value is the one passed to `record`, whatever else is
    tapped, and the logits are the same with and without taps."""
    network = subject.network().eval()
    names, images = network.known_taps(), subject.images()
    offered: dict[str, Tensor] = {}
    with torch.no_grad():
        network.compute(
            network.normalized(images),
            lambda name, value: offered.update({name: value.detach().clone()}),
        )
        together, without = network(images, names), network(images)
        exactly(without.logits, together.logits, "logits without taps, beside those with")
        for name in names:
            alone = network(images, [name])
            exactly(alone.tap(name), together.tap(name), f"'{name}' alone, beside with others")
            if name in offered:
                exactly(alone.tap(name), offered[name], f"'{name}', beside what `compute` offered")
    missing = set(network.tap_names()) - {"logits"} - offered.keys()
    require_finds(sorted(missing), "`tap_names` names what `compute` does not offer")


@CHECKS.add("A tap that is cut off from the graph looks as if a method could train it.")
def taps_learn(subject: NetworkSubject) -> None:
    """In training a gradient at each tap, and at the logits, reaches parameters."""
    network = subject.network()
    outputs = network(subject.images(), network.known_taps())
    parameters = [p for p in network.parameters() if p.requires_grad]
    for tap in network.known_taps():
        value = outputs.tap(tap)
        require(value.requires_grad, f"'{tap}' has no graph")
        gradients = torch.autograd.grad(
            value.square().sum(), parameters, retain_graph=True, allow_unused=True
        )
        reached = any(g is not None and bool(g.any()) for g in gradients)
        require(reached, f"a gradient at '{tap}' reaches no parameter")


@CHECKS.add(
    "Images are uint8 RGB and normalised inside, so that two teachers may differ in it and an "
    "exported file contains it. With swapped channels pretrained weights see wrong colours."
)
def normalisation(subject: NetworkSubject) -> None:
    """`normalized` computes (x / 255 - mean) / std for red, green, blue in this order; the first
    layer gets its channels in this order; images in uint8 and float give the same logits and are
    not changed."""
    network, images = subject.network().eval(), subject.images()
    mean, std = (torch.tensor(list(x)).view(3, 1, 1) for x in network.normalization.statistics)
    before, expected = images.clone(), (images / 255 - mean) / std
    same(network.normalized(images), expected, "`normalized`", rtol=1e-4, atol=1e-4)
    exactly(images, before, "the images afterwards")
    seen = _first_input(network, images)
    if seen is not None and seen.shape == expected.shape:
        turned = torch.allclose(seen, expected.flip(1), atol=1e-3)
        require(not turned, "the first layer sees blue, green, red")
    with torch.no_grad():
        of_bytes, of_floats = (network(x).logits for x in (images, images.float()))
    same(of_floats, of_bytes, "logits of floating-point images, beside those of bytes")
    exactly(images, before, "the images afterwards")


def _first_input(network: Network, images: Tensor) -> Tensor | None:
    """What the first layer is given in a forward pass."""
    found: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
        if not found and inputs and isinstance(inputs[0], Tensor):
            found.append(inputs[0].detach().clone())

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(hook) for module in leaves]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found[0] if found else None


@CHECKS.add("Lanes have two to five classes, Cityscapes 19, ADE20K 150.")
def classes(subject: NetworkSubject) -> None:
    """It can be built for other numbers of classes and returns as many channels."""
    if subject.build is None:
        raise NotApplicable("it is a module of the caller's own")
    for number in (2, 7):
        network = subject.build(number).eval()
        with torch.no_grad():
            found = network(subject.images(1)).logits.shape[1]
        require(found == number, f"for {number} classes there are {found} channels of logits")


@CHECKS.add("`aux_head` supervises a stage in training and must cost nothing afterwards.")
def auxiliary_head(subject: NetworkSubject) -> None:
    """An auxiliary head at the deepest stage returns logits of all classes in training and nothing
    in evaluation."""
    network = subject.network()
    stages = network.named_taps().stages
    if network.aux_heads or not stages:
        raise NotApplicable("it has one already" if network.aux_heads else "it has no stages")
    network.add_aux_head(AuxHeadConfig(tap=stages[-1]))
    images = subject.images()
    found = network.train()(images).aux
    require(set(found) == {"aux"}, f"auxiliary logits in training: {sorted(found)}")
    channels = found["aux"].shape[1]
    require(channels == network.num_classes, f"auxiliary logits of {channels} classes")
    with torch.no_grad():
        require(network.eval()(images).aux == {}, "there are auxiliary logits in evaluation")
