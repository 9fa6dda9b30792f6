"""Where a training begins: from its initial weights. `continued` has the beginnings from a checkpoint."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.metrics import TrainLog


class Start:
    """The beginning of a training from its initial weights. `Resumed` and `Branched` begin from a checkpoint."""

    event: ClassVar[str] = "start"  # name of the log line with which this process begins
    # whether `budget.min_steps` has an effect. A training that goes on keeps its budget.
    may_extend_budget: ClassVar[bool] = True
    # step, seconds: optimizer steps made, and seconds spent, before this process.
    step: int = 0
    seconds: float = 0.0
    origin: str = ""  # of a branch, the checkpoint that it began from, else ""

    def restore_(self, live: dict[str, Tensor]) -> None:
        """Put the state of the checkpoint, if there is one, into the live tensors and the random generator."""

    def fraction(self, max_steps: int, steps_end: float) -> float:
        """Share of the optimizer steps that another run has made."""
        return 0.0

    def open_files(self, store: CheckpointStore, train_log: TrainLog, state: TrainState) -> None:
        """Make the run's checkpoints and log ready for the training from `state` on; called on rank 0."""
        store.remove_all()
        train_log.begin()

    def details(self) -> dict[str, Any]:
        """What the log line says besides step and seconds."""
        return {}
