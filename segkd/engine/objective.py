"""The total loss of a student: task losses and methods, weighted, scheduled, reduced."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segkd.engine.auto_weight import AutoWeights
from segkd.engine.compiled import CompiledLoss
from segkd.engine.image_generators import ImageGenerators
from segkd.engine.optim import adapter_share, first_step, preparation, weight_share
from segkd.engine.peers import PeerOutputs
from segkd.engine.step_record import StepRecord, seen_by
from segkd.engine.task_losses import TaskLosses
from segkd.engine.timing import StepTimer
from segkd.errors import ConfigError, did_you_mean
from segkd.methods.base import Context, Method
from segkd.modules.module_map import ModuleMap
from segkd.runtime import Runtime, generator
from segkd.structures import Batch, Outputs, Term


@dataclass
class Weighted:
    """A Term with the factors that the engine applies.

    Attributes:
        name: ``entry/term``; the entry of task losses is ``task``, that of the task losses of a
            method's peer ``ENTRY.PEER``.
        term: as returned by the loss.
        weight: factor of the term within its entry.
        share: factor of the entry in the total: its weight times its schedule.
    """

    name: str
    term: Term
    weight: float
    share: float = 1.0

    @property
    def entry(self) -> str:
        """Name of the entry under ``methods:``, or ``task``."""
        return self.name.partition("/")[0]


class Objective(nn.Module):
    """Task losses and the entries of ``methods:`` of one run.

    Args:
        task: the task losses.
        task_weight: their common factor.
        methods: built methods by entry.
        seed: seed of the run; random numbers of methods derive from (seed, step, entry).
        total_steps: number of steps of the run.
        runtime: processes and device.
        student_forward: runs the student on further images for methods, without gradient; None:
            not available.

    Attributes:
        prepares: False leaves out the preparation of methods, see ``Method.preparation_steps``;
            for what looks at steps in which all of them teach.
    """

    def __init__(
        self,
        task: TaskLosses,
        task_weight: float,
        methods: Mapping[str, Method],
        *,
        seed: int,
        total_steps: int,
        runtime: Runtime,
        student_forward: Callable[[Tensor], Outputs] | None = None,
    ) -> None:
        super().__init__()
        self.task, self.task_weight = task, task_weight
        self.methods = ModuleMap(methods)
        self.auto = AutoWeights(methods, task_weight)
        self.seed, self.total_steps, self.runtime = seed, total_steps, runtime
        self.student_forward = student_forward
        self.prepares = True
        self._compiled: dict[str, CompiledLoss] = {}

    def compile_losses(self, options: Mapping[str, Any]) -> None:
        """From now on the losses of methods are compiled, each as one graph.

        Args:
            options: arguments of ``torch.compile``.
        """
        limits = torch._dynamo.config  # entries of one method share its code object
        limits.recompile_limit = max(limits.recompile_limit, 4 * len(self.methods))
        self._compiled = {
            name: CompiledLoss(name, method, options) for name, method in self.methods.items()
        }

    def uncompiled(self) -> list[str]:
        """Lines about losses that could not be compiled, so far."""
        found = self._compiled.items()
        return [f"methods.{name}: {one.told}" for name, one in found if one.why_not]

    def active(self, step: int) -> dict[str, Method]:
        """The entries whose weight is not 0 at ``step``."""
        return {name: m for name, m in self.methods.items() if self._share(m, step) > 0}

    def context(
        self,
        entry: str,
        batch: Batch,
        step: int,
        draw: str = "",
        teachers: Mapping[str, Outputs] | None = None,
        peers: Mapping[str, Outputs] | None = None,
        preparing: bool = False,
    ) -> Context:
        """The context of an entry at ``step``; its random numbers differ for each ``draw``."""
        key = (self.seed, step, entry, draw)
        return Context(
            batch=batch,
            step=step,
            total_steps=self.total_steps,
            mask=self.methods[entry].config.mask,
            generator=generator(*key),
            step_generator=generator(self.seed, step, entry),
            image_generators=ImageGenerators(key, batch.index),
            task_loss=self.task,
            student_forward=self.student_forward,
            gather=self.runtime.gather,
            exchange=self.runtime.gather_rows,
            all_sum=self.runtime.all_sum,
            peers=peers or {},
            rank=self.runtime.rank,
            world=self.runtime.world,
            teachers=teachers or {},
            preparing=preparing,
        )

    def prepare(
        self, batch: Batch, step: int, timer: StepTimer | None = None, everything: bool = False
    ) -> Batch:
        """The batch as rewritten by an entry that does so; ``everything``: even if inactive."""
        part = timer.part if timer else lambda name: nullcontext()
        for name, method in self.methods.items() if everything else self.active(step).items():
            if method.needs.rewrites_batch:
                with part(f"method/{name}"):
                    batch = method.prepare(batch, self.context(name, batch, step))
        return batch

    def terms(
        self,
        student: Outputs,
        teachers: Mapping[str, Outputs],
        batch: Batch,
        step: int,
        timer: StepTimer | None = None,
        everything: bool = False,
        views: dict[str, Outputs] | None = None,
        peers: PeerOutputs | None = None,
    ) -> list[Weighted]:
        """All terms of the losses of the student and of peers in a step.

        Args:
            student: outputs of the student with a graph.
            teachers: outputs by teacher.
            batch: the images and labels.
            step: current step, from 0.
            timer: measures the parts.
            everything: include inactive entries, with a share of 1.
            views: filled with the student's outputs as each method received them, by entry.
            peers: outputs of the methods' peers with a graph.
        """
        peers = peers or {}
        part = timer.part if timer else lambda name: nullcontext()
        found: list[Weighted] = []
        if self.task_weight > 0:
            with part("task"):
                losses = self.task(student, batch)
            weight = self.task_weight
            found += [Weighted(f"task/{k}", term, 1.0, weight) for k, term in losses.items()]
            found += self._tasks_of_peers(peers, batch, part)
        for name, method in self.methods.items() if everything else self.active(step).items():
            with part(f"method/{name}"):
                view = self._view(name, student, step)
                seen = seen_by(method, StepRecord(student, teachers, batch), view, inner=False)
                context = self.context(
                    name,
                    seen.batch,
                    step,
                    teachers=seen.teachers,
                    peers=peers.get(name),
                    preparing=not everything and self._preparing(method, step),
                )
                loss = self._compiled.get(name, method.loss)
                losses = loss(seen.student, seen.teacher, seen.batch, context)
            if views is not None:
                views[name] = view
            share = 1.0 if everything else self._share(method, step) * self._found_weight(name)
            found += [
                Weighted(f"{name}/{key}", term, term_weight(method, key), share)
                for key, term in losses.items()
            ]
        return found

    def total(self, terms: Sequence[Weighted]) -> Tensor:
        """Σ weight · count·R/Σcount · value, 0-d; its mean over R processes is the global value.

        Without any terms, as before the start of all entries, it is 0, without a graph.
        """
        by_entry = self.by_entry(terms)
        shares = {weighted.entry: weighted.share for weighted in terms}
        parts = [value * shares[entry] for entry, value in by_entry.items()]
        return sum(parts, torch.zeros((), device=self.runtime.device))

    def by_entry(self, terms: Sequence[Weighted]) -> dict[str, Tensor]:
        """The reduced sum of each entry's terms, 0-d, without the entry's share."""
        factors = self._reduction([weighted.term for weighted in terms])
        sums: dict[str, Tensor] = {}
        for weighted, factor in zip(terms, factors, strict=True):
            value = weighted.term.value * (factor * weighted.weight)
            sums[weighted.entry] = sums[weighted.entry] + value if weighted.entry in sums else value
        return sums

    def inner_loss(
        self,
        name: str,
        seen: StepRecord,
        step: int,
        turn: int,
    ) -> list[Weighted]:
        """The terms of ``Method.inner_loss`` on detached outputs, in the ``turn``-th inner step."""
        method = self.methods[name]
        own = seen_by(method, seen, seen.student)
        context = self.context(name, own.batch, step, f"own{turn}", own.teachers)
        losses = method.inner_loss(own.student, own.teacher, own.batch, context)
        return [Weighted(f"{name}/own_{key}", term, 1.0) for key, term in losses.items()]

    def inner_active(self, name: str, step: int) -> bool:
        """Whether ``Method.inner_loss`` of an entry is minimised at ``step``."""
        method = self.methods[name]
        always = preparation(method, self.total_steps) is None
        return always or self._preparing(method, step)

    def after_step(self, seen: StepRecord, step: int) -> None:
        """Calls ``Method.after_step`` of all entries, which updates banks and averages."""
        for name, method in self.methods.items():
            if not acts_after_step(method):
                continue
            own = seen_by(method, seen, seen.student)
            context = self.context(name, own.batch, step, "after", own.teachers)
            method.after_step(own.student, own.teacher, own.batch, context)

    def check_weights(self, terms: Iterable[Weighted]) -> None:
        """Checks that each key of an entry's ``weights:`` is the name of a term.

        Args:
            terms: the terms of a step with ``everything``.

        Raises:
            ConfigError: an unknown key.
        """
        for name, method in self.methods.items():
            own = [w.name.removeprefix(f"{name}/") for w in terms if w.name.startswith(f"{name}/")]
            known = {*own, *method.default_weights}
            for key in method.config.weights.keys() - known:
                hint = did_you_mean(key, known)
                raise ConfigError(f"methods.{name}.weights.{key}: there is no such term.{hint}")

    def adapters(self) -> Iterator[nn.Parameter]:
        """Parameters of methods that are trained together with the student."""
        return (p for method in self.methods.values() for p in method.trained_parameters())

    @property
    def layered(self) -> list[str]:
        """The entries with layers of their own, which learn alone in the first steps."""
        return [name for name, method in self.methods.items() if method.trained_parameters()]

    def measured(self, step: int) -> dict[str, Method]:
        """The entries whose weight is measured in this step, after their ``adapter_warmup``."""
        ready = [name for name in self.active(step) if self._slow_start(name, step) == 1]
        return {name: self.methods[name] for name in self.auto.due(step, ready)}

    def _tasks_of_peers(
        self,
        peers: PeerOutputs,
        batch: Batch,
        part: Callable[[str], AbstractContextManager[None]],
    ) -> list[Weighted]:
        """The task losses of all peers, whether or not their methods are active."""
        found = []
        for name, outputs in peers.items():
            networks = self.methods[name].peers()
            with part(f"method/{name}"):
                for peer, one in outputs.items():
                    losses = self.task(one, batch, getattr(networks[peer], "aux_weight", None))
                    key, weight = f"{name}.{peer}", self.task_weight
                    found += [Weighted(f"{key}/{k}", t, 1.0, weight) for k, t in losses.items()]
        return found

    def _view(self, name: str, student: Outputs, step: int) -> Outputs:
        """The student's outputs, with their gradient scaled down during ``adapter_warmup``."""
        share = 0.0 if self.auto.factor(name) is None else self._slow_start(name, step)
        return student if share == 1 else student.map(lambda x: scale_gradient(x, share))

    def _slow_start(self, name: str, step: int) -> float:
        """The share of an entry's gradient that reaches the student at ``step``."""
        method = self.methods[name]
        if not method.trained_parameters():
            return 1.0
        return adapter_share(method.config, step, self.total_steps, self._first_step(method))

    def _found_weight(self, name: str) -> float:
        factor = self.auto.factor(name)
        return 1.0 if factor is None else factor

    def _share(self, method: Method, step: int) -> float:
        start = self._first_step(method)
        return method.weight * weight_share(method.config, step, self.total_steps, start)

    def _preparing(self, method: Method, step: int) -> bool:
        phase = preparation(method, self.total_steps)
        return self.prepares and phase is not None and step in phase

    def _first_step(self, method: Method) -> int:
        return first_step(method, self.total_steps) if self.prepares else method.config.start

    def _reduction(self, terms: list[Term]) -> list[Tensor | float]:
        """count·R/Σcount of each term; 1 for terms that are equal on all processes."""
        if self.runtime.world == 1:
            return [1.0] * len(terms)
        device = self.runtime.device
        counts = [
            torch.zeros((), dtype=torch.float64, device=device)
            if term.count is None
            else term.count
            for term in terms
        ]
        local = torch.stack([count.detach().double().to(device) for count in counts])
        scaled = local * self.runtime.world / self.runtime.all_reduce(local).clamp(min=1e-300)
        return [
            1.0 if term.count is None else factor.to(term.value.dtype)
            for term, factor in zip(terms, scaled, strict=True)
        ]


