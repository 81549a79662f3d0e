"""One run from start to end: resume, train, evaluate, save, summarise."""

import contextlib
import math
import signal
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from segkd.config.schema import RunConfig
from segkd.data.base import Dataset
from segkd.engine.about_teachers import about_score, about_teachers
from segkd.engine.cache_filling import begin_caches, summary_lines
from segkd.engine.introduction import beginning, columns, components, resuming
from segkd.engine.logging import Logger, Progress, display_print
from segkd.engine.optim import learning_rate
from segkd.engine.other_sets import OtherSets, about_scores
from segkd.engine.placement import uncompiled
from segkd.engine.run_folder import RunFolder
from segkd.engine.setup import assemble
from segkd.engine.signals import Signals, Stopped
from segkd.engine.sources import sources
from segkd.engine.summary import Summary, costs, finished_before, last_lines, scores, summarize
from segkd.engine.teacher_classes import score_of_known, teacher_facts
from segkd.engine.trainer import Trainer
from segkd.errors import CheckpointError, Interrupted, SegKDError, TrainingError
from segkd.evaluation.evaluator import Outcome, evaluate_network
from segkd.faults import explained, machine_faults
from segkd.metrics.cost import reset_peak_memory
from segkd.models.frozen import BlackBox
from segkd.models.given import lent
from segkd.models.network import Network
from segkd.models.quantized import bake_weights
from segkd.runtime import Runtime, choose_kernels, limit_threads, preserved_rng, seed_everything


def train_run(
    config: RunConfig,
    *,
    student: Network | None = None,
    teachers: Mapping[str, Network | BlackBox] | None = None,
    train_set: Dataset | None = None,
    val_set: Dataset | None = None,
    unlabeled_set: Dataset | None = None,
    teacher_facts: dict[str, dict[str, Any]] | None = None,
    extend: bool = True,
) -> Summary:
    """Trains one run, resumes an interrupted one, or returns the summary of a finished one.

    Args:
        config: the run; ``config.out`` is its folder.
        student, teachers, train_set, val_set, unlabeled_set: objects of the caller, instead of
            configured ones.
        teacher_facts: scores and costs of teachers by the configuration that determines them,
            shared by the runs of a recipe so that each teacher is evaluated once; is added to.
        extend: allow a run to be extended to more steps than it was configured for.

    Returns:
        The contents of summary.json: scores, teachers' scores, cost.

    Raises:
        SegKDError: a problem of the configuration, the data or the machine.
        Interrupted: SIGINT, SIGTERM or SIGHUP was received; says what was saved.
    """
    folder = RunFolder(config, extend=extend)
    with machine_faults(), lent(student):
        runtime = Runtime.start(config.runtime.device, config.runtime.precision)
        finished = runtime.on_main(folder.finished)
        if finished is not None:
            if runtime.is_main:
                display_print(finished_before(config, finished))
            return finished
        try:
            runtime.on_main(folder.open)
            limit_threads(config.runtime.threads, config.data.workers)
            choose_kernels(deterministic=config.runtime.deterministic)
            seed_everything(config.seed, 0)  # the same initial weights on all processes
            parts = assemble(
                config,
                runtime,
                student=student,
                teachers=teachers,
                train_set=train_set,
                val_set=val_set,
                unlabeled_set=unlabeled_set,
            )
            folder.prepare(parts.student, runtime)
            parts.notes += about_teachers(config, parts, in_recipe=teacher_facts is not None)
            reset_peak_memory(runtime.device, collect=True)
            trainer = Trainer(config, parts, runtime)
            seed_everything(config.seed, runtime.rank)  # dropout differs between processes
            return Run(config, folder, trainer, teacher_facts).complete()
        finally:
            folder.close()


