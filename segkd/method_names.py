"""Attributes of methods that version 0.1 named otherwise, for methods of other packages."""

import warnings

from segkd.errors import FormerName

_FORMER = {
    "own_loss": "inner_loss",
    "own_steps": "inner_steps",
    "own_parameters": "inner_parameters",
    "own_optimizer": "inner_optimizer",
    "taught": "taps_with_gradient",
}
_GONE = {"finish": "is no longer called: nothing changes the student at the end of a run"}


def take_former_names(kind: type) -> None:
    """Gives attributes of a new class that have former names their current ones, and warns.

    Args:
        kind: called from the ``__init_subclass__`` of its base.
    """
    own = kind.__dict__
    told = {old: f"is now called `{new}`" for old, new in _FORMER.items() if new not in own}
    for old, text in (told | _GONE).items():
        if old in own:
            if old in _FORMER:
                setattr(kind, _FORMER[old], own[old])
            text = f"{kind.__module__}.{kind.__name__}.{old} {text}"
            warnings.warn(text, FormerName, stacklevel=3)
