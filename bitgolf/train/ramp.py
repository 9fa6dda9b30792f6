"""Steps of several sizes: `train.batch_ramp` (after modded-nanogpt).

The rows of a run are read in blocks. A block is the largest number of rows that divides the batches of all parts of the
run, and a step takes one or more blocks. Without a ramp, a block is a batch. A checkpoint holds the number of blocks
that all steps before it have taken, so a resumed run goes on with the next rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitgolf.config.train import TrainConfig


class Ramp:
    """How many blocks the steps take.

    Args:
        parts: of the run: the fraction from which it holds, blocks per step, and the multiplier of the learning rates.

    Attributes:
        taken: blocks that all steps so far have taken, a scalar, int64.
        last_size: blocks per step in the last part.
    """

    def __init__(self, parts: Sequence[tuple[float, int, float]] = ((0.0, 1, 1.0),)) -> None:
        self.parts, self.last_size = parts, parts[-1][1]
        self.taken = torch.zeros((), dtype=torch.int64)
        self._changes = [(0, 0, parts[0][1])]  # step, blocks before it, and blocks per step from there on

    @classmethod
    def of(cls, config: TrainConfig) -> Ramp:
        return cls([(start, tokens // config.block_tokens, rate) for start, tokens, rate in config.batch_parts])

    def begin(self, step: int) -> None:
        """The next step is number `step`, counted from 0; `state` has been restored."""
        if not self.state():
            self.taken.fill_(step)
        self._changes = [(step, int(self.taken), self.parts[0][1])]

    def enter(self, step: int, fraction: float) -> tuple[int, float]:
        """Blocks of step number `step` at `fraction` of the run, and the multiplier of its learning rates."""
        _, size, rate = [part for part in self.parts if part[0] <= fraction][-1]
        if size != self._changes[-1][2]:
            self._changes = [change for change in self._changes if change[0] < step] + [(step, self.blocks(step), size)]
        self.taken.fill_(self.blocks(step + 1))
        return size, rate

    def blocks(self, step: int) -> int:
        """Blocks that the first `step` steps take, if the size stays what it is now."""
        first, before, size = next(
            (change for change in reversed(self._changes) if change[0] <= step), self._changes[0]
        )
        return before + (step - first) * size

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, live (not a copy)."""
        return {"ramp.taken": self.taken} if len(self.parts) > 1 else {}
