"""``train:``: which parameters of a run are trained, and which modules are in training mode."""

from fnmatch import fnmatchcase

from torch import nn

from segkd.config.schema import RunConfig
from segkd.engine.setup import Components
from segkd.errors import ConfigError, did_you_mean
from segkd.models.quantized import plain_name


def trainable(config: RunConfig, parts: Components) -> None:
    """Freezes parameters that ``train:`` does not match; their modules stay in eval mode.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    if not config.train:
        return
    named = _named_parameters(parts)
    for pattern in config.train:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(
                f"train: '{pattern}' matches no parameter.{did_you_mean(pattern, named)}"
            )
    for name, parameter in named.items():
        chosen = any(fnmatchcase(name, pattern) for pattern in config.train)
        parameter.requires_grad_(chosen and parameter.requires_grad)


def train_mode(config: RunConfig, parts: Components) -> None:
    """Sets training mode in student and methods, except for modules outside of ``train:``.

    A module with parameters of its own is outside if none of them is matched, one without any and
    without submodules if its name is not. What is around a module that is trained is not outside.
    """
    for prefix, root in (("student", parts.student), ("methods", parts.objective.methods)):
        root.train()
        if not config.train:
            continue
        inner = [(name, module) for name, module in root.named_modules() if module is not root]
        for name, module in inner:
            path = f"{prefix}.{name}"
            names = [f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)]
            # timm's batch norms have submodules as well: an activation and a dropout.
            names = names or ([path] if next(module.children(), None) is None else [])
            module.training = any(fnmatchcase(n, p) for n in names for p in config.train)
        for _, module in reversed(inner):
            module.training |= any(child.training for child in module.children())


def _named_parameters(parts: Components) -> dict[str, nn.Parameter]:
    named = {f"student.{plain_name(name)}": p for name, p in parts.student.named_parameters()}
    methods = parts.objective.methods.named_parameters()
    return named | {f"methods.{name}": parameter for name, parameter in methods}
