"""The typed configuration of one run. Lengths are in steps, sizes are (height, width)."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from segkd.config.entries import (
    DataByName,
    EntriesByName,
    data_class,
    loss_class,
    method_class,
)
from segkd.config.networks import (
    AuxHeadConfig as AuxHeadConfig,
)
from segkd.config.networks import (
    Beta as Beta,
)
from segkd.config.networks import (
    Block as Block,
)
from segkd.config.networks import (
    ClassMap as ClassMap,
)
from segkd.config.networks import (
    ExistHeadConfig as ExistHeadConfig,
)
from segkd.config.networks import (
    ModelConfig as ModelConfig,
)
from segkd.config.networks import (
    Normalize as Normalize,
)
from segkd.config.networks import (
    Options as Options,
)
from segkd.config.networks import (
    TeacherConfig as TeacherConfig,
)
from segkd.config.other_sets import OtherSet
from segkd.config.quantize import QuantizeConfig
from segkd.data.base import DataConfig, Size
from segkd.errors import ConfigError, did_you_mean
from segkd.losses.config import TaskLossConfig
from segkd.method_config import MethodConfig
from segkd.refusals import dataset_problems, network_problems, problem, raise_all

Data = Annotated[SerializeAsAny[DataConfig], DataByName()]
Losses = Annotated[dict[str, SerializeAsAny[TaskLossConfig]], EntriesByName(loss_class)]
Methods = Annotated[dict[str, SerializeAsAny[MethodConfig]], EntriesByName(method_class)]


class TaskConfig(Block):
    """The student's own loss against the labels."""

    weight: NonNegativeFloat = 1.0
    losses: Losses = Field(default_factory=lambda: {"cross_entropy": {}}, validate_default=True)


class LrFactors(Block):
    """Factors of the learning rate for parts of the training."""

    encoder: NonNegativeFloat = 1.0
    decoder: NonNegativeFloat = 1.0
    adapters: NonNegativeFloat = 1.0


