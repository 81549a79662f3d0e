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
from segkd.config.teacher_cache import TeacherCache
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
    kind: Literal["pooled", "flat", "scnn"] = Field(
        "pooled", description="flat: ENet-SAD's form, scnn: SCNN's; for images of one size only"
    )
    channels: PositiveInt = Field(128, description="hidden units")
    size: Size | None = Field(None, description="flat, scnn: height and width of the images")

    @model_validator(mode="after")
    def _size_of_flat(self) -> Self:
        if (self.kind != "pooled") != (self.size is not None):
            kind = "flat" if self.kind == "pooled" else self.kind
            raise ValueError(
                f"`kind: {kind}` is built for one image size and needs it, e.g. {{kind: {kind}, "
                "size: [288, 800]}; `kind: pooled` works with any size and has no such key"
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
        description="the teacher's classes: a dataset's name, or the names; default, with `hf` "
        "and `torchvision`: those of the model",
    )
    to: str | None = Field(None, description="dataset whose classes the data has; default: data")
    map: dict[str, str | None] | Literal["names"] | Path | None = Field(
        None,
        description="{its class: class of the data}, or a YAML file; names: drafted from the names "
        "of both; default: what ships",
    )
    left_over: Literal["renormalise", "void"] = Field(
        "renormalise",
        description="its classes without a counterpart: their probability is divided among the "
        "others, or pixels where one of them is the most probable are void",
    )
    most_left_over: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="of renormalise: pixels with more probability left over are void"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.left_over == "void" and self.most_left_over != 0.9:
            raise ValueError("`most_left_over` is of `left_over: renormalise`. Set one of both")
        return self


class TeacherConfig(Block):
    """A frozen network, a black box, or an ensemble of other entries of ``teachers:``."""

    hf: str = Field(
        "", description="a model of Hugging Face's transformers: an id of the hub, or a folder"
    )
    timm: str = Field(
        "", description="a backbone of timm, features alone: NAME.TAG, hf-hub:ID, or a folder"
    )
    torchvision: str = Field("", description="a segmentation model of torchvision by name")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a model of `hf`"
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
    cache: TeacherCache | None = Field(
        None, description="keep its logits on disk: views or images, see docs/teacher_cache.md"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of its forward pass; auto: bf16 on CUDA, else as `runtime.precision`"
    )
    channels_last: bool | None = Field(
        None, description="its memory format; default: as `runtime.channels_last`"
    )
    input_scale: float = Field(
        1.0,
        gt=0.0,
        le=8.0,
        description="its images are the student's, so much larger: for a teacher that was trained "
        "on larger ones",
    )

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
        self._check_cache()
        self._check_placement()
        return self

    def _check_kind(self) -> None:
        own = self.arch or self.checkpoint
        first = "checkpoint" if self.checkpoint else "arch"
        kinds = (first, "hf", "timm", "torchvision", "ensemble", "black_box")
        given = [key for key in kinds if getattr(self, key)]
        if len(given) != 1:
            got = f". Got {' and '.join(given)}; `{given[0]}: null` removes it" if given else ""
            raise ValueError(
                "give `arch` or `checkpoint` (a network), or `hf`, `timm` or `torchvision` (a "
                "model of that library), or `ensemble` (teachers), or `black_box` (predictions "
                f"only){got}"
            )
        if self.weights and not (own or self.timm or self.torchvision):
            raise ValueError("`weights` is for networks of segkd, timm and torchvision. Remove it")
        if self.encoder != "resnet101" and not own:
            raise ValueError("`encoder` is for networks of segkd. Remove it")
        if self.options and not (own or self.timm or self.hf):
            raise ValueError("`options` is for networks of segkd, and backbones. Remove it")
        if self.trust_remote_code and not self.hf:
            raise ValueError("`trust_remote_code` is for models of `hf`. Remove it")
        if self.black_box and self.normalize != "auto" and not self.black_box.onnx:
            raise ValueError("`normalize`: this `black_box` gets images as bytes. Remove the key")
        named = self.hf or self.torchvision
        if self.class_map and not self.class_map.source and not named:
            raise ValueError("classes: name the teacher's classes, e.g. {from: cityscapes}")

    def _check_cache(self) -> None:
        if self.cache and self.black_box:
            raise ValueError(
                "`cache` is for networks. A `black_box` has its own: black_box: {cache: FOLDER, …}"
            )
        if self.cache and self.ensemble:
            raise ValueError(
                "`cache` is for networks. Give it to the members of this ensemble instead"
            )

    def _check_placement(self) -> None:
        own = ["precision"] * (self.precision != "auto")  # a stored config has all defaults
        own += ["channels_last"] * (self.channels_last is not None)
        own += ["input_scale"] * (self.input_scale != 1)
        own += ["classes"] * bool(self.ensemble and self.classes)
        own += ["normalize"] * bool(self.ensemble and self.normalize != "auto")
        if own and self.ensemble:
            raise ValueError(f"`{own[0]}` is for networks. Give it to the members of this ensemble")
        if own and self.black_box:
            raise ValueError(f"`{own[0]}` is for networks; a `black_box` has its own. Remove it")

    @property
    def library(self) -> str:
        """The model of another library, as its key names it; empty for other teachers."""
        return self.hf or self.timm or self.torchvision

    @property
    def is_network(self) -> bool:
        """Whether it is a network, which ``model`` describes unless it is of another library."""
        return not (self.ensemble or self.black_box)

    def without_queries(self) -> Self:
        """The same for a check, see ``BlackBoxConfig``."""
        box = self.black_box and self.black_box.without_queries()
        return self.model_copy(update={"black_box": box})

    def model(self) -> ModelConfig:
        """The network of a teacher that is one, and not of another library."""
        excluded = {"ensemble", "combine", "loss_temperature", "black_box", "cache"}
        excluded |= {"hf", "timm", "torchvision", "trust_remote_code"}
        excluded |= {"precision", "channels_last", "input_scale"}
        excluded |= {"classes"} if self.class_map else set()
        return ModelConfig(**self.model_dump(exclude=excluded))

    @property
    def class_map(self) -> ClassMap | None:
        """The map of a teacher whose classes differ from those of the data."""
        return self.classes if isinstance(self.classes, ClassMap) else None
