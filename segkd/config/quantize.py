"""The block ``quantize:``: the student is trained with weights of few bits."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segkd.ops.quantize_kinds import Grid, Per

Bits = Annotated[int, Field(ge=2, le=8)]
_BUCKET_SIZE = 256  # of the paper's scripts


class QuantizeConfig(BaseModel):
    """Weights, and optionally activations, on grids of few values while the student trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Bits = Field(8, description="of a weight; biases and normalisation stay float")
    per: Per = Field("channel", description="what has a grid of its own")
    bucket_size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="weights in a bucket; default: 256"
    )
    grid: Grid = Field("symmetric", description="range: the paper's, which int8 files cannot hold")
    activations: Bits | None = Field(
        None, description="bits of the inputs of these layers; null: float"
    )
    first_and_last: bool = Field(False, description="also the layers next to image and logits")

    @model_validator(mode="after")
    def _bucket_size_of_buckets(self) -> Self:
        if self.bucket_size is not None and self.per != "bucket":
            raise ValueError(
                f"`bucket_size` goes with `per: bucket`, got `per: {self.per}`: set per: bucket, "
                "or remove it"
            )
        return self

    @property
    def bucket(self) -> int:
        """Weights in a bucket."""
        return self.bucket_size or _BUCKET_SIZE
