"""What surrounds the steps of a training: nothing, as in the single-file program. `attended` has more.

An unattended training begins from its initial weights and writes no checkpoints.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from bitgolf.data.tokenizer import Tokenizer
from bitgolf.run.ranks import World
from bitgolf.train.loop import AfterStep
from bitgolf.train.metrics import StepReport, TrainLog
from bitgolf.train.plan import Plan
from bitgolf.train.rows import TrainingRows
from bitgolf.train.start import Start
from bitgolf.train.trainer import Trainer


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
