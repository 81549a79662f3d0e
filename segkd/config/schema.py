"""The typed configuration of one run. Lengths are in steps, sizes are (height, width)."""

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
)

from segkd import registry
from segkd.data.base import DataConfig, Size
from segkd.losses.base import TaskLossConfig
from segkd.methods.base import MethodConfig


class Block(BaseModel):
    """A part of a configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AuxHeadConfig(Block):
    """An FCN head on an encoder stage, trained with the task loss, gone at export."""

    tap: str = "stage4"
    weight: NonNegativeFloat = 0.4
    channels: PositiveInt | None = Field(None, description="default: a quarter of the tap's")


class ModelConfig(Block):
    """A network: one of our own, or any architecture of segmentation-models-pytorch."""

    arch: str = Field(description="see `segkd list models`")
    encoder: str = Field("resnet18", description="encoder of segmentation-models-pytorch")
    weights: str | None = Field(None, description="of the encoder: imagenet, a hub id, or a file")
    checkpoint: str | None = Field(None, description="file, run folder, run:NAME, pretrained:NAME")
    normalize: Literal["imagenet", "none"] | tuple[list[float], list[float]] = "imagenet"
    aux_head: AuxHeadConfig | None = None
    options: dict[str, Any] = Field({}, description="further arguments of the architecture")


class TeacherConfig(Block):
    """A frozen network, or an ensemble of other entries of ``teachers:``."""

    arch: str = ""
    encoder: str = "resnet101"
    weights: str | None = None
    checkpoint: str | None = None
    normalize: Literal["imagenet", "none"] | tuple[list[float], list[float]] = "imagenet"
    options: dict[str, Any] = {}
    ensemble: list[str] = Field([], description="names of other teachers")

    def model(self) -> ModelConfig:
        return ModelConfig(**self.model_dump(exclude={"ensemble"}))


class TaskConfig(Block):
    """The student's own loss against the labels."""

    weight: NonNegativeFloat = 1.0
    losses: dict[str, SerializeAsAny[TaskLossConfig]] = Field(
        default_factory=lambda: {"cross_entropy": {}}, validate_default=True
    )

    @field_validator("losses", mode="before")
    @classmethod
    def _typed(cls, entries: Any) -> Any:
        return typed_entries(entries, lambda key, _: registry.losses.get(key))


class LrFactors(Block):
    """Factors of the learning rate for parts of the training."""

    encoder: NonNegativeFloat = 1.0
    decoder: NonNegativeFloat = 1.0
    adapters: NonNegativeFloat = 1.0


class OptimConfig(Block):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-4
    lr_factors: LrFactors = LrFactors()
    clip: PositiveFloat | None = Field(None, description="largest gradient norm of the student")
    accumulate: PositiveInt = Field(1, description="micro-steps per step")


class ScheduleConfig(Block):
    name: Literal["poly", "cosine", "constant"] = "poly"
    power: PositiveFloat = 0.9
    warmup: NonNegativeInt = 0
    floor: float = Field(0.0, ge=0.0, le=1.0, description="smallest share of the learning rate")


class EvalConfig(Block):
    every: NonNegativeInt = Field(1000, description="steps; 0: only at the end")
    batch_size: PositiveInt = 1
    scales: list[PositiveFloat] = Field([1.0], min_length=1)
    flip: bool = False
    sliding: PositiveInt | Size | None = Field(None, description="window; None: the whole image")
    overlap: float = Field(1 / 3, ge=0.0, lt=1.0, description="of neighbouring windows")
    limit: PositiveInt | None = Field(None, description="evaluate only the first images")


class RuntimeConfig(Block):
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: PositiveInt | None = Field(None, description="CPU threads; None: torch's choice")
    deterministic: bool = Field(False, description="refuse algorithms that vary between runs")


class LogConfig(Block):
    every: PositiveInt = Field(20, description="steps between lines of metrics.csv")
    tensorboard: bool = True


class RunConfig(Block):
    """One training run."""

    out: Path | None = Field(None, description="run folder; default: runs/<config path>")
    seed: NonNegativeInt = 0
    steps: PositiveInt
    data: SerializeAsAny[DataConfig]
    student: ModelConfig
    teachers: dict[str, TeacherConfig] = {}
    task: TaskConfig = Field(default_factory=TaskConfig)
    methods: dict[str, SerializeAsAny[MethodConfig]] = {}
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: float | None = Field(None, gt=0.0, lt=1.0, description="decay of the student's average")
    eval: EvalConfig = EvalConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    log: LogConfig = LogConfig()
    save_every: PositiveInt = Field(500, description="steps between checkpoints")
    init_from: str | None = Field(None, description="run whose last.pt starts this one")
    train: list[str] = Field([], description="patterns of what is trained; empty: everything")

    @field_validator("data", mode="before")
    @classmethod
    def _typed_data(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("name"), str):
            return DataConfig.model_validate(value)
        return registry.datasets.get(value["name"]).Config.model_validate(value)

    @field_validator("methods", mode="before")
    @classmethod
    def _typed_methods(cls, entries: Any) -> Any:
        def config_class(key: str, value: Any) -> type:
            name = value.get("method") if isinstance(value, dict) else None
            return registry.methods.get(name if isinstance(name, str) and name else key)

        return typed_entries(entries, config_class)


def typed_entries(entries: Any, owner: Any) -> Any:
    """Turns {name: plain mapping} into {name: the owner's Config}; ``owner(key, value)``."""
    if not isinstance(entries, dict):
        return entries
    typed = {}
    for key, value in entries.items():
        plain = {} if value is None else value
        is_plain = isinstance(plain, dict)
        typed[key] = owner(key, plain).Config.model_validate(plain) if is_plain else plain
    return typed
