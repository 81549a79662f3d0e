"""Wraps any ``nn.Module`` as a Network, without changes to its code."""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, SegKDError
from segkd.methods.base import PRE
from segkd.models.network import Network
from segkd.models.tap_places import MODULE, check_tap
from segkd.models.taps import Record

OWN = "module"  # `arch` of a wrapped module


def wrap(
    module: nn.Module,
    num_classes: int,
    *,
    taps: Mapping[str, str] | None = None,
    logits: str | None = None,
    normalize: str | tuple[list[float], list[float]] = "imagenet",
    divisor: int = 1,
    encoder: str | None = None,
) -> "ModuleNetwork":
    """Wraps a module that takes normalised images (B, 3, H, W).

    Args:
        module: returns logits (B, K, h, w), a dict with ``out``, a tuple that begins with them,
            or an object with ``.logits``.
        num_classes: K.
        taps: by tap, the path of the submodule that returns it:
            ``{"stage4": "backbone.layer4", "head": "classifier.3"}``. Without any ``stage…`` the
            stages are found by a probe, and so is ``head`` if it is not given: see
            ``segkd.models.found``.
        logits: path of the submodule that returns the logits, e.g. before up-sampling; None: the
            module itself.
        normalize: imagenet, none (``x / 255``), or (mean, std) on the scale 0..1.
        divisor: height and width of images must be multiples of it.
        encoder: path of the submodule that is the encoder in ``optim.lr_factors``.

    Raises:
        ConfigError: a path that does not exist.
    """
    given: dict[str, Any] = {"taps": taps, "logits": logits, "divisor": divisor, "encoder": encoder}
    # A file of the network has these, so that its module can be wrapped alike: see ``rewrapped``.
    options = {key: value for key, value in given.items() if value and value != 1}
    config = ModelConfig.model_validate({"arch": OWN, "normalize": normalize, "options": options})
    network = ModuleNetwork(config, num_classes, module, dict(taps or {}), logits, encoder)
    network.divisor = divisor
    return network


class ModuleNetwork(Network):
    """See ``wrap``."""

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        module: nn.Module,
        taps: dict[str, str],
        logits: str | None,
        encoder: str | None,
    ) -> None:
        super().__init__(config, num_classes)
        self.module = module
        self._paths = {name: path for name, path in taps.items() if name != "logits"}
        self._logits = logits or taps.get("logits")
        self._encoder = f"module.{encoder}." if encoder else None
        for path in (*self._paths.values(), self._logits, encoder):
            if path:
                check_tap(MODULE + path, (), module)

    def compute(self, images: Tensor, record: Record) -> Tensor:
        found: list[Tensor] = []
        with ExitStack() as hooks:
            for name, path in self._paths.items():
                self._hook(hooks, path, partial(record, name))
            if self._logits:
                self._hook(hooks, self._logits, found.append)
            output = self.module(images)
        if self._logits and not found:
            raise ConfigError(
                f"logits: a forward pass of {self.title} does not run '{self._logits}'. Name a "
                "submodule that is called, e.g. an entry of a list instead of the list"
            )
        return self._checked(found[-1] if found else _logits(output))

    def compute_probe(self, image: Tensor, record: Record) -> Tensor:
        try:
            return self.compute(image, record)
        except SegKDError:
            raise
        except Exception as error:  # foreign code may raise anything
            height, width = image.shape[-2:]
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"{self.title} fails on the {height}x{width} image used to find its taps: "
                f"{reason[0]} Give the sizes that it takes: segkd.models.module.wrap(module, "
                f"{self.num_classes}, divisor=…), e.g. divisor=512 for 512x512"
            ) from error

    def tap_names(self) -> list[str]:
        return [*self._paths, "logits"]

    def tap_root(self, path: str) -> str:
        # Paths may begin with the network's own `module.`, which used to be required.
        whole = path.split(".")[0] == "module" and not hasattr(self.module, "module")
        return "" if whole else "module"

    def hooked_paths(self, taps: Collection[str]) -> set[str]:
        own = {*self._paths.values(), *filter(None, [self._logits])}
        return super().hooked_paths(taps) | {f"module.{path}" for path in own}

    def tap_module(self, tap: str) -> nn.Module:
        path = self._paths.get(tap.removesuffix(PRE))
        return super().tap_module(tap) if path is None else self.module.get_submodule(path)

    def group_of(self, parameter_name: str) -> str:
        inside = self._encoder and parameter_name.startswith(self._encoder)
        return "encoder" if inside else "decoder"

    def _hook(self, hooks: ExitStack, path: str, take: Callable[[Tensor], None]) -> None:
        module = self.module.get_submodule(path)
        handle = module.register_forward_hook(lambda _, __, output: take(output))
        hooks.callback(handle.remove)

    def _checked(self, logits: Any) -> Tensor:
        shape = tuple(getattr(logits, "shape", ()))
        if len(shape) != 4 or shape[1] != self.num_classes:
            raise SegKDError(
                f"{type(self.module).__name__} returned logits of shape {shape}, expected "
                f"(B, {self.num_classes}, h, w). Give the path of the right submodule as `logits`"
            )
        return logits

    @property
    def title(self) -> str:
        return type(self.module).__name__


def _logits(output: Any) -> Any:
    """The logits in the output of a module."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    elif isinstance(output, tuple | list):
        output = output[0]
    else:
        output = getattr(output, "logits", None)
    if output is None:
        raise ConfigError(
            "the module returns neither a tensor, nor a dict with 'out', nor a tuple, nor an "
            "object with .logits. Give the path of the submodule that returns logits as `logits`"
        )
    return output