class Run:
    """Runs a Trainer with log, evaluation, checkpoints and signals.

    Args:
        config: the run.
        folder: its opened folder.
        trainer: is restored from last.pt, if there is one.
        teacher_facts: see ``train_run``.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        trainer: Trainer,
        teacher_facts: dict[str, dict[str, Any]] | None,
    ) -> None:
        self.config, self.folder, self.trainer = config, folder, trainer
        self.teacher_facts = {} if teacher_facts is None else teacher_facts
        self.runtime, self.parts = trainer.runtime, trainer.parts
        self.best, self.finished = -math.inf, False
        self.teachers: dict[str, Any] = {}
        self.peers: dict[str, dict[str, float]] = {}  # scores: last and best
        self.due = False  # the evaluation of the current step, which is saved before
        self.others = OtherSets(config, self.parts.val_set)
        self.parts.notes += self.others.about()
        self.signals = Signals(trainer.runtime, self._saved)
        self.stored: int | None = None  # step of last.pt
        state = self.runtime.on_main(folder.load_last)  # other machines may not have the folder
        rows = None if state is None else self._restore(state)
        trainer.waiting = self.signals.waiting
        self._timed_from = trainer.step
        stored = {} if state is None else state.get("sources", {})
        self.sources = self.runtime.on_main(lambda: {**sources(config), **stored})
        with preserved_rng():  # libraries imported here may draw random numbers
            self.log = Logger(
                folder.path,
                columns(trainer),
                resume_step=trainer.step,
                rows=rows,
                tensorboard=config.log.tensorboard,
                enabled=self.runtime.is_main,
            )

    def _restore(self, state: Mapping[str, Any]) -> int | None:
        """Restores the state of last.pt; returns the rows of metrics.csv at that step, if known."""
        try:
            self.trainer.load_state_dict(state)
            self.best, self.teachers = state["best"], state["teachers"]
            self.peers = state.get("peer_scores", {})
            self.finished, self.due = state["finished"], state.get("due", False)
        except Exception as error:  # damaged values may raise anything
            fault = explained(error)
            if fault is not None:
                raise fault from error
            text = str(error) if isinstance(error, SegKDError) else repr(error)
            raise CheckpointError(
                f"{self.folder.last} does not fit this run: {text}. Put back the run's own file, "
                f"or delete {self.folder.path} to train from the start"
            ) from error
        self.stored = self.trainer.step
        self._processes = len(state["rng"])
        if self.finished and self.trainer.step < self.config.steps:  # extended to more steps
            self.finished = False
            return None
        return state.get("rows")

    def complete(self) -> Summary:
        """Trains to the last step and returns the summary. Raises like ``train_run``."""
        try:
            with self.signals.watched():
                with preserved_rng():
                    self._introduce()
                    self._evaluate_teachers()
                    begin_caches(self.trainer, self.signals, self.log.say)
                    progress = self._progress()
                with (
                    contextlib.closing(progress),
                    contextlib.closing(self.trainer.steps()) as steps,
                ):
                    if self.due and self.trainer.step < self.config.steps:
                        self._evaluate_student()
                    self._train(steps, progress)
                summary = self._finish()
            if number := self.signals.agreed(reading=True):  # it came after the last evaluation
                self._stop(number)
            return summary
        finally:
            self.log.close()

    def _train(self, steps: Iterator[None], progress: Progress) -> None:
        try:
            for _ in steps:
                self.signals.beat()
                self._look_after(progress)
        except Stopped as stopped:  # while waiting for a batch, between two steps
            if self.runtime.world == 1:  # several would have to save together
                self._save()
            self._stop(stopped.number)

    # -- between steps -------------------------------------------------------------------------

    def _look_after(self, progress: Progress) -> None:
        """Between two steps: check, log, evaluate, save, stop."""
        trainer, config = self.trainer, self.config
        step, last = trainer.step, trainer.step == config.steps
        logs = last or step % config.log.every == 0
        if logs or self.runtime.device.type == "cpu":  # reading synchronises a GPU
            trainer.tally.check()
        news = self.parts.teachers.news()
        for doubt in (*trainer.objective.auto.doubts(last), *trainer.timer.doubts(), *news):
            self.log.say(f"WARNING: {doubt}")
        if logs:
            self._write_line(progress)
        progress.advance(step)
        if last:
            return
        evaluates = bool(config.eval.every) and step % config.eval.every == 0
        signalled = self.signals.agreed(logs)
        if signalled or evaluates or step % config.save_every == 0:
            self._save(due=evaluates)
        if signalled:
            self._stop(signalled)
        if evaluates:
            self._evaluate_student()

    def _write_line(self, progress: Progress) -> None:
        """One row of metrics.csv and one line on the terminal."""
        trainer, config = self.trainer, self.config
        values = trainer.tally.collect(self.runtime, trainer.terms)
        steps, self._timed_from = trainer.step - self._timed_from, trainer.step
        seconds = trainer.timer.take()
        trainer.tally.add_seconds(seconds, steps)
        times = {f"seconds/{name}": value / steps for name, value in seconds.items()}
        rate = {"lr": learning_rate(config, trainer.step - 1), **trainer.objective.auto.values()}
        self.log.scalars(trainer.step, values | rate | times)
        text = " · ".join(f"{k} {v:.4g}" for k, v in {"lr": rate["lr"], **values}.items())
        line = progress.facts(trainer.step, text, self.log.score)
        if line:
            self.log.say(line)

    def _evaluate_student(self) -> Outcome:
        self.trainer.share_statistics()
        result = self._evaluate(self.trainer.network)
        step, score = self.trainer.step, result.score
        self.log.score = f"{result.score_name} {100 * score:.2f}"
        self.log.say(f"step {step}: {self.log.score} on {result.images} images")
        if not self.best >= score:
            self.best = score
            if self.runtime.is_main:
                network, data = self.trainer.network, self.parts.val_set
                self.folder.save_best(network, data, step=step, result=result)
        peers = self.trainer.peers.evaluated().items()
        columns = {f"val/{name}": self._evaluate_peer(name, peer) for name, peer in peers}
        self.log.scalars(step, result.scalars() | columns)
        return result

    def _evaluate_peer(self, name: str, network: Network) -> float:
        result, step = self._evaluate(network), self.trainer.step
        score, best = result.score, self.peers.get(name, {}).get("best_score", -math.inf)
        self.log.say(f"step {step}: peer {name}: {result.score_name} {100 * score:.2f}")
        if not best >= score:
            best = score
            if self.runtime.is_main:
                data = self.parts.val_set
                self.folder.save_best(network, data, step=step, result=result, peer=name)
        name_of_score = result.score_name
        self.peers[name] = scores(score, name_of_score) | scores(best, name_of_score, "best_")
        return score

    def _evaluate(self, network: nn.Module, dataset: Dataset | None = None) -> Outcome:
        config, runtime, data = self.config, self.runtime, dataset or self.parts.val_set
        try:
            with self.signals.at_once(), preserved_rng(), uncompiled(config.runtime):
                workers = config.data.workers
                return evaluate_network(network, data, config.eval, runtime, workers=workers)
        except Stopped as stopped:  # nothing is lost: it has been saved before
            self._stop(stopped.number)

    def _save(self, *, due: bool = False, rows: int | None = None) -> None:
        """Writes last.pt, but never with weights that are not finite.

        Args:
            due: the evaluation of this step follows, and is done on resuming if it is stopped.
            rows: rows of metrics.csv to keep when resuming from here; None: all.

        Raises:
            TrainingError: weights are not finite.
            MachineError: it cannot be written.
        """
        self.trainer.share_statistics()
        state = self.trainer.state_dict()
        weights = [*state["student"].values(), *self.trainer.peers.parameters()]
        floats = [value for value in weights if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in floats):
            raise TrainingError(
                f"the student's weights are no longer finite at step {self.trainer.step}: a "
                "gradient exploded. The last checkpoint is from before that. Lower optim.lr, or "
                "set optim.clip=1.0"
            )
        if self.runtime.is_main:
            facts = {"best": self.best, "teachers": self.teachers, "finished": self.finished}
            facts |= {"peer_scores": self.peers, "sources": self.sources}
            facts["classes"] = list(self.parts.train_set.classes)
            facts |= {"due": due, "rows": self.log.rows if rows is None else rows}
            with self.signals.unhurried():
                self.folder.save_last(state | facts)
        self.runtime.barrier()
        self.stored = self.trainer.step

    def _stop(self, number: int) -> NoReturn:
        name, done = signal.Signals(number).name, self.trainer.step
        raise Interrupted(
            f"{name}: stopped after step {done} of {self.config.steps}. {self._saved()}", number
        )

    def _saved(self) -> str:
        """What has been saved, and how to resume."""
        if self.stored is None:
            return "Nothing was saved yet: run the same command again"
        return (
            f"{self.folder.last} holds step {self.stored}. Run the same command again to resume "
            "from there"
        )

    # -- start and end -------------------------------------------------------------------------

    def _introduce(self) -> None:
        trainer, folder = self.trainer, self.folder
        if trainer.step:
            for line in resuming(trainer, folder.path, folder.last, self._processes):
                self.log.say(line)
        else:
            self.log.say(beginning(self.config, trainer, folder.path))
        for line in components(self.config, trainer):
            self.log.say(line)

    def _evaluate_teachers(self) -> None:
        """Evaluates each teacher once, and warns of a score near chance."""
        where = self.config.model_dump_json(include={"teachers", "data", "eval", "runtime"})
        known = self.teacher_facts.setdefault(where, {})
        names = self.parts.teachers.names  # fewer than of other runs with the caller's teachers
        self.teachers = {k: v for k, v in {**known, **self.teachers}.items() if k in names}
        for name in names:
            if name in self.teachers:
                continue
            reason = self.parts.teachers.not_evaluated(name)
            teacher = self.parts.teachers.alone(name)
            licence = self.parts.teachers.licence(name)
            if reason:
                self.log.say(f"teacher {name}: not evaluated, because {reason}")
                if not self.parts.teachers.has_classes(name):
                    known[name] = self.teachers[name] = {**costs(teacher, self.config), **licence}
                continue
            result = self._evaluate(teacher)
            of_known = score_of_known(self.parts, name, result)
            for line in about_score(name, result, of_known):
                self.log.say(line)
            known[name] = self.teachers[name] = {
                **scores(result.score, result.score_name),
                **costs(teacher, self.config),
                **teacher_facts(self.parts, name, of_known),
                **licence,
                **self.others.facts(teacher, self._evaluate),
            }
            for line in about_scores(f"teacher {name}", known[name]):
                self.log.say(line)

    def _finish(self) -> Summary:
        """Last evaluation, last checkpoint, summary."""
        trainer = self.trainer
        if found := trainer.tally.unusable(self.runtime):
            self.log.say(f"{len(found)} unusable images were skipped, the first: {found[0]}")
        if not self.finished:
            self._save(due=True)  # the rest may fail, or be stopped
            self.finished = True
        rows = self.log.rows  # the evaluation is repeated if its summary is lost
        result = self._evaluate_student()
        others = self.others.facts(self.trainer.network, self._evaluate)
        self._save(rows=rows)
        facts = self.config, self.folder.path, trainer, result
        own = summarize(*facts, best=self.best, teachers=self.teachers, peers=self.peers)
        summary = {"sources": self.sources} | others | own
        if self.runtime.is_main:
            self.folder.save_summary(summary)
        bake_weights(trainer.student)  # a network of the caller is a plain one again
        cached = summary_lines(self.parts.teachers.caches, self.runtime)
        of_others = about_scores(summary["name"], others)
        for line in (*cached, *last_lines(self.config, summary, result), *of_others):
            self.log.say(line)
        return summary

    def _progress(self) -> Progress:
        enabled, title = self.runtime.is_main, str(self.folder.path)
        return Progress(self.config.steps, self.trainer.step, enabled=enabled, title=title)
