"""The key ``cache`` of a teacher whose outputs are kept on disk."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

VIEWS = 8


class CacheConfig(BaseModel):
    """What is stored, and where; ``views`` and ``images`` alone stand for ``{kind: …}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["views", "images"] = Field(
        "views",
        description="views: outputs for a fixed number of augmented views of each image, exact up "
        "to 16 bits; images: those for whole images, which move with the crops, an approximation",
    )
    views: PositiveInt | None = Field(
        None, description=f"augmented views of each image, of `kind: views`; default: {VIEWS}"
    )
    dir: Path | None = Field(
        None, description="folder; default: $SEGKD_TEACHER_CACHE, or runs/teacher_cache"
    )
    seed: NonNegativeInt = Field(
        0, description="of the views, instead of the run's, so that runs of all seeds share them"
    )

    @model_validator(mode="after")
    def _of_views(self) -> Self:
        if self.kind == "images":
            for key in ("views", "seed"):
                # A stored config has all keys, also those with their default values.
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"`{key}` is of `kind: views`. Remove it")
        return self

    @property
    def count(self) -> int:
        """Number of stored outputs of each image."""
        return 1 if self.kind == "images" else self.views or VIEWS


def _spelled_out(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


TeacherCache = Annotated[CacheConfig, BeforeValidator(_spelled_out)]