class OptimConfig(Block):
    """The optimiser of the student and of adapters."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of AdamW")
    weight_decay: NonNegativeFloat = 1e-4
    lr_factors: LrFactors = LrFactors()
    clip: PositiveFloat | None = Field(None, description="largest gradient norm of the student")
    accumulate: PositiveInt = Field(1, description="micro-steps per step")


class ScheduleConfig(Block):
    """The learning rate over the steps of a run."""

    name: Literal["poly", "cosine", "constant", "step", "one_cycle"] = "poly"
    power: PositiveFloat = Field(0.9, description="of poly")
    warmup: NonNegativeInt = 0
    min_lr_ratio: float = Field(
        0.0, ge=0.0, le=1.0, description="smallest learning rate over the largest"
    )
    milestones: list[PositiveInt] = Field([], description="step: where the rate falls")
    gamma: float = Field(0.1, gt=0.0, lt=1.0, description="step: factor at each milestone")
    pct_start: float = Field(
        0.3, gt=0.0, lt=1.0, description="one_cycle: share of the steps until optim.lr is reached"
    )
    div_factor: float = Field(
        25.0, ge=1.0, description="one_cycle: begins with optim.lr / div_factor"
    )
    final_div_factor: float = Field(
        1e4, ge=1.0, description="one_cycle: ends with its first rate / final_div_factor"
    )

    @model_validator(mode="after")
    def _keys_of_the_name(self) -> Self:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                "`name: step` and `milestones` need each other, e.g. {name: step, milestones: "
                "[20000, 30000]}"
            )
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"milestones must ascend, without duplicates: got {self.milestones}")
        if self.name == "one_cycle" and self.warmup:
            raise ValueError("one_cycle warms up by itself until `pct_start`: remove `warmup`")
        return self


class LaneRules(BaseModel):
    """Thresholds, smoothing and rounding, by default as in public PyTorch code for CULane."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["python", "matlab"] = Field(
        "python", description="matlab: rounding of the Torch and Matlab code of SCNN and ENet-SAD"
    )
    threshold: float = Field(0.3, ge=0.0, lt=1.0, description="a point's probability is above this")
    existence: float = Field(0.5, ge=0.0, lt=1.0, description="a lane's probability is above this")
    smoothing: PositiveInt = Field(9, description="side of the box filter, odd; 1: none")
    sub_pixel: bool = Field(False, description="points between the pixels of the maps")
    fit: Literal["poly", "spline"] | None = Field(
        None, description="replace each lane by a curve that disregards stray points; null: no"
    )
    fit_tolerance: float = Field(
        0.01, gt=0.0, le=0.5, description="image widths between a point and its curve"
    )
    largest_step: PositiveFloat = Field(
        16.0, description="of a fitted lane between two rows, columns per row"
    )
    iou: list[Annotated[float, Field(ge=0.0, lt=1.0)]] = Field(
        [0.5],
        min_length=1,
        description="of CULane's F1: thresholds; the first gives the score, by which best.pt is "
        "chosen; with several, F1 at each and mF1 are logged",
    )

    @field_validator("iou")
    @classmethod
    def _different(cls, iou: list[float]) -> list[float]:
        if len(set(iou)) < len(iou):
            raise ValueError(f"a threshold stands twice in {iou}: remove one")
        return iou

    @field_validator("smoothing")
    @classmethod
    def _odd(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError(f"a box of side {smoothing} has no centre: use an odd number, e.g. 9")
        return smoothing


class EvalConfig(Block):
    """How and how often the student is evaluated."""

    every: NonNegativeInt = Field(1000, description="steps; 0: only at the end")
    batch_size: PositiveInt = 1
    scales: list[PositiveFloat] = Field([1.0], min_length=1)
    flip: bool = False
    sliding: PositiveInt | Size | None = Field(None, description="window; None: the whole image")
    overlap: float = Field(1 / 3, ge=0.0, lt=1.0, description="of neighbouring windows")
    limit: PositiveInt | None = Field(None, description="evaluate only the first images")
    boundary: bool = Field(False, description="boundary IoU as well")
    lanes: LaneRules = Field(LaneRules(), description="how lanes are decoded from the maps")
    others: dict[str, OtherSet] = Field(
        {}, description="further sets, never seen in training, scored at the end"
    )


class RuntimeConfig(Block):
    """Device, precision, memory format and compilation."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of autocast; fp16 scales the loss"
    )
    threads: PositiveInt | None = Field(
        None, description="CPU threads; None: the cores not used by loader processes"
    )
    deterministic: bool = Field(False, description="refuse non-deterministic algorithms")
    channels_last: bool | None = Field(
        None, description="channels-last memory format; default: on CUDA"
    )
    compile: bool | Literal["student", "teachers", "losses", "max"] = Field(
        False,
        description="torch.compile of student, teachers or the losses of methods; true: of both "
        "networks; max: of all, with tuned kernels and CUDA graphs, for crops of one size",
    )
    compile_backend: str = Field("inductor", description="of torch.compile")
    sync_bn: bool = Field(False, description="batch statistics over all processes; CUDA only")


class LogConfig(Block):
    """Intervals and targets of logging."""

    every: PositiveInt = Field(20, description="steps between lines of metrics.csv")
    tensorboard: bool = True


class EvaluationConfig(Block):
    """The part of a run's configuration that defines how a student is scored."""

    data: Data
    eval: EvalConfig = EvalConfig()
    runtime: RuntimeConfig = RuntimeConfig()


class ForeignEvaluationConfig(EvaluationConfig):
    """How to score a network with weights of another program."""

    student: ModelConfig


def _at_home(out: Path | None) -> Path | None:
    return None if out is None else Path(os.path.expanduser(out))  # not a folder that is called ~


OutFolder = Annotated[Path | None, AfterValidator(_at_home)]


class RunConfig(Block):
    """One training run."""

    out: OutFolder = Field(None, description="run folder; default: runs/<config path>")
    seed: NonNegativeInt = 0
    steps: PositiveInt
    data: Data
    student: ModelConfig
    teachers: dict[str, TeacherConfig] = Field({})
    task: TaskConfig = Field(default_factory=TaskConfig)
    methods: Methods = Field({})
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: float | None = Field(None, gt=0.0, lt=1.0, description="decay of the student's average")
    quantize: QuantizeConfig | None = Field(None, description="train with weights of few bits")
    eval: EvalConfig = EvalConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    log: LogConfig = LogConfig()
    save_every: PositiveInt = Field(500, description="steps between checkpoints")
    init_from: str | None = Field(None, description="run whose last.pt starts this one")
    train: list[str] = Field([], description="patterns of what is trained; empty: everything")

    @model_validator(mode="after")
    def _networks_of_methods(self) -> Self:
        problems = []
        for key, entry in self.methods.items():
            for path, keys in entry.networks().items():
                try:
                    ModelConfig.model_validate(keys)
                except ValidationError as error:
                    problems += network_problems(("methods", key, *path), error, ModelConfig)
        raise_all(problems)
        return self

    @model_validator(mode="after")
    def _other_sets(self) -> Self:
        problems = []
        for name, other in self.eval.others.items():
            try:
                other.data(self.data)
            except ConfigError as error:
                problems.append(problem(("eval", "others", name, "name"), other.name, str(error)))
            except ValidationError as error:
                kind = data_class({"name": other.name or self.data.name})
                problems += dataset_problems(("eval", "others", name), error, other, kind)
        raise_all(problems)
        return self

    @model_validator(mode="after")
    def _teachers_exist(self, info: ValidationInfo) -> Self:
        problems = []
        own = (info.context or {}).get("own_parts", False)
        for key, entry in self.methods.items():
            if not own and entry.teacher and entry.teacher not in self.teachers:
                hint = did_you_mean(entry.teacher, self.teachers) or " `teachers` is empty."
                text = f"unknown teacher '{entry.teacher}'.{hint}"
                problems.append(problem(("methods", key, "teacher"), entry.teacher, text))
        for key, teacher in self.teachers.items():
            others = [name for name in self.teachers if name != key]
            for position, member in enumerate(teacher.ensemble):
                if not own and member not in others:
                    text = f"there is no other teacher '{member}'.{did_you_mean(member, others)}"
                    problems.append(problem(("teachers", key, "ensemble", position), member, text))
        raise_all(problems)
        return self


class RecipeRun(Block):
    """One row of a recipe; ``config`` contains unresolved `run:NAME` references."""

    once: bool = Field(False, description="not repeated over the seeds, e.g. a teacher")
    seed_offset: NonNegativeInt = Field(
        0, description="added to the seeds, for other random weights than those of its teacher"
    )
    unmatched: str | None = Field(
        None, exclude=True, description="why `match` leaves it out, as far as `only` hides that"
    )
    config: RunConfig


class MatchConfig(Block):
    """What runs have in common with the baseline, instead of the number of steps."""

    seconds: float = Field(
        1.0,
        gt=0.0,
        allow_inf_nan=False,
        description="training time of each run over that of the baseline; the number of steps "
        "follows, and what is counted in steps with it",
    )


def _by_name(value: Any) -> Any:
    """``match: seconds`` as ``match: {seconds: 1.0}``."""
    if not isinstance(value, str):
        return value
    if value not in MatchConfig.model_fields:
        raise ValueError(f"got '{value}', expected `seconds` or {{seconds: 1.0}}")
    return {value: MatchConfig.model_fields[value].default}


class RecipeConfig(Block):
    """Runs that depend on each other and share one table; `common:` is merged below each run."""

    title: str = ""
    out: OutFolder = Field(None, description="folder of all runs; default: runs/<config path>")
    seeds: list[NonNegativeInt] = Field([0], min_length=1)
    baseline: str | None = Field(None, description="run that gains are measured against")
    teacher: str | None = Field(None, description="teacher or run that the gap is measured to")
    sort: bool = Field(False, description="rows of the table by falling score, not as written")
    match: Annotated[MatchConfig | None, BeforeValidator(_by_name)] = Field(
        None, description="seconds: each run trains as long as the baseline, not as many steps"
    )
    only: list[str] | None = Field(
        None,
        description="runs to train and compare, with those that they need; default: all",
    )
    shared: bool = Field(
        False, description="several commands at once train the runs, e.g. one per GPU"
    )
    series: dict[str, list[str]] = Field(
        {}, description="{NAME: [runs]}: lines of a plot of scores against labelled images"
    )
    runs: dict[str, RecipeRun] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        teachers = {name for run in self.runs.values() for name in run.config.teachers}
        problems = []
        for key, known in (("baseline", set(self.runs)), ("teacher", teachers | set(self.runs))):
            name = getattr(self, key)
            if name is not None and name not in known:
                text = f"'{name}' is unknown.{did_you_mean(name, known)}"
                problems.append(problem((key,), name, text))
        if self.only == []:
            problems.append(problem(("only",), [], "names no run: write some, or remove it"))
        series: list[tuple[tuple[str, ...], list[str]]] = [
            (("series", title), names) for title, names in self.series.items()
        ]
        for path, names in series:
            if not names:
                problems.append(problem(path, [], "names no run: write some, or remove it"))
        for path, names in [(("only",), self.only or []), *series]:
            for position, name in enumerate(names):
                if name not in self.runs:
                    text = f"there is no run '{name}'.{did_you_mean(name, self.runs)}"
                    problems.append(problem((*path, position), name, text))
        if self.match is not None and self.baseline is None:
            text = "needs `baseline`: the run whose training time the others get"
            problems.append(problem(("match",), "", text))
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(problem(("seeds",), self.seeds, "duplicate seed"))
        raise_all(problems)
        return self
