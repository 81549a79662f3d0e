"""What a check of a dataset reports."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``error``) or unusual (``warning``)."""

    level: Literal["error", "warning"]
    file: str
    text: str
    repair: str
