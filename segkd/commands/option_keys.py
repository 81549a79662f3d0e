"""Options of commands: those that stand for a key of the configuration, and their errors."""

from collections.abc import Sequence


def with_option(overrides: Sequence[str], option: str, key: str, value: object) -> list[str]:
    """The overrides, and the key of an option that was given.

    Args:
        overrides: ``key=value`` texts.
        option: its name, for the message.
        key: of the configuration.
        value: as the configuration has it; None: the option was not given.

    Raises:
        ConfigError: the key is given as well, with another value.
    """
    from segkd.errors import ConfigError
    from segkd.yaml_tree import overrides_tree

    if value is None:
        return list(overrides)
    given, path = overrides_tree(overrides), tuple(key.split("."))
    if given.has(path) and (other := given.at(path).plain()) != value:
        raise ConfigError(
            f"{option} means {key}={value}, and {key}={other} is given, too. Leave one of them out"
        )
    return [*overrides, f"{key}={value}"]


def mistake(text: str) -> Exception:
    """The error of a wrong option."""
    from segkd.errors import ConfigError

    return ConfigError(text)
