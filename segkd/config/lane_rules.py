"""How lanes are read off probability maps: the block ``eval.lanes`` of a configuration."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class LaneRules(BaseModel):
    """Thresholds, smoothing and rounding, by default as in public PyTorch code for CULane."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["python", "matlab"] = Field(
        "python", description="matlab: rounding of the Torch and Matlab code of SCNN and ENet-SAD"
    )
    threshold: float = Field(0.3, ge=0.0, lt=1.0, description="a point has more than this")
    existence: float = Field(0.5, ge=0.0, lt=1.0, description="a lane has more than this")
    smoothing: PositiveInt = Field(9, description="side of the box filter, odd; 1: none")
    sub_pixel: bool = Field(False, description="points between the pixels of the maps")

    @field_validator("smoothing")
    @classmethod
    def _odd(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError(f"a box of side {smoothing} has no middle: use an odd number, e.g. 9")
        return smoothing
