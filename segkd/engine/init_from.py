"""``init_from``: a run whose student and methods start from the training state of another run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from segkd import checkpoint
from segkd.errors import CheckpointError, ConfigError
from segkd.methods.base import Method
from segkd.methods.shared.peers import PeerKeys
from segkd.models.class_names import order_of
from segkd.modules.module_map import ModuleMap
from segkd.yaml_tree import typed

_ANY = 10**6  # steps of a run that is long enough for any preparation


def initialize_from(
    run: str, student: nn.Module, methods: ModuleMap[Method], classes: Sequence[str]
) -> list[str]:
    """Initialises the student and methods with the same entry name from another run.

    Args:
        run: folder of the other run.
        student: gets that run's weights.
        methods: by entry; those that the other run has get its state.
        classes: names in the order of their ids.

    Returns:
        Warnings.

    Raises:
        ConfigError: weights instead of a run, or that run has no last.pt, or it is not a training
            state.
        CheckpointError: that run has other classes, or another network.
    """
    folder = Path(run).expanduser()
    state = folder / "checkpoints" / "last.pt"
    if run.startswith("pretrained:") or folder.is_file():
        raise ConfigError(
            f"init_from: {run} is the weights of a network, and init_from takes the folder of a "
            "run, with the state of its methods. To begin with these weights: "
            f"{typed('student.checkpoint', run)}"
        )
    if not state.is_file():
        raise ConfigError(
            f"init_from: there is no {state}, so {run} is no run, or one that was not trained. "
            "Train it first, or write both into a recipe, which trains one after the other: "
            'init_from: "run:NAME"'
        )
    payload = checkpoint.load(state)
    if payload["format"] != checkpoint.FORMAT:
        raise ConfigError(f"init_from: {run} has no training state")
    warnings = _same_classes(run, payload, classes)
    checkpoint.restore(student, payload["student"], f"init_from: {run}: student")
    earlier = payload["objective"]
    for name, method in methods.items():
        prefix = f"methods.{name}."
        found = {k.removeprefix(prefix): v for k, v in earlier.items() if k.startswith(prefix)}
        if found:
            checkpoint.restore(method, found, f"init_from: {run}: methods.{name}")
        elif method.preparation_steps(_ANY) == 0:
            warnings.append(
                f"init_from: {run} has no methods.{name}, whose own layers learn for 0 steps here: "
                "it teaches with random ones. Name the entry as there, or give them steps"
            )
        elif peers := _untrained_peers(method):
            warnings.append(
                f"init_from: {run} has no methods.{name}, so that its peers ({', '.join(peers)}) "
                "begin untrained beside a student that is trained: at first they teach noise. "
                f"Begin later (methods.{name}.start=STEPS), or give them weights: "
                f"methods.{name}.peers={{{peers[0]}: {{checkpoint: FILE}}}}"
            )
    return warnings


def _untrained_peers(method: Method) -> list[str]:
    """Names of the networks beside the student that no checkpoint was given for."""
    if not isinstance(method.config, PeerKeys):
        return []
    return [peer for peer, keys in method.config.by_name().items() if not keys.get("checkpoint")]


def _same_classes(run: str, payload: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Warnings if the other run does not name its classes.

    Its student and the state of methods are used by class id, so that ids must mean the same.

    Raises:
        CheckpointError: the classes are others, or in another order.
    """
    given = payload.get("classes")
    best = Path(run).expanduser() / "checkpoints" / "best.pt"
    if given is None and best.is_file():  # an older last.pt has no names
        given = checkpoint.load(best).get("classes")
    if given is None:
        return [
            f"init_from: {run} does not name its classes: they are assumed to be those of this run"
        ]
    order = order_of(given, classes, f"init_from: {run}")
    moved = next((new for new, old in enumerate(order) if new != old), None)
    if moved is not None:
        raise CheckpointError(
            f"init_from: {run} has the classes of the data in another order: {moved} is "
            f"'{given[moved]}' in that run and '{classes[moved]}' in this one. Declare the classes "
            "of the data in the order of that run, or start from its student alone, which is "
            "reordered: "
            f"{typed('student.checkpoint', best)}"
        )
    return []
