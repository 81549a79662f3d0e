"""What the file of a quantised student says of its weights, which are stored as floats."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from segkd.config.quantize import QuantizeConfig

_Path = Annotated[str, Field(max_length=1000)]


class QuantizationFacts(BaseModel):
    """How a student was quantised.

    Attributes:
        settings: the block ``quantize:`` of its run.
        layers: paths of the layers whose weights are on their grids.
        ranges: smallest and largest inputs of these layers; empty if activations are float.
    """

    model_config = ConfigDict(frozen=True)

    settings: QuantizeConfig
    layers: Annotated[list[_Path], Field(min_length=1, max_length=100_000)]
    ranges: dict[_Path, tuple[FiniteFloat, FiniteFloat]] = {}

    @model_validator(mode="after")
    def _ranges_of_activations(self) -> Self:
        expected = set(self.layers) if self.settings.activations else set()
        if set(self.ranges) != expected:
            raise ValueError("ranges do not belong to the layers")
        return self

    @property
    def fits_int8(self) -> bool:
        """Whether weights are integers times one scale per output channel or tensor."""
        return self.settings.grid == "symmetric" and self.settings.per != "bucket"

    def __str__(self) -> str:
        settings = self.settings
        size = f" of {settings.bucket}" if settings.per == "bucket" else ""
        inputs = f", {settings.activations}-bit inputs" if settings.activations else ""
        return f"{settings.bits}-bit weights per {settings.per}{size}{inputs}"
