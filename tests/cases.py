"""Every method that the contract is checked with: registered ones, variants, and the toys."""

from typing import ClassVar

import toys
from pydantic import Field

from segkd import registry
from segkd.methods.at import AT
from segkd.methods.base import Method, MethodConfig
from segkd.methods.cirkd import CIRKD
from segkd.methods.cwd import CWD
from segkd.methods.holistic import Holistic
from segkd.methods.ld import LD
from segkd.methods.rkd import RKD
from segkd.methods.sskd import SSKD


class FeatureCWD(CWD):
    """CWD with an adapter, which its default Config does not need."""

    name = "cwd_features"

    class Config(CWD.Config):
        tap: str = Field("stage4", description="tapped value")


class AnchoredCIRKD(CIRKD):
    """CIRKD with sampled anchors and its second version's channel term."""

    name = "cirkd_anchors"
    scale_free = False  # other positions are drawn from a larger map

    class Config(CIRKD.Config):
        anchors: int = Field(2, description="per class and image")
        weights: dict[str, float] = Field({"channel": 1.0}, description="factors of terms")


class SecondCIRKD(CIRKD):
    """CIRKD's second version: channels, their bank, and a hint after graph reasoning."""

    name = "cirkd_v2"
    exempt: ClassVar = {
        "more_padding": "cells are shares of the map",
        "swapped_axes": "the bank holds vectors over the cells as they were before",
    }

    class Config(CIRKD.Config):
        version: int = Field(2, description="which")
        channel_grid: tuple[int, int] = Field((4, 4), description="rows and columns")
        pixel_queue: int = Field(200, description="pixels")
        region_queue: int = Field(40, description="regions")
        channel_queue: int = Field(60, description="channels")
        channels_per_step: int = Field(20, description="channels")


class HingeCritic(Holistic):
    """The critic with hinge and spectral norm."""

    name = "holistic_hinge"

    class Config(Holistic.Config):
        loss: str = Field("hinge", description="what the critic learns")


class GridRKD(RKD):
    """Relations of patches, which need no labels."""

    name = "rkd_grid"

    exempt: ClassVar = {
        "swapped_axes": "more columns than rows",
        "more_padding": "patches are shares of the map",
        "no_waiting": "patches without a valid position are no nodes",
    }

    class Config(RKD.Config):
        nodes: str = Field("grid", description="what is related")
        grid: tuple[int, int] = Field((2, 3), description="rows and columns")


class GradientAT(AT):
    """Where the task loss is sensitive, instead of where features are large."""

    name = "at_gradient"
    exempt: ClassVar = {
        "half_precision": "the gradient of a half type is one, and rounded",
        "upsampled_maps": "logits depend on the pixels of the image below them",
        "scaled_features": "the image has a fixed scale",
        "mask_not_padding": "without labels there is no loss to differentiate",
    }

    class Config(AT.Config):
        form: str = Field("gradient", description="which kind of attention")


class PositionLD(LD):
    """Rows with the distance of expected columns as well."""

    name = "ld_position"
    exempt: ClassVar = {
        **LD.exempt,
        "any_temperature": "a distance of columns has no T²: the paper has none",
        "more_padding": "columns are shares of the row",
    }

    class Config(LD.Config):
        weights: dict[str, float] = Field({"position": 1.0}, description="factors of terms")


class LaterSSKD(SSKD):
    """After the first phase, on patches, with a part of the wrong pixels."""

    name = "sskd_later"

    class Config(SSKD.Config):
        head_steps: int = Field(1, description="in which the teacher's head is trained")
        nodes: str = Field("grid", description="what is related")
        grid: tuple[int, int] = Field((2, 2), description="rows and columns")
        keep: float = Field(0.5, description="of wrong rows")
        keep_views: float = Field(0.5, description="of wrong pixels")


VARIANTS = (FeatureCWD, AnchoredCIRKD, SecondCIRKD, HingeCritic, GridRKD)
VARIANTS += (GradientAT, PositionLD, LaterSSKD)


def all_methods() -> dict[str, type[Method]]:
    """Every registered method, variants that no default Config reaches, and the toys."""
    return {method.name: method for method in (*registry.methods, *VARIANTS, *toys.METHODS)}


# Default sizes are those of large images.
_QUEUES = {"pixel_queue": 200, "region_queue": 40}
_SMALL = {"cirkd": _QUEUES, "cirkd_anchors": _QUEUES}
_SMALL |= {name: {"width": 8} for name in ("holistic", "holistic_hinge")}


def config_of(method: type[Method]) -> MethodConfig:
    """Its default Config, with smaller networks and banks where that changes nothing else."""
    return method.Config.model_validate(_SMALL.get(method.name, {}))
