"""The timed optimizer steps, until their share of the budget is spent or `train.max_steps` are made.

Everything around a step happens here: the schedules, the switch to the late phase and to looped layers, the metrics.
All ranks take every decision from the same numbers (`Timeline`).
"""

from collections.abc import Callable

from bitgolf.data.loader import BatchLoader, next_batches
from bitgolf.train.late import LatePhase
from bitgolf.train.metrics import StepReport, TrainLog
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.schedule import StepSettings, extra_weights, lr_multiplier, muon_decay, muon_momentum, windows_at
from bitgolf.train.trainer import Trainer

AfterStep = Callable[[int, bool], None]  # (number of steps made, whether the looped layers run several times)


def make_steps(
    trainer: Trainer,
    loader: BatchLoader,
    window: ReplayWindow,
    report: StepReport,  # has the timeline
    step: int,
    after_step: AfterStep = lambda step, looped: None,
) -> int:
    """Train from `step` steps on until the steps are over. Returns the number of steps of the whole run."""
    config, late, timeline = trainer.config, trainer.late, report.timeline
    late_has_begun = False
    loops = bool(trainer.model.config.loop.repeats)
    looped = not loops or timeline.fraction(step) >= config.loop_start
    model, last_windows = trainer.model, trainer.model.config.attention.windows
    ramp, blocks = timeline.pace.ramp, 0
    while not timeline.steps_are_over(step):
        fraction = timeline.fraction(step)
        before, (blocks, rate) = blocks, ramp.enter(step, fraction)
        inputs, targets = next_batches(loader, blocks)
        lr_scale = lr_multiplier(fraction, config.warmdown, config.min_lr)
        late_is_on = late is not None and late.config.is_on(fraction, lr_scale)
        if late is not None and late_is_on and not late_has_begun:
            late_has_begun = True
            _begin_late(late, step, fraction, lr_scale, report.log)
        if not looped and fraction >= config.loop_start:
            looped = True  # for the rest of the run
            report.log.write("loop", step=step, fraction=fraction, lr_scale=lr_scale)
        if (windows := windows_at(fraction, config, last_windows)) != model.windows:
            model.windows = windows
            report.log.write("windows", step=step, fraction=fraction, window=windows[0], full_window=windows[1])
        if blocks != before and len(ramp.parts) > 1:
            tokens = blocks * config.block_tokens
            report.log.write("batch", step=step, fraction=fraction, batch_tokens=tokens, lr_multiplier=rate)
        window.note(ramp.blocks(step), lr_scale)
        settings = StepSettings(
            lr_scale,
            muon_momentum(fraction, config.muon),
            fraction,
            late_is_on,
            looped=looped,
            rate=rate,
            decay=muon_decay(fraction, config.muon),
            extra=None if late_is_on else extra_weights(fraction, config.extra_targets),
        )
        metrics = trainer.step(inputs, targets, settings, timeline.clock.elapsed())
        step += 1
        report.looped = looped
        report.add(step, metrics, lr_scale)
        after_step(step, looped)
    report.drain()
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
