"""The caller's own ``nn.Module`` as a Network, its code unchanged."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, SegKDError
from segkd.methods.base import PRE
from segkd.models.network import Network
from segkd.models.taps import MODULE, Record, check_tap

OWN = "module"  # what such a network has as `arch`


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
    """Makes a network of a module that takes normalised images (B, 3, H, W).

    Args:
        module: answers logits (B, K, h, w), a dict with ``out``, a tuple that begins with them,
            or an object with ``.logits``.
        taps: by tap name, the path of the submodule that answers it:
            ``{"stage4": "backbone.layer4", "head": "classifier.3"}``. Without any ``stage…`` the
            stages are found by a probe, and so is ``head`` if it is not given: see
            ``segkd.models.found``.
        logits: path of the submodule whose output are the logits, e.g. before up-sampling;
            None: what the module answers.
        normalize: imagenet, none (``x / 255``), or (mean, std) on the scale 0..1.
        divisor: height and width of images must be multiples of it.
        encoder: path of the submodule that counts as encoder for learning rates.

    Raises:
        ConfigError: a path that does not exist.
    """
    config = ModelConfig(arch=OWN, normalize=normalize)
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
                self._hook(hooks, path, lambda out, name=name: record(name, out))
            if self._logits:
                self._hook(hooks, self._logits, found.append)
            answer = self.module(images)
        return self._checked(found[-1] if found else _logits(answer))

    def compute_probe(self, image: Tensor, record: Record) -> Tensor:
        try:
            return self.compute(image, record)
        except SegKDError:
            raise
        except Exception as error:  # whatever the caller's code may raise
            height, width = image.shape[-2:]
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"{self.title} fails on the {height}x{width} image that its taps are looked for "
                f"with: {reason[0]} Say which sizes it takes: segkd.models.module.wrap(module, "
                f"{self.num_classes}, divisor=…), e.g. divisor=512 for 512x512"
            ) from error

    def tap_names(self) -> list[str]:
        return [*self._paths, "logits"]

    def tap_root(self, path: str) -> str:
        # A path with the network's own `module.` before it, as it once had to be given.
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

    def _hook(self, hooks: ExitStack, path: str, take) -> None:
        module = self.module.get_submodule(path)
        handle = module.register_forward_hook(lambda _, __, output: take(output))
        hooks.callback(handle.remove)

    def _checked(self, logits: Any) -> Tensor:
        shape = tuple(getattr(logits, "shape", ()))
        if len(shape) != 4 or shape[1] != self.num_classes:
            raise SegKDError(
                f"{type(self.module).__name__} answered logits of shape {shape}, expected "
                f"(B, {self.num_classes}, h, w). Give the path of the right submodule as `logits`"
            )
        return logits

    @property
    def title(self) -> str:
        return type(self.module).__name__


def _logits(answer: Any) -> Any:
    """The logits in what a module answers."""
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping):
        answer = answer.get("out", answer.get("logits"))
    elif isinstance(answer, tuple | list):
        answer = answer[0]
    else:
        answer = getattr(answer, "logits", None)
    if answer is None:
        raise ConfigError(
            "the module answers neither a tensor, nor a dict with 'out', nor a tuple, nor an "
            "object with .logits. Give the path of the submodule that makes logits as `logits`"
        )
    return answer
