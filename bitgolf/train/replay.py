"""The replay burst: a few quick passes over the last batches after the warm-down, at a small constant rate (PR 693).

The published burst makes two passes over the last 100 batches that were seen while the learning-rate multiplier was
below 0.2, at 0.1 of the base rates. The EMA goes on; fake quantization and its penalty are off. There it ran after the
clock had stopped. Here it is part of the training budget (rule B4 in docs/rules.md): `Division` reserves its time, the
warm-down ends where it begins, and the clock can end it early. It reads only batches that training has seen. No
checkpoint is saved in it, so a run that is interrupted there resumes before it and repeats it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.config.train import ReplayConfig
from bitgolf.data.loader import BatchLoader
from bitgolf.run.progress import Progress, silent
from bitgolf.train.metrics import MetricsPipe
from bitgolf.train.pace import Timeline
from bitgolf.train.schedule import StepSettings, muon_momentum
from bitgolf.train.trainer import Trainer


class ReplayWindow:
    """Remembers since which step the learning rate has been low enough for a batch to be replayed."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.first = torch.full((), -1, dtype=torch.int64)  # number of the first such batch; negative = none yet

    def note(self, block: int, lr_scale: float) -> None:
        """The batch that begins with `block` (see `bitgolf.train.ramp`) was trained on with this multiplier."""
        if lr_scale >= self.config.lr_scale_below:
            self.first.fill_(-1)
        elif int(self.first) < 0:
            self.first.fill_(block)

    def batches(self, taken: int, size: int = 1) -> range:
        """First blocks of the batches to replay, of `size` blocks, after `taken` blocks: the last with a low rate."""
        first = int(self.first)
        count = min(self.config.batches, (taken - first) // size) if first >= 0 else 0
        return range(taken - count * size, taken, size)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, live (not copies)."""
        return {"replay.first": self.first} if self.config.epochs else {}


@dataclass(frozen=True)
class Replayed:
    batches: int  # number of different batches planned
    # planned, steps: optimizer steps planned, and made before the clock ended the burst.
    planned: int
    steps: int
    losses: tuple[float, ...]  # mean training loss of each pass in nats; the last pass may be incomplete


def replay(
    trainer: Trainer,
    loader: BatchLoader,  # gives this rank's rows of blocks by their number
    batches: range,  # first blocks of batches of `batches.step` blocks, which the steps before have taken
    # optimizer steps made so far. The steps of the burst count on from it for the pace and the metrics.
    step: int,
    timeline: Timeline,
    pipe: MetricsPipe,
    progress: Progress = silent,
) -> Replayed:
    """Train again on `batches`, `train.replay.epochs` times in order, until `Division.replay_end` at the latest."""
    config, pace = trainer.config, timeline.pace
    order = [number for _ in range(config.replay.epochs) for number in batches]
    settings = StepSettings(config.replay.lr, muon_momentum(1.0, config.muon), fraction=1.0, snapshots=False)
    losses: list[float] = []

    def take_in(due: list[tuple[int, list[float]]]) -> None:
        for number, values in due:
            pace.observe(number, values[0])
            losses.append(values[1])

    made = 0
    for number in order:
        if pace.predict(step + made + 1) > timeline.division.replay_end:
            break
        assert number + batches.step <= pace.ramp.blocks(step)  # only batches that have been seen
        inputs, targets = loader.rows(number, batches.step)
        metrics = trainer.step(inputs, targets, settings, timeline.clock.elapsed())
        made += 1
        take_in(pipe.push(step + made, metrics))
        progress("replay", made, len(order))
    take_in(pipe.drain())
    size = max(1, len(batches))
    passes = [losses[start : start + size] for start in range(0, len(losses), size)]
    return Replayed(len(batches), len(order), made, tuple(sum(part) / len(part) for part in passes))
