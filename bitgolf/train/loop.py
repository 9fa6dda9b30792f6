"""The timed optimizer steps: until their share of the budget is spent, or `max_steps` are made.

All ranks take every decision from the same shared numbers (`Pace`). Around the step stand the schedules, the switch to
the late phase, the metrics with their lag, and the checkpoints.
"""

from __future__ import annotations

import logging

import torch

from bitgolf.data.loader import BatchLoader
from bitgolf.train.checkpoint import TrainState
from bitgolf.train.schedule import lr_multiplier, muon_momentum
from bitgolf.train.session import Session

log = logging.getLogger(__name__)


class StepLoop:
    """Makes the steps of one session.

    Args:
        session: what is trained, and with what.
        step: steps made before (of the checkpoint).
    """

    def __init__(self, session: Session, step: int) -> None:
        self.session, self.step = session, step
        self.recent: list[float] = []  # losses since the last log line
        self.lr_scales: dict[int, float] = {}  # of the steps whose metrics are in flight
        self.last_logged = (step, session.pace.elapsed)
        self.last_checkpoint = session.pace.elapsed
        fraction = self._fraction()
        self.keep_at = [at for at in session.config.checkpoint.at if at > fraction]

    def run(self, loader: BatchLoader) -> int:
        """Step until done. Returns the number of steps made in the whole run."""
        session = self.session
        config, qat = session.config, session.run.config.qat
        late_began = False
        while not self._done():
            inputs, targets = next(loader)
            fraction = self._fraction()
            lr_scale = lr_multiplier(fraction, config.warmdown, config.min_lr)
            late = qat.is_on(fraction, lr_scale)
            if late and not late_began:
                late_began = True
                self._begin_late(fraction, lr_scale)
            session.window.note(self.step, lr_scale)
            metrics = session.trainer.step(
                inputs, targets, lr_scale, muon_momentum(fraction, config), session.clock.elapsed(), fraction, late
            )
            self.step += 1
            self.lr_scales[self.step] = lr_scale
            for due in session.pipe.push(self.step, metrics):
                self._note(due)
            self._checkpoint_if_due()
        self._drain()
        if self.keep_at and not config.max_steps:  # the clock ended the steps just before the fraction was reached
            self._checkpoint(kept=True)
        elif self.keep_at:
            log.warning(
                "the clock ended the steps at fraction %.3g: no checkpoint at %s", self._fraction(), self.keep_at
            )
        return self.step

    def _fraction(self) -> float:
        """Share of the run that is spent: by steps when they are capped, else by the clock."""
        session = self.session
        if session.config.max_steps:
            return min(1.0, self.step / session.config.max_steps)
        return min(1.0, session.pace.predict(self.step) / self._steps_end())

    def _steps_end(self) -> float:
        return self.session.division.steps_end(self.session.pace.mean_seconds)

    def _done(self) -> bool:
        if self.session.config.max_steps and self.step >= self.session.config.max_steps:
            return True
        return self.step > 0 and self.session.pace.predict(self.step + 1) > self._steps_end()

    def _drain(self) -> None:
        for due in self.session.pipe.drain():
            self._note(due)

    def _note(self, due: tuple[int, list[float]]) -> None:
        """Take in one step's metrics: the shared clock, the progress bar, every `log_every` steps a log line."""
        session, config = self.session, self.session.config
        step, values = due
        elapsed, loss, grad_norm, lr_scale = values[0], values[1], values[-1], self.lr_scales.pop(step)
        session.pace.observe(step, elapsed)
        self.recent.append(loss)
        if session.world.is_main:
            end = self._steps_end()
            done, total = (step, config.max_steps) if config.max_steps else (min(elapsed, end), end)
            session.progress("train", done, total, f"step {step} loss {loss:.4f}")
        if step % config.log_every and step != 1:
            return
        before_step, before = self.last_logged
        # The clock is read when a step is launched, so the first reading times nothing; the warm-up's step does.
        seconds = session.pace.seconds_per_step if step == 1 else elapsed - before
        session.log.write(
            "step",
            step=step,
            loss=sum(self.recent) / len(self.recent),
            lr_scale=lr_scale,
            tokens=step * config.batch_tokens,
            elapsed_seconds=elapsed,
            grad_norm=grad_norm,
            tokens_per_second=(step - before_step) * config.batch_tokens / max(seconds, 1e-9),
        )
        self.recent = []
        self.last_logged = step, elapsed

    def _begin_late(self, fraction: float, lr_scale: float) -> None:
        """Switch the late phase on and write down that it changes the weights that are used."""
        session = self.session
        assert session.trainer.late is not None
        moved = session.trainer.late.begin(fraction)
        qat = session.run.config.qat
        session.log.write(
            "late",
            step=self.step,
            fraction=fraction,
            lr_scale=lr_scale,
            mode=qat.mode,
            crown_lambda=qat.crown.weight,
            relative_change=moved,
        )

    def _checkpoint_if_due(self) -> None:
        """A kept checkpoint at each fraction of `checkpoint_at`, others `checkpoint_seconds` apart."""
        session = self.session
        kept = bool(self.keep_at) and self._fraction() >= self.keep_at[0]
        every = session.config.checkpoint.seconds
        if kept or (every and session.pace.predict(self.step) - self.last_checkpoint > every):
            self._drain()
            self.last_checkpoint = session.pace.predict(self.step)
            self._checkpoint(kept)

    def _checkpoint(self, kept: bool) -> None:
        session = self.session
        if kept:
            # The first is served even if a newer reading of the clock puts the run a little before it again.
            fraction = self._fraction()
            self.keep_at = [at for at in self.keep_at[1:] if at > fraction]
        if not session.world.is_main:
            return
        spent = session.clock.elapsed()
        state = TrainState(self.step, spent, session.run.config.digest(), session.world.size, session.origin)
        tensors = session.trainer.tensors() | session.window.state() | {"rng": torch.get_rng_state()}
        session.store.save(state, tensors, kept=kept)
        session.log.write("checkpoint", step=self.step, elapsed_seconds=spent, fraction=self._fraction(), kept=kept)
