"""The message on options that a network does not have."""

from collections.abc import Collection

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError, did_you_mean


def unknown_option(
    key: str, known: Collection[str], config: ModelConfig, *, has_encoder: bool = True
) -> ConfigError:
    """The error about an option that the configured architecture does not have.

    Options of a `base:` file stay when only ``arch`` is changed, so a user may never have written
    them: the message says how to remove all that belongs to the other network.

    Args:
        key: the option.
        known: those of the architecture.
        config: the network.
        has_encoder: whether it can have pretrained weights of an encoder.
    """
    hint = did_you_mean(key, known) or " It has no options: remove it."
    keys = ["options"] if has_encoder or config.weights is None else ["options", "weights"]
    nulls = " and ".join(f"`{name}: null`" for name in keys)
    line = " ".join(f"student.{name}=null" for name in keys)
    return ConfigError(
        f"options.{key}: arch '{config.arch}' has no such option.{hint} If it is left from the "
        f"network of a `base:` file: {nulls} beside `arch` removes it; on the command line {line}"
    )