def acts_after_step(method: Method) -> bool:
    """Whether a method has an ``after_step`` of its own."""
    return type(method).after_step is not Method.after_step


def term_weight(method: Method, key: str) -> float:
    """The weight of a term: from the config, else the paper's, else 1."""
    default = method.default_weights.get(key, 1.0)
    return method.config.weights.get(key, default)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        ctx.share = share
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * ctx.share if ctx.share else torch.zeros_like(gradient)), None


def scale_gradient(values: Tensor, share: float) -> Tensor:
    """The same values, any shape, with ``share`` times the gradient; exactly zero for 0."""
    return _ScaledGradient.apply(values, share)


class _ExactZero(torch.autograd.Function):
    """The identity on a loss, with zero gradients for further tensors, whatever their values."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *others: Tensor) -> Tensor:
        ctx.shapes = [(other.shape, other.dtype, other.device) for other in others]
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(s, dtype=d, device=place) for s, d, place in ctx.shapes]
        return (gradient, *zeros)


def with_zero_gradients(loss: Tensor, outputs: Outputs) -> Tensor:
    """The 0-d loss, which gives unused outputs an exact zero gradient (0·x may be NaN)."""
    others = [tensor for tensor in outputs.tensors() if tensor.requires_grad]
    return _ExactZero.apply(loss, *others) if others else loss
