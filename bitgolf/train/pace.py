"""The training budget over time: how it is divided, how much is spent, and which fraction of the steps is done.

All ranks use rank 0's clock. Its reading is sent with the all-reduced metrics and arrives a few steps late, so every
rank predicts the present from the same numbers (`Pace`) and all take the same decisions. The budget is divided
(`Division`) between the optimizer steps, the replay burst that may follow them, and the measurements on the final
weights (`Reserves`). All of it ends inside the budget (rule B4 in docs/rules.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from bitgolf.config import TrainConfig
from bitgolf.run.clock import Clock
from bitgolf.train.ramp import Ramp

LAG = 2  # steps between the launch of a step and the reading of its metrics
MARGIN_SECONDS = 0.1  # for the last launches and the transfer of the statistics


class Pace:
    """Elapsed time as every rank knows it: the last shared reading and the seconds per step.

    A step of several blocks of rows (`ramp`) is taken to last several times as long as one of a single block.

    Args:
        step: number of steps made before this process.
        elapsed: seconds spent before this process.
        seconds_per_step: as measured in the warm-up, of a step in the last part of the ramp.
        ramp: blocks per step; None = one.
    """

    def __init__(self, step: int, elapsed: float, seconds_per_step: float, ramp: Ramp | None = None) -> None:
        self.step, self.elapsed, self.ramp = step, elapsed, ramp or Ramp()
        self._first = step
        self._seconds_per_block = seconds_per_step / self.ramp.last_size
        self._seconds, self._blocks = 0.0, 0

    @property
    def seconds_per_step(self) -> float:
        """Running average of about ten steps, for predicting the present. Of a step in the last part of the ramp."""
        return self._seconds_per_block * self.ramp.last_size

    @property
    def mean_seconds(self) -> float:
        """Average over all steps of this process, for dividing the budget. Of a step in the last part of the ramp."""
        return self._seconds / self._blocks * self.ramp.last_size if self._blocks else self.seconds_per_step

    def observe(self, step: int, elapsed: float) -> None:
        """Take in rank 0's reading at the launch of `step`, counted from 1."""
        if step <= self.step:
            return
        # A reading is taken at the launch of a step, so the first one measures no completed step.
        blocks = self._blocks_before(step) - self._blocks_before(max(self.step, self._first + 1))
        seconds = elapsed - self.elapsed
        if blocks > 0:
            self._seconds_per_block += 0.1 * (seconds / blocks - self._seconds_per_block)
            self._seconds, self._blocks = self._seconds + seconds, self._blocks + blocks
        self.step, self.elapsed = step, elapsed

    def restart(self, step: int, elapsed: float) -> None:
        """`step` is launched at `elapsed`, after other work that is no part of the seconds per step."""
        self.step, self.elapsed = step, elapsed

    def predict(self, step: int) -> float:
        """The elapsed seconds at the launch of `step`."""
        return (
            self.elapsed + max(0, self._blocks_before(step) - self._blocks_before(self.step)) * self._seconds_per_block
        )

    def _blocks_before(self, step: int) -> int:
        """Blocks of the steps before `step`, counted from 1."""
        return self.ramp.blocks(step - 1)


@dataclass(frozen=True)
class EndTimes:
    """When each part that follows the replay burst must be over, in seconds of the training clock."""

    choice: float
    calibration: float
    fisher: float


@dataclass(frozen=True)
class Reserves:
    """Seconds that the budget reserves after the last step, by part, in the order of the parts.

    `in_flight` is for the steps that are launched but not yet completed when the last one is decided on.
    """

    choice: float = 0.0
    calibration: float = 0.0
    fisher: float = 0.0
    in_flight: float = 0.0

    @property
    def total(self) -> float:
        return self.choice + self.calibration + self.fisher + self.in_flight

    def end_times(self, limit: float) -> EndTimes:
        """When the parts must be over, so that those after them still fit into a budget of `limit` seconds."""
        return EndTimes(choice=limit - self.calibration - self.fisher, calibration=limit - self.fisher, fisher=limit)


@dataclass(frozen=True)
class Division:
    """How the training budget is divided."""

    limit: float  # the whole budget in seconds
    reserve: float  # seconds at its end for the measurements on the final weights and for the work in flight
    replay_steps: int = 0  # upper limit on the steps of the replay burst
    replay_share: float = 0.0  # upper limit on replayed steps per step before the burst

    @classmethod
    def of(cls, limit: float, reserve: float, config: TrainConfig) -> Division:
        """The division for `config`. The burst replays batches of the last part of the warm-down."""
        epochs = config.replay.epochs
        return cls(
            limit, reserve, epochs * config.replay.batches, epochs * config.warmdown * config.replay.lr_scale_below
        )

    @property
    def replay_end(self) -> float:
        """When the replay burst must be over, in seconds."""
        return self.limit - self.reserve

    def steps_end(self, step_seconds: float) -> float:
        """When the optimizer steps and the warm-down are over, if one replayed step takes `step_seconds`.

        The burst replays min(replay_steps, replay_share * steps) steps, so the end E solves
        E + min(replay_steps * step_seconds, replay_share * E) = replay_end.
        """
        return max(self.replay_end - self.replay_steps * step_seconds, self.replay_end / (1 + self.replay_share))

    def seconds_for(self, num_steps: float, step_seconds: float) -> float:
        """The budget in which `steps_end` leaves room for `num_steps` steps of `step_seconds`."""
        end = num_steps * step_seconds
        return end + min(self.replay_steps * step_seconds, self.replay_share * end) + self.reserve


@dataclass
class Timeline:
    """How far the optimizer steps are. Every answer but the clock's is the same on all ranks."""

    clock: Clock  # rank 0's clock
    pace: Pace  # what all ranks know of it
    division: Division  # of the budget
    max_steps: int = 0  # end after this many steps; 0 = the clock alone ends the steps

    def steps_end(self) -> float:
        """When the optimizer steps are over, in seconds, at the pace so far."""
        return self.division.steps_end(self.pace.mean_seconds)

    def fraction(self, step: int) -> float:
        """Share of the optimizer steps that is done after `step` of them: by number if it is limited, else by time."""
        if self.max_steps:
            return min(1.0, step / self.max_steps)
        return min(1.0, self.pace.predict(step) / self.steps_end())

    def steps_are_over(self, step: int) -> bool:
        """Whether `step` steps are all of them. The clock never ends them before the first."""
        if self.max_steps and step >= self.max_steps:
            return True
        return step > 0 and self.pace.predict(step + 1) > self.steps_end()
