"""When the state of a training is saved: at given fractions of the steps, and every so many seconds."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.config.train import CheckpointConfig
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.metrics import StepReport

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves the state of one training when it is due: at given fractions of the steps, and every so many seconds."""

    def __init__(
        self,
        store: CheckpointStore,  # takes the checkpoints
        live: dict[str, Tensor],  # every tensor of the state but the random generator's
        state: TrainState,  # step and seconds at the beginning, and what stays the same in all checkpoints of this run
        config: CheckpointConfig,  # when checkpoints are due
        report: StepReport,  # has the timeline and the log; its metrics are drained before a checkpoint
        world: World,
        complete: Callable[[], None] = lambda: None,  # makes `live` complete on rank 0; all ranks call it together
    ) -> None:
        self.complete = complete
        self.store, self.live, self.config = store, live, config
        self.report, self.timeline, self.log, self.world = report, report.timeline, report.log, world
        self.config_digest, self.origin = state.config_digest, state.origin
        self.last_saved = state.seconds_spent
        fraction = self.timeline.fraction(state.step)
        self.keep_at = [at for at in config.at if at > fraction]

    def after_step(self, step: int) -> None:
        """Save the state after `step` steps if it is due."""
        keep = self.must_keep(step)
        if keep or self.are_due(step):
            self.report.drain()
            self.save(step, keep=keep)

    def must_keep(self, step: int) -> bool:
        """Whether a fraction of `train.checkpoint.at` has been reached."""
        return bool(self.keep_at) and self.timeline.fraction(step) >= self.keep_at[0]

    def are_due(self, step: int) -> bool:
        """Whether `train.checkpoint.seconds` have passed since the last checkpoint."""
        seconds = self.config.seconds
        return bool(seconds) and self.timeline.pace.predict(step) - self.last_saved > seconds

    def save(self, step: int, *, keep: bool) -> None:
        """Save the state after `step` steps; `keep` serves the next fraction of `train.checkpoint.at`."""
        self.last_saved = self.timeline.pace.predict(step)
        if keep:
            # A newer reading of the clock may set the run back before the fraction; it counts as reached all the same.
            fraction = self.timeline.fraction(step)
            self.keep_at = [at for at in self.keep_at[1:] if at > fraction]
        self.complete()
        if not self.world.is_main:
            return
        seconds = self.timeline.clock.elapsed()
        state = TrainState(step, seconds, self.config_digest, self.world.size, self.origin)
        self.store.save(state, self.live | {"rng": torch.get_rng_state()}, kept=keep)
        self.log.write(
            "checkpoint", step=step, elapsed_seconds=seconds, fraction=self.timeline.fraction(step), kept=keep
        )

    def save_last(self, step: int) -> None:
        """After the last step: save what the clock ended just before its fraction was reached."""
        if self.keep_at and not self.timeline.max_steps:
            self.save(step, keep=True)
        elif self.keep_at:
            fraction = self.timeline.fraction(step)
            log.warning("the clock ended the steps at fraction %.3g: no checkpoint at %s", fraction, self.keep_at)
