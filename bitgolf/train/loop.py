"""The timed optimizer steps, until their share of the budget is spent or `train.max_steps` are made.

Everything around a step happens here: the schedules, the switch to the late phase and to looped layers, the metrics,
the checkpoints. All ranks take every decision from the same numbers (`Timeline`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.config.train import CheckpointConfig
from bitgolf.data.loader import BatchLoader
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.late import LatePhase
from bitgolf.train.metrics import StepReport, TrainLog
from bitgolf.train.pace import Timeline
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.schedule import extra_weights, lr_multiplier, muon_decay, muon_momentum
from bitgolf.train.trainer import Trainer

log = logging.getLogger(__name__)

AfterStep = Callable[[int, bool], None]  # (number of steps made, whether the looped layers run several times)


def make_steps(
    trainer: Trainer,
    loader: BatchLoader,
    timeline: Timeline,
    window: ReplayWindow,
    checkpoints: Checkpoints,
    report: StepReport,
    step: int,
    after_step: AfterStep = lambda step, looped: None,
) -> int:
    """Train from `step` steps on until the steps are over. Returns the number of steps of the whole run."""
    config, late = trainer.config, trainer.late
    late_has_begun = False
    loops = bool(trainer.model.config.loop.repeats)
    looped = not loops or timeline.fraction(step) >= config.loop_start
    while not timeline.steps_are_over(step):
        inputs, targets = next(loader)
        fraction = timeline.fraction(step)
        lr_scale = lr_multiplier(fraction, config.warmdown, config.min_lr)
        late_is_on = late is not None and late.config.is_on(fraction, lr_scale)
        if late is not None and late_is_on and not late_has_begun:
            late_has_begun = True
            _begin_late(late, step, fraction, lr_scale, report.log)
        if not looped and fraction >= config.loop_start:
            looped = True  # for the rest of the run
            report.log.write("loop", step=step, fraction=fraction, lr_scale=lr_scale)
        window.note(step, lr_scale)
        momentum = muon_momentum(fraction, config.muon)
        metrics = trainer.step(
            inputs,
            targets,
            lr_scale,
            momentum,
            timeline.clock.elapsed(),
            fraction,
            late_is_on,
            looped=looped,
            decay=muon_decay(fraction, config.muon),
            extra=None if late_is_on else extra_weights(fraction, config.extra_targets),
        )
        step += 1
        report.add(step, metrics, lr_scale)
        keep = checkpoints.must_keep(step)
        if keep or checkpoints.are_due(step):
            report.drain()
            checkpoints.save(step, keep=keep)
        after_step(step, looped)
    report.drain()
    checkpoints.save_last(step)
    return step


def _begin_late(late: LatePhase, step: int, fraction: float, lr_scale: float, train_log: TrainLog) -> None:
    """Switch the late phase on, and log how far it changes the weights that the model computes with."""
    train_log.write(
        "late",
        step=step,
        fraction=fraction,
        lr_scale=lr_scale,
        mode=late.config.mode,
        crown_lambda=late.config.crown.weight,
        relative_change=late.begin(fraction),
    )


class Checkpoints:
    """Saves the state of one training when it is due: at given fractions of the steps, and every so many seconds.

    Args:
        store: takes the checkpoints.
        live: every tensor of the state but the random generator's.
        state: step and seconds at the beginning, and what stays the same in all checkpoints of this run.
        config: when checkpoints are due.
        complete: makes `live` complete on rank 0; all ranks call it together.
    """

    def __init__(
        self,
        store: CheckpointStore,
        live: dict[str, Tensor],
        state: TrainState,
        config: CheckpointConfig,
        timeline: Timeline,
        train_log: TrainLog,
        world: World,
        complete: Callable[[], None] = lambda: None,
    ) -> None:
        self.complete = complete
        self.store, self.live, self.config = store, live, config
        self.timeline, self.log, self.world = timeline, train_log, world
        self.config_digest, self.origin = state.config_digest, state.origin
        self.last_saved = state.seconds_spent
        fraction = timeline.fraction(state.step)
        self.keep_at = [at for at in config.at if at > fraction]

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
