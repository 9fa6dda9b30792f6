"""The replay burst: after the warm-down, a few quick passes over the last batches, at a small constant rate (PR 693).

Published: two passes over the last 100 batches (or fewer) that were seen while the rate multiplier was below 0.2, at
0.1 of the base rates, with the EMA going on and without fake quantization or its penalty. There it ran after the
clock had stopped; here it is part of the training budget (rule B4): `Division` reserves its time at the measured pace,
the warm-down ends where it begins, and the clock can cut it short. It reads batches that training has seen, nothing
else. No checkpoint is taken in it: a run that dies there resumes before it and repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.data.loader import BatchLoader
from bitgolf.run.clock import Clock
from bitgolf.run.progress import Progress, silent
from bitgolf.train.metrics import MetricsPipe
from bitgolf.train.pace import Pace
from bitgolf.train.schedule import muon_momentum
from bitgolf.train.trainer import Trainer


class ReplayWindow:
    """Remembers since which step the learning rate has been low enough for a batch to be replayed."""

    def __init__(self, config: TrainConfig) -> None:
        self.enabled, self.below, self.most = (
            config.replay.epochs > 0,
            config.replay.lr_scale_below,
            config.replay.batches,
        )
        self.first = torch.full((), -1, dtype=torch.int64)  # step number of the first such batch; negative = none yet

    def note(self, step: int, lr_scale: float) -> None:
        """Batch `step` was trained on with this rate multiplier."""
        if lr_scale >= self.below:
            self.first.fill_(-1)
        elif int(self.first) < 0:
            self.first.fill_(step)

    def batches(self, step: int) -> range:
        """Step numbers of the batches to replay when `step` steps are done: the last ones of low rate."""
        first = int(self.first)
        return range(max(first, step - self.most), step) if first >= 0 else range(0)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, live (not copies)."""
        return {"replay.first": self.first} if self.enabled else {}


@dataclass(frozen=True)
class Replayed:
    """What the burst did.

    Attributes:
        batches: how many different ones were planned.
        planned, steps: optimizer steps planned, and made before the clock.
        losses: mean training loss of each pass, nats; the last one may be cut short.
    """

    batches: int
    planned: int
    steps: int
    losses: tuple[float, ...]


def replay(
    trainer: Trainer,
    loader: BatchLoader,
    batches: range,
    step: int,
    pace: Pace,
    clock: Clock,
    pipe: MetricsPipe,
    until: float,
    progress: Progress = silent,
) -> Replayed:
    """Train again on `batches`, `replay_epochs` times in order; no step is launched after `until`.

    Args:
        loader: gives this rank's rows of a batch by its step number.
        batches: step numbers, each below `step`.
        step: optimizer steps made so far; the burst's count on from it for `pace` and `pipe`.
        until: elapsed seconds; what is in flight then has room in the reserve.
    """
    config, world = trainer.config, trainer.world
    order = [number for _ in range(config.replay.epochs) for number in batches]
    momentum = muon_momentum(1.0, config)
    losses: list[float] = []

    def note(due: list[tuple[int, list[float]]]) -> None:
        for number, values in due:
            pace.observe(number, values[0])
            losses.append(values[1])

    made = 0
    for number in order:
        if pace.predict(step + made + 1) > until:
            break
        assert number < step  # only what has been seen
        rows = loader.rows(number)
        tokens = (rows.pin_memory() if world.device.type == "cuda" else rows).to(world.device, non_blocking=True).long()
        metrics = trainer.step(
            tokens[:, :-1],
            tokens[:, 1:],
            config.replay.lr,
            momentum,
            clock.elapsed(),
            fraction=1.0,
            late=False,
            snapshots=False,
        )
        made += 1
        note(pipe.push(step + made, metrics))
        if world.is_main:
            progress("replay", made, len(order))
    note(pipe.drain())
    size = max(1, len(batches))
    passes = [losses[start : start + size] for start in range(0, len(losses), size)]
    return Replayed(len(batches), len(order), made, tuple(sum(part) / len(part) for part in passes))
