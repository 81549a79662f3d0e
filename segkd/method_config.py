"""The keys of an entry under ``methods:`` that all methods share."""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


class AutoWeight(BaseModel):
    """An automatic weight, ``weight: {auto: 0.3}``: see ``engine.auto_weight``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    auto: PositiveFloat = Field(
        description="norm of the entry's gradient at its taps over that of the task loss"
    )
    every: PositiveInt = Field(10, description="steps between measurements")
    smoothing: float = Field(
        0.8, ge=0, lt=1, description="share of the old logarithm that a measurement keeps"
    )
    freeze: PositiveInt | None = Field(None, description="steps after which the weight stays")


Weight = NonNegativeFloat | Literal["paper"] | AutoWeight


class MethodConfig(BaseModel):
    """Keys of every entry under ``methods:``. A method's own config class adds further keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field("", description="name of the method; default: the entry's own name")
    teacher: str = Field("", description="entry of `teachers:`; default: the only one")
    weight: Weight = Field(
        1.0, description="factor of all terms; paper: the published one; {auto: 0.3}: automatic"
    )
    weights: dict[str, NonNegativeFloat] = Field({}, description="factors of single terms")
    start: NonNegativeInt = Field(0, description="first step at which the method acts")
    warmup: NonNegativeInt = Field(0, description="steps in which the weight rises from 0")
    decay: Literal["none", "linear", "cosine"] = Field("none", description="fall to 0 at the end")
    mask: Literal["valid", "not_padding"] = Field(
        "valid", description="`not_padding` keeps void pixels"
    )
    adapter_warmup: NonNegativeInt | None = Field(
        None,
        description="steps in which only the method's own layers learn, and then as many in which "
        "its gradient rises; default: 2 % of the run, if it has such layers",
    )
    pseudo_labels: float | None = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="probability above which the teacher's class is the label of images without "
        "one, if a method needs labels; null: it skips them",
    )

    def networks(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """Networks that the entry describes by keys as of ``student:``, by the path of the keys."""
        return {}
