"""The training loop: prepare → teacher → student → losses → update → inner losses → banks."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segkd.checkpoint import restore
from segkd.config.schema import RunConfig
from segkd.data.loader import TrainLoader
from segkd.data.transfer import Ahead, lane_for
from segkd.engine import placement
from segkd.engine.auto_weight import PullMeter
from segkd.engine.derivatives import differentiating
from segkd.engine.objective import Weighted, acts_after_step, with_zero_gradients
from segkd.engine.optim import (
    EMA,
    build_optimizer,
    freeze_unreached,
    lr_share,
    parameter_groups,
    require_grad,
    set_lr,
)
from segkd.engine.peers import Peers
from segkd.engine.records import LossMeter
from segkd.engine.run_loader import run_loader
from segkd.engine.setup import Components
from segkd.engine.single_value import single_value_explained
from segkd.engine.step_record import StepRecord
from segkd.engine.stepper import Stepper
from segkd.engine.timing import StepTimer
from segkd.engine.trained_parts import train_mode, trainable
from segkd.engine.unlabeled import confident_shares, require_labels
from segkd.errors import ConfigError
from segkd.methods.base import AutoWeight, Method
from segkd.models.network import Network
from segkd.models.quantized import plain_name
from segkd.models.twice_differentiable import missing_derivatives_explained
from segkd.runtime import Runtime, generator, preserved_rng, rng_state, set_rng_state
from segkd.structures import Batch, Outputs


class Trainer:
    """Student, objective and optimisers of one run, and the training step.

    Args:
        config: the run.
        parts: its datasets, networks and losses; they are moved to the device.
        runtime: processes and device.

    Attributes:
        step: number of steps done.
        terms: names of all terms that the run can log.
        frozen: names of parameters without a gradient of any loss.
        confident: by entry, the share of pseudo labels in the first batch's unlabelled pixels.
        waiting: called about once per second while waiting for loader processes; may raise.

    Raises:
        ConfigError: losses, data and batch size do not fit together.
    """

    def __init__(self, config: RunConfig, parts: Components, runtime: Runtime) -> None:
        self.config, self.parts, self.runtime = config, parts, runtime
        self.student, self.objective = parts.student, parts.objective
        self.methods: dict[str, Method] = dict(self.objective.methods.items())
        self.peers = Peers(self.methods)
        for module in (self.student, parts.teachers, self.objective):
            module.to(runtime.device)
        networks = self.student, parts.teachers, *self.peers.networks.values()
        self._channels_last = placement.set_memory_format(config.runtime, runtime.device, *networks)
        self.step, self.timer, self.tally = 0, StepTimer(runtime.device), LossMeter()
        self._meter: PullMeter | None = None
        self.waiting: Callable[[], None] = lambda: None
        trainable(config, parts)
        self.own = self._inner_steppers()
        runtime.broadcast(self._tensors())
        self.quantizer = parts.quantizer
        self._plan = placement.compile_losses(config, self.objective, runtime)
        self.terms, self.frozen = self._dry_step()
        parts.notes += [*self._plan.notes, *self.objective.uncompiled()]
        self.optimizer = build_optimizer(config.optim, self._groups())
        self.peers.start(config)
        scaler, others = runtime.grad_scaler(), self.peers.optimizers.values()
        self.stepper = Stepper(self.optimizer, scaler, "the student", others)
        self.ema = EMA(self.student, config.ema) if config.ema else None
        self._remembers = bool(self.own) or any(map(acts_after_step, self.methods.values()))
        self._forward = runtime.distribute(self.student)
        placement.compile_networks(self._plan, parts.taps, *networks)

    @property
    def network(self) -> Network:
        """The network to evaluate and save: the student, or its moving average."""
        if self.ema is None:
            return self.student
        assert isinstance(self.ema.average, Network)  # a copy of the student
        return self.ema.average

    def steps(self) -> Generator[None, None, None]:
        """Trains from the current step to the last; yields after each step.

        Raises:
            SegKDError: the data, the loss or the device fails.
        """
        config, micro_steps = self.config, self.config.optim.accumulate
        with preserved_rng():  # libraries may draw random numbers when they are set up
            loader = self._loader(self.step, config.steps, config.data.workers)
            batches = iter(loader)
        self.tally.skipped, loader.workers.waiting = loader.skipped, self.waiting
        train_mode(config, self.parts)
        placed = Ahead(batches, self._placed, Batch.tensors, lane_for(self.runtime.device))
        with contextlib.closing(placed):  # ends the loader processes
            while self.step < config.steps:
                with self.timer.step():
                    with self.timer.part("data", host=True):
                        group = [next(placed) for _ in range(micro_steps)]
                    self._train_step(group)
                self.step += 1
                yield

    # -- one step ------------------------------------------------------------------------------

    def _train_step(self, batches: list[Batch]) -> None:
        self._plan.begin_step()
        share = lr_share(self.config.schedule, self.step, self.config.steps)
        set_lr(self.optimizer, share)
        self.peers.set_lr(share)
        self._meter = self._pull_meter(self.objective.measured(self.step))
        seen: list[StepRecord] = []
        for number, batch in enumerate(batches, start=1):
            with self._gradients_stay_local(number < len(batches)):
                record = self._micro_step(batch, len(batches))
            if record is not None:
                seen.append(record)
        with self.timer.part("update"):
            moved = self._update()
        for name in self.own:
            if self.objective.inner_active(name, self.step):
                with self.timer.part(f"method/{name}"):
                    self._inner_steps(name, seen)
        if self._meter is not None:
            self.objective.auto.update(self._meter.pulls())
        if self.quantizer is not None:
            self.quantizer.after_step(self.runtime)
        if moved and self.ema is not None:
            self.ema.update(self.student)
            self.peers.update_averages()
        if self._remembers:
            with torch.no_grad():
                for item in seen:
                    self.objective.after_step(item, self.step)

    def _micro_step(self, batch: Batch, micro_steps: int) -> StepRecord | None:
        """Forward and backward of one batch; returns a record if a method uses it later."""
        batch = self.objective.prepare(batch, self.step, self.timer)
        with self.timer.part("teacher"):
            targets = self._taught(batch, self.step)
        with self.runtime.autocast(), self._measurable():
            with self.timer.part("student"):
                outputs = self._forward(batch.images, taps=self.parts.taps)
            peers = self.peers.outputs(batch.images, self.timer)
            views: dict[str, Outputs] = {}
            terms = self.objective.terms(
                outputs, targets, batch, self.step, self.timer, views=views, peers=peers
            )
        if self._meter is not None:
            with self.timer.part("weights"):
                self._measure(self._meter, outputs, views, terms)
        self.tally.add(self.step, terms, targets)
        with self.timer.part("backward"):
            self._backward(terms, outputs, micro_steps)
        return StepRecord(outputs.detach(), targets, batch) if self._remembers else None

    def _taught(self, batch: Batch, step: int | None = None) -> dict[str, Outputs]:
        """The outputs of all teachers, or of those that teach at ``step``."""
        draw = partial(generator, self.config.seed, self.step, "teachers")  # equal on all processes
        return self.parts.taught(batch, draw, step, self.own)

    def _backward(self, terms: list[Weighted], outputs: Outputs, micro_steps: int) -> None:
        total = self.objective.total(terms) / micro_steps
        if len(self.objective.active(self.step)) < len(self.methods):
            total = with_zero_gradients(total, outputs)
        if total.requires_grad:  # not if nothing is trained before an entry's first step
            self.stepper.backward(total)

    def _pull_meter(self, methods: Mapping[str, Method]) -> PullMeter | None:
        """Measures gradient ratios of ``methods`` in this step; None without any."""
        if not methods:
            return None
        return PullMeter(methods, self.runtime, self.stepper.scaler.get_scale())

    def _measurable(self) -> contextlib.AbstractContextManager[None]:
        """Eager mode for measuring: what is compiled has no graph between taps and losses."""
        idle = self._meter is None
        return contextlib.nullcontext() if idle else placement.uncompiled(self.config.runtime)

    def _measure(
        self,
        meter: PullMeter,
        outputs: Outputs,
        views: Mapping[str, Outputs],
        terms: list[Weighted],
    ) -> None:
        losses = self.objective.by_entry(terms)
        task = losses["task"] * self.objective.task_weight
        meter.add(outputs, views, task, losses)

    def _update(self) -> bool:
        """The student's optimiser step; False if skipped because fp16 gradients overflowed."""
        self.runtime.reduce_gradients([*self.objective.adapters(), *self.peers.parameters()])
        return self.stepper.step(self.config.optim.clip)

    def _inner_steps(self, name: str, seen: list[StepRecord]) -> None:
        """Trains a method's inner parameters on the records of the step."""
        method, stepper = self.methods[name], self.own[name]
        parameters = stepper.parameters()
        require_grad(parameters, True)
        for turn in range(method.inner_steps):
            for item in seen:
                with self.runtime.autocast():
                    terms = self.objective.inner_loss(name, item, self.step, turn)
                self.tally.add(self.step, terms)
                stepper.backward(self.objective.total(terms) / len(seen))
            self.runtime.reduce_gradients(parameters)
            stepper.step()
        require_grad(parameters, False)

    # -- preparation ---------------------------------------------------------------------------

    def _dry_step(self) -> tuple[list[str], list[str]]:
        """One forward and backward pass without side effects.

        Freezes parameters without a gradient of any loss: DDP raises on them, and weight decay
        would change them.

        Returns:
            Names of all terms, and of the frozen parameters.
        """
        batch = self._placed(next(iter(self._loader(0, 1, workers=0))))
        images, parts = len(batch.images), self.runtime.world * self.config.optim.accumulate
        explained = single_value_explained(images, 2 * parts)
        derivatives = missing_derivatives_explained(differentiating(self.methods))
        with explained, derivatives, self._without_trace(), self.runtime.autocast():
            batch = self.objective.prepare(batch, 0, everything=True)
            require_labels(self.objective, self.parts.train_set, batch)
            targets = self._taught(batch)
            self.parts.notes += self.parts.teachers.silent(targets)
            self.confident = confident_shares(self.methods, batch, targets)
            outputs = self.student(batch.images, taps=self.parts.taps)
            peers = self.peers.outputs(batch.images)
            terms = self.objective.terms(outputs, targets, batch, 0, everything=True, peers=peers)
            if not terms:
                raise ConfigError("nothing to minimise: task.weight is 0 and there is no method")
            self.objective.check_weights(terms)
            self.objective.total(terms).backward()
            seen = StepRecord(outputs.detach(), targets, batch)
            for name in self.own:
                terms += self.objective.inner_loss(name, seen, 0, 0)
            if self.quantizer is not None:
                self.quantizer.note(self.runtime)
        if self.quantizer is not None:
            self.quantizer.begin()
        frozen = [*freeze_unreached(self.student), *freeze_unreached(self.objective)]
        return [weighted.name for weighted in terms], [plain_name(name) for name in frozen]

    @contextlib.contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Training mode; buffers and random states are restored afterwards."""
        train_mode(self.config, self.parts)
        modules = (self.student, self.objective)
        buffers = [(b, b.clone()) for module in modules for b in module.buffers()]
        with preserved_rng():
            yield
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def pulls(self, batches: int = 3) -> dict[str, float | None]:
        """Gradient ratios of each entry to the task loss, without its weight.

        Args:
            batches: number of batches to average over; nothing is trained.

        Returns:
            Pulls by entry, see ``engine.auto_weight``; None if the student has no gradient of the
            entry, or of the task loss.
        """
        methods = {
            name: method for name, method in self.methods.items() if method.taps_with_gradient
        }
        meter = self._pull_meter(methods) if self.objective.task_weight else None
        if meter is None:
            return dict.fromkeys(self.methods)
        with self._without_trace(), placement.uncompiled(self.config.runtime):
            for batch in self._loader(self.step, self.step + batches, workers=0):
                batch = self.objective.prepare(self._placed(batch), self.step, everything=True)
                views: dict[str, Outputs] = {}
                targets = self._taught(batch)
                with self.runtime.autocast():
                    outputs = self.student(batch.images, taps=self.parts.taps)
                    peers = self.peers.outputs(batch.images)
                    terms = self.objective.terms(
                        outputs, targets, batch, self.step, None, True, views, peers
                    )
                self._measure(meter, outputs, views, terms)
        return dict.fromkeys(self.methods) | meter.pulls()

    def weighted_pulls(self, batches: int = 3) -> dict[str, float | None]:
        """``pulls`` times the current weights; for ``{auto: …}`` the target ratio."""
        pulls = self.pulls(batches)
        for name, pull in pulls.items():
            weight = self.methods[name].config.weight
            if isinstance(weight, AutoWeight):
                pulls[name] = weight.auto
            elif pull is not None:
                pulls[name] = pull * self.methods[name].weight
        return pulls

    def _loader(self, start: int, stop: int, workers: int) -> TrainLoader:
        return run_loader(self.config, self.parts, self.runtime, start, stop, workers)

    def _groups(self) -> dict[str, list[nn.Parameter]]:
        adapters = [p for p in self.objective.adapters() if p.requires_grad]
        return parameter_groups(self.student) | {"adapters": adapters}

    def _inner_steppers(self) -> dict[str, Stepper]:
        steppers = {}
        for name, method in self.methods.items():
            # `train:` has frozen those that it does not match.
            parameters = [p for p in method.inner_parameters() if p.requires_grad]
            if parameters:
                optimizer, scaler = method.inner_optimizer(parameters), self.runtime.grad_scaler()
                steppers[name] = Stepper(optimizer, scaler, f"methods.{name}")
                require_grad(parameters, False)
        return steppers

    def _steppers(self) -> dict[str, Stepper]:
        return {"student": self.stepper} | {f"methods.{n}": own for n, own in self.own.items()}

    def _placed(self, batch: Batch) -> Batch:
        return placement.to_device(batch, self.runtime.device, self._channels_last)

    def _gradients_stay_local(self, local: bool) -> contextlib.AbstractContextManager[None]:
        no_sync = getattr(self._forward, "no_sync", None)
        return no_sync() if local and no_sync else contextlib.nullcontext()

    def _tensors(self) -> list[Tensor]:
        return [t for m in (self.student, self.objective) for t in (*m.parameters(), *m.buffers())]

    def share_statistics(self) -> None:
        """Broadcasts rank 0's normalisation buffers, before evaluating and saving."""
        self.runtime.broadcast(self.student.buffers())
        if self.ema is not None:
            self.runtime.broadcast(self.ema.average.buffers())
        self.runtime.broadcast(self.peers.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on. Collective: call it on all processes."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "layered": self.objective.layered,
            "optimizer": self.optimizer.state_dict(),
            "own": {name: own.optimizer.state_dict() for name, own in self.own.items()},
            "steppers": {name: one.state_dict() for name, one in self._steppers().items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "quantization": self.quantizer.state_dict(self.network) if self.quantizer else None,
            "peers": self.peers.state_dict(),
            "rng": self.runtime.gather_objects(rng_state()),
            "tally": self.tally.state_dict(self.runtime),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned; exact on the same number of processes.

        Raises:
            CheckpointError: the state is of another network, or of other methods.
        """
        restore(self.student, state["student"], "its student")
        restore(self.objective, state["objective"], "the state of its methods")
        self.step = state["step"]
        self.objective.auto.refresh()
        self.optimizer.load_state_dict(state["optimizer"])
        for name, own in self.own.items():
            own.optimizer.load_state_dict(state["own"][name])
        for name, scales in state.get("steppers", {}).items():  # newer than the first release
            self._steppers()[name].load_state_dict(scales)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.quantizer is not None:
            self.quantizer.load_state_dict(state["quantization"], self.network)
        if self.peers.networks:
            self.peers.load_state_dict(state["peers"])
        if self.runtime.rank < len(state["rng"]):
            set_rng_state(state["rng"][self.runtime.rank])
        self.tally.load_state_dict(state["tally"], self.runtime)
