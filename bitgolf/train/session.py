"""What the phases of one training share: the run, the ranks, the trainer, the clock, the logs and the row order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitgolf.config import TrainConfig
from bitgolf.data.held_out import HeldOut
from bitgolf.data.loader import BatchShape, RowOrder
from bitgolf.data.shards import TokenShards
from bitgolf.run.clock import Clock
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import CheckpointStore
from bitgolf.train.metrics import MetricsPipe, TrainLog
from bitgolf.train.pace import Division, Pace
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.trainer import Trainer


class KnownTokens:
    """The training tokens; an id that the model has no embedding for is a DataError when it is read."""

    def __init__(self, stream: TokenShards, vocab_size: int) -> None:
        self.stream, self.vocab_size, self.num_tokens = stream, vocab_size, stream.num_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of the stream, (length,) uint16."""
        tokens = self.stream.read(start, length)
        if length and int(tokens.max()) >= self.vocab_size:
            self.stream.validate(self.vocab_size)  # names file, position and id
        return tokens


@dataclass(frozen=True)
class Reserves:
    """Seconds kept for what is measured on the final weights, in the order in which it happens."""

    choice: float
    calibration: float
    fisher: float
    curvature: float

    @property
    def total(self) -> float:
        """All of them together."""
        return self.choice + self.calibration + self.fisher + self.curvature


@dataclass
class Session:
    """One training on one rank. `reserves` are the parts of the division's reserve;
    `origin` says which checkpoint of another run a branch began from ("" for a run of its own)."""

    run: RunDirectory
    world: World
    stream: KnownTokens
    order: RowOrder
    shape: BatchShape
    held_out: HeldOut
    trainer: Trainer
    window: ReplayWindow
    store: CheckpointStore
    log: TrainLog
    pipe: MetricsPipe
    clock: Clock
    pace: Pace
    division: Division
    reserves: Reserves
    origin: str
    progress: Progress

    @property
    def config(self) -> TrainConfig:
        """Settings of the training loop."""
        return self.run.config.train
