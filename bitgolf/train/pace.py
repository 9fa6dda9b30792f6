"""The training clock: what is spent, what every rank believes is spent, and how the budget is divided.

Rank 0's reading rules. It travels with the metrics and arrives a few steps late, so every rank predicts "now" from the
same numbers (`Pace`) and all take the same decisions. The budget is divided between the optimizer steps, the replay
burst that may follow them, and what is measured on the final weights (`Division`): all of it ends inside the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitgolf.config import TrainConfig

LAG = 2  # steps between launching work and reading its metrics
MARGIN_SECONDS = 0.1  # kept free for the last launches and the transfer of the statistics


class Pace:
    """Elapsed time as every rank knows it: the last shared reading and the seconds a step takes.

    Args:
        step: first step of this process.
        elapsed: seconds spent before it.
        seconds_per_step: as measured in the warm-up.

    Attributes:
        seconds_per_step: running average that forgets (the last ten steps or so): for predicting "now".
        mean_seconds: average over all steps of this process: for dividing the budget.
    """

    def __init__(self, step: int, elapsed: float, seconds_per_step: float) -> None:
        self.step, self.elapsed = step, elapsed
        self.seconds_per_step = seconds_per_step
        self._first = step
        self._seconds, self._steps = 0.0, 0

    @property
    def mean_seconds(self) -> float:
        return self._seconds / self._steps if self._steps else self.seconds_per_step

    def observe(self, step: int, elapsed: float) -> None:
        """Take in rank 0's reading at the launch of `step`, counted from 1."""
        if step <= self.step:
            return
        # A step is read when it is launched, so the first reading times nothing.
        steps, seconds = step - max(self.step, self._first + 1), elapsed - self.elapsed
        if steps > 0:
            self.seconds_per_step += 0.1 * (seconds / steps - self.seconds_per_step)
            self._seconds, self._steps = self._seconds + seconds, self._steps + steps
        self.step, self.elapsed = step, elapsed

    def predict(self, step: int) -> float:
        """The elapsed seconds at the launch of `step`."""
        return self.elapsed + max(0, step - self.step) * self.seconds_per_step


@dataclass(frozen=True)
class Division:
    """How the training budget is divided.

    Attributes:
        limit: the whole budget, seconds.
        reserve: seconds at its end for what is measured on the final weights and for work in flight.
        replay_steps: at most this many steps of the replay burst.
        replay_share: at most this many replayed steps for every step before them.
    """

    limit: float
    reserve: float
    replay_steps: int = 0
    replay_share: float = 0.0

    @classmethod
    def of(cls, limit: float, reserve: float, config: TrainConfig) -> Division:
        """The division for `config`: the burst replays batches of the last, slow part of the warm-down."""
        epochs = config.replay.epochs
        return cls(
            limit, reserve, epochs * config.replay.batches, epochs * config.warmdown * config.replay.lr_scale_below
        )

    @property
    def replay_end(self) -> float:
        """When the replay burst must be over, seconds."""
        return self.limit - self.reserve

    def steps_end(self, step_seconds: float) -> float:
        """When the optimizer steps, and with them the warm-down, are over, if a replayed step takes `step_seconds`.

        The burst replays min(replay_steps, replay_share * steps) steps, so the end E solves
        E + min(replay_steps * step_seconds, replay_share * E) = replay_end.
        """
        return max(self.replay_end - self.replay_steps * step_seconds, self.replay_end / (1 + self.replay_share))
