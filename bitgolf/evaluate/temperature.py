"""Temperature: logits divided by one number, a constant or an online estimate from tokens already scored.

The constant is a setting, decided before anything is scored. The online estimate takes one step after each chunk,
down the gradient of the chunk's mean loss by the logarithm of T, and is used from the next chunk on; the first pass
counts. The chunk is run once more for it, in plain rows, with the weights that scored it: measured after
test-time training on the same tokens, T would be fitted to what the weights have just learned (the two-pass
re-score at T = 0.98 of PR 576 gains in exactly that way, and is not admissible). Source: techniques.md section 9.

Legend: B rows, R rows of a chunk, T window (as a shape), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.distributed import World
from bitgolf.evaluate.chunk_rows import chunk_rows, share
from bitgolf.evaluate.split_model import split
from bitgolf.evaluate.tape import TokenReader


class Tempered:
    """A model whose logits are divided by `temperature`, which an adapter may change between chunks.

    Args:
        model: tokens (B, T) int64 -> logits (B, T, V) float32.
        temperature: > 0.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], temperature: float) -> None:
        self.model, self.temperature = model, temperature
        self._halves = split(model)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        return self.model(tokens) / self.temperature

    def hidden(self, tokens: Tensor) -> Tensor:
        """First half of the model (see `split_model`)."""
        return self._halves.hidden(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """Second half of the model, (P, V)."""
        return self._halves.logits(hidden) / self.temperature


class OnlineTemperature:
    """Adapter that moves a model's temperature by one gradient step a chunk.

    Args:
        tempered: the model; the scorer uses the same object.
        lr: step of log temperature a nat of gradient.
        window: tokens of a row.
        batch_tokens: tokens of one forward pass on one rank.
        world: all ranks call `update` with the same chunks and keep the same temperature.
    """

    def __init__(self, tempered: Tempered, lr: float, *, window: int, batch_tokens: int, world: World) -> None:
        self.tempered, self.lr, self.window, self.world = tempered, lr, window, world
        self.rows_at_once = max(1, batch_tokens // window)

    @torch.no_grad()
    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        """Learn from targets start..stop-1."""
        rows = chunk_rows(revealed, start, stop, self.window)  # (R, T + 1)
        if not len(rows):
            return
        mine, weights = share(rows, self.world)
        gradient = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for begin in range(0, len(mine), self.rows_at_once):
            tokens = torch.from_numpy(mine[begin : begin + self.rows_at_once]).to(self.world.device)
            logits = self.tempered(tokens[:, :-1])  # (B, T, V)
            for row, weight in enumerate(weights[begin : begin + self.rows_at_once].tolist()):
                gradient += weight * log_temperature_gradient(logits[row], tokens[row, 1:]).mean().double()
        self.world.mean_([gradient])
        self.tempered.temperature *= math.exp(-self.lr * float(gradient))


def log_temperature_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Derivative of each loss by the logarithm of the temperature that the logits are already divided by.

    Args:
        logits: (T, V) float32, z / temperature.
        targets: (T,) int64.
    Returns:
        (T,) float32, nats: logit of the target minus the mean logit under the prediction.
    """
    expected = (logits.softmax(-1) * logits).sum(-1)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - expected
