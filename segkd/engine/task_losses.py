"""The task losses of a run, on the network's logits and on those of its auxiliary heads."""

from typing import TYPE_CHECKING

from torch import nn

from segkd import registry
from segkd.errors import ConfigError
from segkd.modules.module_map import ModuleMap
from segkd.structures import Batch, Outputs, Term

if TYPE_CHECKING:
    from segkd.config.schema import TaskConfig
    from segkd.losses.base import TaskLoss


class TaskLosses(nn.Module):
    """The losses under ``task.losses``, each times its own ``weight``.

    ``task.weight`` is left to the engine, as are schedules and the reduction over processes.

    Args:
        config: the block ``task:``.
        num_classes: K.
        aux_weight: factor of the auxiliary heads' losses; None: auxiliary logits are not used.
        has_exist: whether the network has an existence branch.
        has_rows: whether it classifies rows of lanes; then losses of maps are those of its
            auxiliary heads.

    Raises:
        ConfigError: an option of a loss does not fit ``num_classes``, or the network lacks the
            branch of an existence loss, or a loss is of maps where it classifies rows, or the other
            way round.
    """

    def __init__(
        self,
        config: "TaskConfig",
        num_classes: int,
        aux_weight: float | None = None,
        has_exist: bool = True,
        has_rows: bool = False,
    ) -> None:
        super().__init__()
        self.losses = ModuleMap(
            {
                name: registry.losses.get(name)(entry, num_classes)
                for name, entry in config.losses.items()
            }
        )
        for name, loss in self.losses.items():
            if loss.of_exist and not has_exist:
                raise ConfigError(
                    f"task.losses.{name}: the student has no existence branch. Add "
                    "`student.exist_head: {}`, or remove this entry"
                )
            self._check_form(name, loss, has_rows, aux_weight is not None)
        self.aux_weight = aux_weight

    @staticmethod
    def _check_form(name: str, loss: "TaskLoss", has_rows: bool, has_aux: bool) -> None:
        """Raises ConfigError for losses of rows without rows, and of maps without a map."""
        if loss.of_exist or loss.of_rows == has_rows:
            return
        if loss.of_rows:
            raise ConfigError(
                f"task.losses.{name}: the student does not classify rows of lanes. Use "
                "student.arch=row_anchor, or remove this entry"
            )
        if not has_aux:
            raise ConfigError(
                f"task.losses.{name}: the student classifies rows of lanes and has no map of the "
                "image. Use row_cells, and set this entry to null, or give it a map to train by: "
                "student.aux_head={tap: stage4}"
            )

    def forward(
        self, outputs: Outputs, batch: Batch, aux_weight: float | None = None
    ) -> dict[str, Term]:
        """Terms by name of the loss; those of an auxiliary head are called ``<loss>.aux``.

        With several auxiliary heads the name is ``<loss>.aux.<head>``. Outputs without existence
        logits, such as those of heads that a method adds, have no term of existence losses.

        Args:
            outputs: logits (B, K, h, w); also ``exist`` and ``aux`` if the network has them.
            batch: with labels (B, H, W).
            aux_weight: that of another network than the student; None: the student's.

        Raises:
            DataError: the batch has no labels.
        """
        terms = self._terms(outputs, batch, "", 1.0)
        weight = self.aux_weight if aux_weight is None else aux_weight
        if weight is not None:
            for head, logits in outputs.aux.items():
                suffix = ".aux" if len(outputs.aux) == 1 else f".aux.{head}"
                terms |= self._terms(Outputs(logits), batch, suffix, weight)
        return terms

    def _terms(self, outputs: Outputs, batch: Batch, suffix: str, factor: float) -> dict[str, Term]:
        terms = {}
        for name, loss in self.losses.items():
            if loss.of_exist and outputs.exist is None:
                continue
            if not loss.of_exist and loss.of_rows != bool(outputs.rows):
                continue  # maps are those of auxiliary heads
            term = loss(outputs, batch)
            terms[name + suffix] = Term(term.value * (factor * loss.config.weight), term.count)
        return terms
