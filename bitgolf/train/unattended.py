"""What surrounds the steps of a training: nothing, as in the single-file program. `attended` has more.

An unattended training begins from its initial weights and writes no checkpoints. `continued` has the beginnings from a
checkpoint.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor

from bitgolf.data.tokenizer import Tokenizer
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.loop import AfterStep
from bitgolf.train.metrics import StepReport, TrainLog
from bitgolf.train.plan import Plan
from bitgolf.train.rows import TrainingRows
from bitgolf.train.trainer import Trainer


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


class Unattended:
    """See `attended.Attended`."""

    def start(self, live: dict[str, Tensor], world: World) -> Start:
        """Where the training begins. `live` names the tensors that the run needs."""
        return Start()

    def begin(self, start: Start, plan: Plan, shapes: dict[str, tuple[int, ...]], log: TrainLog, world: World) -> None:
        """Make the log ready for the training from `start` on. `shapes`: of the model's tensors."""
        log.begin()

    def mfu_per_token_rates(self, world: World) -> tuple[float, float]:
        """Model FLOP utilization at one token per second, with the loop off and on; 0 = unknown."""
        return 0.0, 0.0

    def steps(
        self, trainer: Trainer, rows: TrainingRows, live: dict[str, Tensor], report: StepReport, tokenizer: Tokenizer
    ) -> AbstractContextManager[AfterStep]:
        """What is done after each step, for the length of the steps."""
        return nullcontext(lambda *step: None)

    def end(self) -> None:
        """After the last measurement; called on rank 0."""
