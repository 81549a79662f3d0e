"""What ``runtime.compile`` compiles, how, and the losses of methods as one graph each."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from segkd.config.schema import RunConfig
from segkd.errors import ConfigError
from segkd.methods.base import Context, Method
from segkd.ops.precision import ieee_products
from segkd.runtime import Runtime
from segkd.structures import Batch, Outputs, Term

_log = logging.getLogger(__name__)
_REASONS = {  # words in torch's messages: what they mean here
    "Generator": "its random numbers come from generators, which a graph cannot hold",
    "data-dependent": "its shapes depend on numbers, such as those of classes in the images",
    "autograd.grad": "it differentiates outputs itself",
}


@dataclass(frozen=True)
class CompilePlan:
    """What is compiled in a run.

    Attributes:
        student: and the networks that learn beside it.
        teachers: all of them.
        losses: ``Method.loss`` of all entries.
        options: further arguments of ``torch.compile``.
        cuda_graphs: whether kernels are recorded and replayed, in memory that each step reuses.
        notes: what the user should know.
    """

    student: bool = False
    teachers: bool = False
    losses: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = False
    notes: tuple[str, ...] = ()

    def begin_step(self) -> None:
        """Tells CUDA graphs that the outputs of the step before are needed no more."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()


def compile_plan(config: RunConfig, runtime: Runtime) -> CompilePlan:
    """What ``runtime.compile`` asks for, as far as the device and the run allow.

    Raises:
        ConfigError: ``max`` with another backend than inductor, which alone has its modes.
    """
    wanted, backend = config.runtime.compile, config.runtime.compile_backend
    if wanted != "max":
        return CompilePlan(
            student=wanted in (True, "student"),
            teachers=wanted in (True, "teachers"),
            losses=wanted == "losses",
            options={"backend": backend},
        )
    if backend != "inductor":
        raise ConfigError(
            f"runtime.compile=max: tuned kernels and CUDA graphs are modes of inductor, and "
            f"runtime.compile_backend is '{backend}'. Remove that key, or set runtime.compile=true"
        )
    options: dict[str, Any] = {"backend": backend, "dynamic": False}
    why, graphs = "", False
    if runtime.device.type != "cuda":
        why = f"tuned kernels and CUDA graphs need a CUDA device, this run is on {runtime.device}"
    else:
        # Graphs write all outputs of a step into the same memory as those of the one before.
        if config.optim.accumulate > 1:
            why = "optim.accumulate keeps the outputs of several batches, which CUDA graphs cannot"
        elif runtime.world > 1:
            why = "CUDA graphs are not used with several processes"
        graphs = not why
        options["mode"] = "max-autotune" if graphs else "max-autotune-no-cudagraphs"
    notes = [f"runtime.compile=max: {why}. Networks and losses are compiled without"] if why else []
    return CompilePlan(True, True, True, options, graphs, tuple(notes))


class CompiledLoss:
    """``Method.loss`` compiled as one graph; where that is not possible, as it is.

    Nothing is computed before the whole function has been traced, so that a loss whose tracing
    fails has drawn no random numbers and changed no state.

    Args:
        name: of the entry.
        method: whose loss it is.
        options: arguments of ``torch.compile``.

    Attributes:
        why_not: why it is not compiled; empty: it is, or has not been called.
    """

    def __init__(self, name: str, method: Method, options: Mapping[str, Any]) -> None:
        self.name, self.method, self.why_not = name, method, ""
        self._compiled = torch.compile(method.loss, fullgraph=True, **options)

    def __call__(
        self, student: Outputs, teacher: Outputs, batch: Batch, context: Context
    ) -> dict[str, Term]:
        """The terms of ``Method.loss``."""
        if not self.why_not:
            try:
                with ieee_products():  # which a graph cannot switch on where it needs them
                    return self._compiled(student, teacher, batch, context)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.why_not = _reason(error)
                _log.warning("methods.%s: %s", self.name, self.told)
        return self.method.loss(student, teacher, batch, context)

    @property
    def told(self) -> str:
        """A line for the log about a loss that is not compiled."""
        return f"its loss is not one graph and is not compiled ({self.why_not})"


def _reason(error: Exception) -> str:
    """What a user can make of an error of the compiler: one line."""
    text = str(error).strip()
    known = (reason for words, reason in _REASONS.items() if words in text)
    return next(known, text.splitlines()[0] if text else type(error).__name__)
