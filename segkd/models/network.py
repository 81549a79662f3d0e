"""Base of all networks: uint8 images in, logits and tapped values out."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from segkd.config.schema import AuxHeadConfig, ExistHeadConfig, ModelConfig
from segkd.errors import ConfigError, SegKDError
from segkd.methods.base import IMAGE, PRE, TapInfo, TapNames
from segkd.models.aux_head import FCNHead
from segkd.models.exist_head import ExistHead, check_size, deepest_stage
from segkd.models.found import find_taps
from segkd.models.input_scale import at_most, scaled, strides_of_given
from segkd.models.normalization import normalization
from segkd.models.student_info import StudentInfo
from segkd.models.tap_places import Place, check_tap, located
from segkd.models.taps import Probe, Record, Recorder, TapPlan, tracing
from segkd.models.twice_differentiable import twice_differentiable
from segkd.modules.module_map import ModuleMap
from segkd.ops.resize import good_size
from segkd.structures import Outputs

if TYPE_CHECKING:
    from segkd.models.foreign import Match


class Network(nn.Module):
    """Base of all networks; a subclass implements ``compute`` and ``tap_names``.

    Images are normalised inside, on the device: ``(x / 255 - mean) / std`` with the statistics of
    the encoder's weights, ImageNet's or given ones (on the scale 0..1), or ``x / 255`` only for
    ``normalize: none``.

    Args:
        config: the block ``student:`` or an entry of ``teachers:``.
        num_classes: K.

    Attributes:
        config: the configuration, in which ``normalize`` is never ``auto``.
        num_classes: K.
        normalization: mean and std, and their origin.
        divisor: height and width of images must be multiples of it.
        fixed_size: the only (H, W) that the network takes, or None.
        input_scale: images are enlarged so much before they enter, to multiples of ``divisor``.
        aux_heads: auxiliary heads by name; used in training mode only.
        exist_head: the lane existence branch, or None.
        info: classes, colours and origin from its file.
        match: how its weights were matched in a file of another program, or None.
        classes_match: how its outputs were reordered to the data's classes, for the log.
        twice_differentiable: a method differentiates its gradient.
        rows: as of ``Outputs``; empty for networks whose logits are a map of the image.
    """

    name: ClassVar[str]
    has_encoder: ClassVar[bool] = False  # which pretrained `weights` can be given for
    chooses_encoder: ClassVar[bool] = False  # by `encoder`
    has_classes: ClassVar[bool] = True  # a backbone has features alone
    # What to do for images of other sizes than `fixed_size`.
    any_size: ClassVar[str] = (
        "set options.encoder_options to {img_size: [H, W]} or {dynamic_img_size: true}"
    )
    _mean: Tensor
    _scale: Tensor

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.normalization = normalization(config, download=True)
        # Resolved, so that a file of this network does not depend on defaults.
        self.config = config.model_copy(update={"normalize": self.normalization.key})
        self.num_classes = num_classes
        self.divisor = 1
        self.fixed_size: tuple[int, int] | None = None
        self.input_scale = 1.0
        self.aux_heads: ModuleMap[FCNHead] = ModuleMap({})
        self.exist_head: ExistHead | None = None
        self.info = StudentInfo.unknown(num_classes)
        self.match: Match | None = None
        self.classes_match = ""
        self.twice_differentiable = False
        self.rows: tuple[float, ...] = ()
        self._plans: dict[str, TapPlan] = {}
        self._found: dict[str, Place] | None = None
        mean, std = self.normalization.statistics
        # Computed from the config, so that they are not part of weights files.
        self.register_buffer("_mean", 255.0 * _per_channel(mean), persistent=False)
        self.register_buffer("_scale", 1.0 / (255.0 * _per_channel(std)), persistent=False)

    # -- to be implemented by subclasses -------------------------------------------------------

    def compute(self, images: Tensor, record: Record) -> Tensor:
        """Logits (B, K, h, w) at head resolution.

        Args:
            images: normalised images (B, 3, H, W).
            record: to be called as ``record(name, value)`` for each of ``tap_names()`` except
                ``logits``.
        """
        raise NotImplementedError

    def tap_names(self) -> list[str]:
        """Names of the taps that ``compute`` records, and ``logits``."""
        raise NotImplementedError

    @property
    def licence(self) -> str | None:
        """Licence of weights that others published; empty if unknown, None for other weights."""
        return None

    @property
    def kind(self) -> Literal["logits", "log_prob"]:
        """What ``compute`` returns, as of ``Outputs``."""
        return "logits"

    def tap_root(self, path: str) -> str:
        """The submodule that the path of a ``module:`` tap is relative to; empty: the network."""
        return ""

    # -- forward -------------------------------------------------------------------------------

    def forward(self, images: Tensor, taps: Collection[str] = ()) -> Outputs:
        """Logits, tapped values, lane existence, and auxiliary logits in training mode.

        Args:
            images: (B, 3, H, W) RGB, uint8 or floating point on the same scale 0..255.
            taps: names of values to return in ``features``; ``logits`` are always returned.

        Raises:
            ConfigError: a tap that does not exist, or has no value before an activation.
            SegKDError: images of an invalid shape; names a valid one.
        """
        twice = self.twice_differentiable and torch.is_grad_enabled()
        derivatives = twice_differentiable() if twice else nullcontext()
        with derivatives, Recorder(self, self._plans_of(self._recorded(taps))) as recorder:
            if IMAGE in taps:
                images = self._differentiable(images)
                recorder.record(IMAGE, images)
            own = self._own_size(images)
            logits = self.compute(self.normalized(own), recorder.record)
            logits = at_most(logits, images) if own is not images else logits
            recorder.record("logits", logits)
        values = recorder.values
        self._check_found(values, taps)
        tap = self._aux_tap
        aux = {name: head(values[tap]) for name, head in self.aux_heads.items()} if tap else {}
        exist = self.exist_head(values[self.exist_head.tap]) if self.exist_head else None
        features = {tap: values[tap] for tap in taps if tap != "logits"}
        return Outputs(logits, features, exist, aux, self.kind, rows=self.rows)

    def _own_size(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as they enter, of a size that is valid. Raises SegKDError."""
        if self.input_scale != 1 and images.ndim == 4:
            images = scaled(images.to(self._mean.dtype), self.input_scale, self.divisor)
        self._check(images)
        return images

    def normalized(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) in the dtype of the network's buffers."""
        return (images.to(self._mean.dtype) - self._mean) * self._scale

    def _differentiable(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the dtype of the buffers, which require a gradient."""
        images = images.to(self._mean.dtype)
        if images.requires_grad or not torch.is_grad_enabled():
            return images
        return images.detach().requires_grad_()

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise SegKDError(
                f"got images of shape {tuple(images.shape)}, expected (B, 3, H, W) RGB"
            )
        size = images.shape[-2], images.shape[-1]
        if self.fixed_size and size != self.fixed_size:
            head = self.config.exist_head
            flat = head.kind if head is not None and head.kind != "pooled" else ""
            free = (
                "train it again with exist_head: {kind: pooled}, which takes any size"
                if flat
                else self.any_size
            )
            raise SegKDError(
                f"{self.title}{flat and f' with exist_head.kind {flat}'} takes images of "
                f"{_by(self.fixed_size)} only, got {_by(size)}. Resize or crop to "
                f"{_by(self.fixed_size)}, or {free}"
            )
        if any(side % self.divisor for side in size):
            good = good_size(size, self.divisor)
            raise SegKDError(
                f"{self.title} takes heights and widths that are multiples of {self.divisor}, got "
                f"{_by(size)}. The nearest valid size is {_by(good)}: set data.crop or data.resize"
            )

    # -- classes -------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        """K class names; the position is the class id."""
        return self.info.classes

    @property
    def palette(self) -> np.ndarray:
        """Colours of the classes, (K, 3) uint8 RGB."""
        return self.info.palette

    # -- taps ----------------------------------------------------------------------------------

    def tap_info(self, taps: Collection[str]) -> dict[str, TapInfo]:
        """Channels and stride of each tap. Raises ConfigError for a tap that does not exist."""
        found = {tap: plan.info for tap, plan in self._plans_of(taps).items()}
        return found if self.input_scale == 1 else strides_of_given(found, self.input_scale)

    def tap_module(self, tap: str) -> nn.Module:
        """The outermost module that returns the tapped value; for ``logits`` the innermost.

        The network itself, if no module returns exactly this value.

        Raises:
            ConfigError: there is no such tap.
        """
        return self.get_submodule(self._plans_of([tap])[tap].module)

    def norm_before(self, tap: str) -> nn.Module | None:
        """The normalisation right before the activation that computes ``tap``, else None.

        If the activation's input is a sum (a residual block), this is the normalisation of its
        first summand that has one, i.e. the last of the block (as OFD does). If the tap is itself
        the output of a normalisation, it is that one.

        Raises:
            ConfigError: there is no such tap.
        """
        base = tap.removesuffix(PRE)
        path = self._plans_of([base])[base].norm
        return None if path is None else self.get_submodule(path)

    def hooked_paths(self, taps: Collection[str]) -> set[str]:
        """Paths of the submodules that have hooks in a forward pass with ``taps``."""
        plans = self._plans_of(self._recorded(taps))
        paths = {plan.place.path for plan in plans.values() if plan.place}
        pre = [plan.activation for tap, plan in plans.items() if tap.endswith(PRE)]
        return paths | {path for path in pre if path is not None}

    def _check_found(self, values: Mapping[str, Tensor], taps: Collection[str]) -> None:
        """Raises SegKDError if foreign code ran differently from the probe."""
        for tap in self._recorded(taps) - values.keys():
            place = self._plans[tap].place
            mode = "training" if self.training else "evaluation"
            raise SegKDError(
                f"tap '{tap}': '{place.path if place else self.title}' did not run in this forward "
                f"pass ({mode} mode) as it did in the probe in evaluation mode. Name a tap that is "
                "computed in both modes"
            )

    def _recorded(self, taps: Collection[str]) -> set[str]:
        """What a forward pass must record: the taps, and inputs of the network's own heads."""
        heads = [self._aux_tap] if self._aux_tap else []
        heads += [self.exist_head.tap] if self.exist_head else []
        return {*heads, *(tap for tap in taps if tap != "logits")}

    def _plans_of(self, taps: Collection[str]) -> dict[str, TapPlan]:
        """The plans of ``taps``; new ones are found by a probe."""
        unknown = sorted(set(taps) - self._plans.keys())
        places = {tap: self._place_of(tap) for tap in unknown}
        if unknown:
            with self._probed() as (probe, _):
                self._plans |= {tap: probe.plan(tap, places[tap]) for tap in unknown}
        return {tap: self._plans[tap] for tap in taps}

    def _place_of(self, tap: str) -> Place | None:
        """Where a tap is taken; None if ``compute`` records it. Raises ConfigError if unknown."""
        base = tap.removesuffix(PRE)
        if (place := located(tap, self, self.tap_root)) is not None:
            return place
        if base == IMAGE or base in self.tap_names():
            return None
        check_tap(tap, self.known_taps(), self)
        return self._found_places()[base]

    def _found_places(self) -> dict[str, Place]:
        """Stages and head that the network does not name; probed at the first call."""
        if self._found is None:
            named = TapNames(tuple(self.tap_names()))
            self._found = {}
            if (not named.stages or "head" not in named.names) and self.can_be_probed:
                with self._probed() as (probe, logits):
                    found = find_taps(probe, logits, self.num_classes)
                missing = {tap: at for tap, at in found.items() if tap not in named.names}
                keep_stages = not named.stages  # named stages may be numbered differently
                self._found = {t: at for t, at in missing.items() if t == "head" or keep_stages}
        return self._found

    @contextmanager
    def _probed(self) -> Iterator[tuple[Probe, Tensor]]:
        """A traced forward pass over a small image, and its logits."""
        size = self.probe_size()
        # It requires a gradient so that frozen networks have an autograd graph as well.
        image = self._mean.new_zeros(1, 3, *size, requires_grad=True)
        with tracing(self, size) as probe:
            probe.record(IMAGE, image)
            logits = self.compute_probe(self.normalized(image), probe.record)
            probe.record("logits", logits)
            yield probe, logits

    def compute_probe(self, image: Tensor, record: Record) -> Tensor:
        """``compute`` of a small image (1, 3, H, W); foreign code may fail at its size."""
        return self.compute(image, record)

    @property
    def can_be_probed(self) -> bool:
        """Whether the network implements ``compute``, so that its modules can be traced."""
        return type(self).compute is not Network.compute

    def probe_size(self) -> tuple[int, int]:
        """(H, W) of a small valid image."""
        side = -(-128 // self.divisor) * self.divisor
        return self.fixed_size or (side, side)

    def known_taps(self) -> list[str]:
        """``tap_names()``, and stages and head found by a probe if they are not among them."""
        named, found = self.tap_names(), self._found_places()
        stages = [tap for tap in found if tap != "head"]
        rest = [tap for tap in ("head", "logits") if tap in (*found, *named)]
        return [*stages, *(tap for tap in named if tap not in rest), *rest]

    def named_taps(self) -> TapNames:
        """The taps that default taps are chosen from."""
        return TapNames(tuple(self.known_taps()), self._has_pre)

    def _has_pre(self, tap: str) -> bool:
        return self._plans_of([tap])[tap].activation is not None

    # -- parts ---------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self._mean.device

    @property
    def title(self) -> str:
        """Name of the network in messages."""
        return f"{self.config.arch}"

    @property
    def aux_weight(self) -> float | None:
        """Factor of the auxiliary heads' task loss; None without such heads."""
        config = self.config.aux_head
        return config.weight if config is not None and self.aux_heads else None

    @property
    def _aux_tap(self) -> str | None:
        """The input of the auxiliary heads, if they run."""
        config = self.config.aux_head
        runs = self.training and len(self.aux_heads) > 0
        return config.tap if config is not None and runs else None

    def add_aux_head(self, config: AuxHeadConfig) -> None:
        """Adds the FCN head ``aux``. Raises ConfigError if its tap does not exist."""
        try:
            channels = self.tap_info([config.tap])[config.tap].channels
        except ConfigError as error:
            raise ConfigError(f"aux_head.tap: {error}") from error
        hidden = config.channels or max(channels // 4, 1)
        self.aux_heads["aux"] = FCNHead(channels, hidden, self.num_classes)
        self.config = self.config.model_copy(update={"aux_head": config})

    def add_exist_head(self, config: ExistHeadConfig) -> None:
        """Adds the existence branch for K - 1 lanes (class 0 is the background).

        Raises:
            ConfigError: its tap does not exist, or the network cannot take its size.
        """
        try:
            tap = config.tap or deepest_stage(self.known_taps())
            info = self.tap_info([tap])[tap]
        except ConfigError as error:
            raise ConfigError(f"exist_head.tap: {error}") from error
        if config.size is not None:
            self.fixed_size = check_size(config.size, self.fixed_size, self.divisor)
        self.exist_head = ExistHead(config, tap, info, self.num_classes)
        self.config = self.config.model_copy(update={"exist_head": config})

    def group_of(self, parameter_name: str) -> str:
        """The parameter group of the optimiser: ``encoder``, or ``decoder`` for all others."""
        return "encoder" if parameter_name.startswith("encoder.") else "decoder"


def _per_channel(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values)).view(1, 3, 1, 1)


def _by(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
