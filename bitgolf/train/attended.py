"""A training that can be interrupted, continued, branched and watched, as `bitgolf train` makes it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bitgolf.data.tokenizer import Tokenizer
from bitgolf.model.flops import mfu
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World, device_name
from bitgolf.train.branch import find_trunk, require_same_data
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.checkpoint_times import Checkpoints
from bitgolf.train.continued import find_start
from bitgolf.train.effects import without_effect
from bitgolf.train.loop import AfterStep
from bitgolf.train.metrics import StepReport, TrainLog
from bitgolf.train.plan import Plan
from bitgolf.train.rows import TrainingRows
from bitgolf.train.sinks import open_sinks
from bitgolf.train.stage import train
from bitgolf.train.stop import StopOnSignal
from bitgolf.train.trainer import Trainer
from bitgolf.train.unattended import Start, Unattended
from bitgolf.train.watch import Watch

log = logging.getLogger(__name__)


def train_attended(
    run: RunDirectory, world: World, *, resume: bool = False, branch: str = "", progress: Progress = silent
) -> None:
    """`stage.train` with checkpoints, and with what watches a training.

    `resume`: go on from the run's newest checkpoint, if it has one. `branch`: begin from a checkpoint of another run,
    `RUN` or `RUN@STEP` (see `bitgolf.train.branch`). Raises as `stage.train` does; ConfigError if a branch and its
    trunk do not fit each other; RunError if there is no checkpoint to branch from, or those of this run are damaged.
    """
    train(run, world, Attended(run, resume=resume, branch=branch), progress)


class Attended(Unattended):
    """Checkpoints, warnings, signals, held-out losses and other loggers; see `train_attended`."""

    def __init__(self, run: RunDirectory, *, resume: bool, branch: str) -> None:
        self.run, self.resume = run, resume
        self.store = CheckpointStore(run / "checkpoint")
        self.trunk = find_trunk(branch, run.config, run.path) if branch else None
        if self.trunk is not None:
            require_same_data(self.trunk, run.require("data"))

    def start(self, live: dict[str, Tensor], world: World) -> Start:
        return find_start(self.run.config, self.store, live, world, resume=self.resume, trunk=self.trunk)

    def begin(self, start: Start, plan: Plan, shapes: dict[str, tuple[int, ...]], log: TrainLog, world: World) -> None:
        self.state = TrainState(start.step, start.seconds, self.run.config.digest(), world.size, start.origin)
        if world.is_main:
            log.sinks = open_sinks(self.run.config, self.run.path)
            self._warn_of_settings_without_effect(start, plan, shapes)
            start.open_files(self.store, log, self.state)

    def _warn_of_settings_without_effect(self, start: Start, plan: Plan, shapes: dict[str, tuple[int, ...]]) -> None:
        max_steps = self.run.config.train.max_steps
        num_steps = max_steps or max(1, int(plan.steps_end / plan.step_seconds))
        begun = start.fraction(max_steps, plan.steps_end)
        for sentence in without_effect(self.run.config, shapes, num_steps, begun):
            log.warning("no effect: %s", sentence)

    def mfu_per_token_rates(self, world: World) -> tuple[float, float]:
        model, length, device = self.run.config.model, self.run.config.train.seq_len, device_name(world.device)
        off, on = (mfu(model, length, 1.0, device, world.size, looped) or 0.0 for looped in (False, True))
        return off, on

    @contextmanager
    def steps(
        self, trainer: Trainer, rows: TrainingRows, live: dict[str, Tensor], report: StepReport, tokenizer: Tokenizer
    ) -> Iterator[AfterStep]:
        """Save checkpoints, watch, log recompilations, and end the training after a signal."""
        config, world, complete = trainer.config, trainer.world, trainer.optimizer.muon.gather_
        checkpoints = Checkpoints(self.store, live, self.state, config.checkpoint, report, world, complete)
        watch = Watch(trainer, rows, report, tokenizer)
        recompiles, clock = None, report.timeline.clock
        if trainer.compiled and world.is_main:
            from bitgolf.train.recompiles import Recompiles  # imports the compiler

            recompiles = Recompiles(report.log, self.state.step, self.state.seconds_spent)
        made = self.state.step

        def after_step(step: int, looped: bool) -> None:
            nonlocal made
            made = step
            checkpoints.after_step(step)
            watch.after_step(step, looped)
            if recompiles is not None:
                recompiles.after_step(step, clock.elapsed())

        with StopOnSignal(checkpoints, report, world, after_step) as stopping:
            yield stopping
            checkpoints.save_last(made)

    def end(self) -> None:
        """Wait until the last checkpoint is written."""
        self.store.close()
