"""The networks of a configuration: student and teachers."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from segkd.config.black_box import BlackBoxConfig
from segkd.data.base import Size


class Block(BaseModel):
    """A part of a configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AuxHeadConfig(Block):
    """An FCN head on an encoder stage, trained with the task loss, gone at export."""

    tap: str = "stage4"
    weight: NonNegativeFloat = 0.4
    channels: PositiveInt | None = Field(None, description="default: a quarter of the tap's")


class ExistHeadConfig(Block):
    """A branch that predicts which lanes exist: a part of the network, kept at export."""

    tap: str | None = Field(None, description="default: the deepest stage")
    kind: Literal["pooled", "flat"] = Field(
        "pooled", description="flat: the published form, for images of one size only"
    )
    channels: PositiveInt = Field(128, description="hidden units")
    size: Size | None = Field(None, description="flat: height and width of the images")

    @model_validator(mode="after")
    def _size_of_flat(self) -> Self:
        if (self.kind == "flat") != (self.size is not None):
            raise ValueError(
                "`kind: flat` is built for one image size and needs it, e.g. {kind: flat, size: "
                "[288, 800]}; `kind: pooled` works with any size and has no such key"
            )
        return self


def _without_nulls(options: dict[str, Any]) -> dict[str, Any]:
    """A run of a recipe with another architecture removes inherited options by `null`."""
    return {name: value for name, value in options.items() if value is not None}


Options = Annotated[dict[str, Any], AfterValidator(_without_nulls)]
Beta = Annotated[float, Field(ge=0, lt=1)]  # with 1 the average would never change
Normalize = Literal["auto", "imagenet", "none"] | tuple[list[float], list[float]]


class ModelConfig(Block):
    """A network: one of our own, or any architecture of segmentation-models-pytorch."""

    arch: str = Field("", description="see `segkd list models`; default: the checkpoint's")
    encoder: str = Field("resnet18", description="encoder of segmentation-models-pytorch")
    weights: str | None = Field(None, description="of the encoder: imagenet, a hub id, or a file")
    checkpoint: str | None = Field(None, description="file, run folder, run:NAME, pretrained:NAME")
    normalize: Normalize = Field("auto", description="auto: as the weights were trained")
    aux_head: AuxHeadConfig | None = None
    exist_head: ExistHeadConfig | None = None
    options: Options = Field({}, description="of the architecture; null: its default")
    classes: list[str] = Field([], description="of a checkpoint without names, in its order")

    @model_validator(mode="after")
    def _is_given(self) -> Self:
        if not (self.arch or self.checkpoint):
            raise ValueError("give `arch` (a network), or `checkpoint` (all of it from a file)")
        return self


class ClassMap(Block):
    """Which class of the data each class of a teacher is."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    source: str | list[str] = Field(
        "",
        alias="from",
        description="the teacher's classes: a dataset's name, or the names; default, with `hf`: "
        "those of the model",
    )
    to: str | None = Field(None, description="dataset of the shipped table; default: data")
    map: dict[str, str | None] | Path | None = Field(
        None, description="{its class: class of the data}, or a YAML file; default: what ships"
    )


class TeacherConfig(Block):
    """A frozen network, a black box, or an ensemble of other entries of ``teachers:``."""

    hf: str = Field(
        "", description="a model of Hugging Face's transformers: an id of the hub, or a folder"
    )
    arch: str = ""
    encoder: str = "resnet101"
    weights: str | None = None
    checkpoint: str | None = None
    normalize: Normalize = "auto"
    options: Options = {}
    classes: list[str] | ClassMap = Field(
        [],
        description="of a checkpoint without names, in its order; {from: cityscapes}: it knows "
        "others than the data",
    )
    ensemble: list[str] = Field([], description="names of other teachers")
    combine: Literal["mean", "logits", "by_loss", "random"] = Field(
        "mean",
        description="of an ensemble: mean of probabilities or of logits; by_loss: mean weighted at "
        "each pixel by the members' loss on the label; random: one member per step",
    )
    loss_temperature: PositiveFloat = Field(
        1.0, description="of by_loss: small for the best member of each pixel, large for the mean"
    )

    black_box: BlackBoxConfig | None = Field(None, description="it only returns predictions")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.combine != "mean" and not self.ensemble:
            raise ValueError(
                f"`combine: {self.combine}` is of an ensemble: name its members, e.g. "
                "{ensemble: [first, second], combine: by_loss}"
            )
        if self.loss_temperature != 1 and self.combine != "by_loss":
            raise ValueError("`loss_temperature` is of `combine: by_loss`. Set both, or neither")
        self._check_kind()
        return self

    def _check_kind(self) -> None:
        kinds = (self.arch or self.checkpoint, self.hf, self.ensemble, self.black_box)
        if sum(map(bool, kinds)) != 1:
            raise ValueError(
                "give `arch` or `checkpoint` (a network), or `hf` (a model of transformers), or "
                "`ensemble` (teachers), or `black_box` (predictions only)"
            )
        for key in ("weights", "options"):
            if not (self.arch or self.checkpoint) and getattr(self, key):
                raise ValueError(f"`{key}` is for networks of segkd. Remove it")
        if self.black_box and self.normalize != "auto" and not self.black_box.onnx:
            raise ValueError("`normalize`: this `black_box` gets images as bytes. Remove the key")
        if self.class_map and not self.class_map.source and not self.hf:
            raise ValueError("classes: name the teacher's classes, e.g. {from: cityscapes}")

    @property
    def is_network(self) -> bool:
        """Whether it is a network of segkd, which ``model`` describes."""
        return not (self.ensemble or self.black_box or self.hf)

    def without_queries(self) -> Self:
        """The same for a check, see ``BlackBoxConfig``."""
        box = self.black_box and self.black_box.without_queries()
        return self.model_copy(update={"black_box": box})

    def model(self) -> ModelConfig:
        """The network of a teacher that is one."""
        excluded = {"ensemble", "combine", "loss_temperature", "hf", "black_box"}
        excluded |= {"classes"} if self.class_map else set()
        return ModelConfig(**self.model_dump(exclude=excluded))

    @property
    def class_map(self) -> ClassMap | None:
        """The map of a teacher whose classes differ from those of the data."""
        return self.classes if isinstance(self.classes, ClassMap) else None
