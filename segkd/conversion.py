"""Published weights of other code bases in our units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Conversion:
    """A published weight, and the factor that converts it to our units.

    The factor is a product of powers of the sizes by which the published reduction differs: ``N``
    images per device, ``K`` classes, ``C_s`` and ``C_t`` channels, ``h``, ``w``, temperature
    ``T``. ``Conversion(10, {"K": -1, "T": -2})`` means 10/(K·T²).

    Attributes:
        weight: as published.
        powers: exponent of each size, a whole number or ±½.
        note: conditions, e.g. a temperature.
    """

    weight: float
    powers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def at(self, **sizes: float) -> float:
        """Our weight that is equivalent to the published one at these sizes."""
        return self.weight * math.prod(sizes[name] ** power for name, power in self.powers.items())

    def __str__(self) -> str:
        example = {"N": 8, "K": 19, "C_s": 128, "C_t": 512, "h": 64, "w": 128, "T": 1}
        above = [f"{self.weight:g}", *_factors(self.powers, 1)]
        below = _factors(self.powers, -1)
        divisor = "·".join(below) if len(below) < 2 else f"({'·'.join(below)})"
        text = "·".join(above) + (f"/{divisor}" if divisor else "")
        if self.powers:
            sizes = ", ".join(f"{name}={example[name]}" for name in self.powers)
            text += f" = {self.at(**example):.4g} at {sizes}"
        return f"{text} ({self.note})" if self.note else text


def _factors(powers: Mapping[str, float], sign: int) -> list[str]:
    """The sizes with a positive or negative power, written like ``T²`` or ``√h``."""
    signed = {name: power * sign for name, power in powers.items() if power * sign > 0}
    return [_power(name, power) for name, power in signed.items()]


def _power(name: str, power: float) -> str:
    if power == 0.5:
        return f"√{name}"
    return name if power == 1 else name + "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(power)]
