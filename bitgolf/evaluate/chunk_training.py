"""Chunk test-time training: after a chunk is scored, the weights take a few steps on it before the next chunk.

`ChunkTTT` is an `Adapter` of the score tape. It receives a chunk's tokens after their losses are final, so it is
score-first by construction (rule C3, docs/rules.md#c3). A chunk of C targets gives C // T rows of T inputs and their
targets; the remainder is scored but not learned. Each chunk is learned for a few epochs with SGD or AdamW, whose state
is kept across chunks. The learning rate falls by a cosine over the chunks and, with a floor below 1, by another cosine
over the steps of each chunk. Gradients are those of the evaluation forward (no fake quantization), and the scorer uses
the same live weights. Nothing is learned from the last chunk, and `adapted_pass.preserved` restores the weights.

A batch of R rows is defined over all ranks and dealt out in turn. Shares are filled up with rows of weight zero, so
every rank takes part in every collective, and any number of ranks does the same arithmetic.

Sources: full weights PR 461 (first two blocks frozen) and 549, the second cosine PR 693, last blocks and all scales
with AdamW PR 576 and 585.

Legend: B rows of a forward pass, R rows of a batch or chunk, T window, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.config import TTTConfig
from bitgolf.config.evaluate import WeightsTTTConfig
from bitgolf.errors import TrainingDiverged
from bitgolf.evaluate.split_model import CompiledModel
from bitgolf.evaluate.tape import TokenReader
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import World


def learning_parameters(model: nn.Module, config: TTTConfig) -> dict[str, nn.Parameter]:
    """The parameters that test-time training changes, by name.

    `full`: everything but the first `freeze_blocks` blocks. `last_blocks`: the last n blocks, and every scale
    (attention and MLP scales of all blocks, bigram and value embedding scales). The tied embedding, which is also the
    head, does not learn with `last_blocks`.
    """
    parameters = dict(model.named_parameters())
    if config.method == "full":
        frozen = tuple(f"blocks.{layer}." for layer in range(config.weights.freeze_blocks))
        return {name: parameter for name, parameter in parameters.items() if not name.startswith(frozen)}
    assert isinstance(model, GPT)
    first = len(model.blocks) - config.weights.last_blocks
    blocks = tuple(f"blocks.{layer}." for layer in range(first, len(model.blocks)))
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name.startswith(blocks) or "scale" in name.rpartition(".")[2]
    }


def cosine_lr(lr: float, chunk: int, num_chunks: int) -> float:
    """Learning rate after chunk `chunk` of `num_chunks`: `lr` after the first, falling to 0 at the last."""
    return lr / 2 * (1 + math.cos(math.pi * chunk / max(1, num_chunks - 1)))


def step_scale(floor: float, step: int, num_steps: int) -> float:
    """Multiplier of the rate at step `step` of the `num_steps` of a chunk: 1 at the first, falling to `floor`."""
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * step / max(1, num_steps - 1)))


def chunk_rows(
    revealed: TokenReader,
    start: int,  # first target of the chunk
    stop: int,  # one past the last
    window: int,  # T
) -> np.ndarray:
    """Rows of the chunk, (R, T + 1) int64: T inputs, and shifted by one their targets. R = (stop - start) // T."""
    count = (stop - start) // window
    tokens = revealed(start, start + count * window + 1) if count else np.zeros(1)
    starts = np.arange(count)[:, None] * window
    return tokens.astype(np.int64)[starts + np.arange(window + 1)]


def share(rows: np.ndarray, world: World) -> tuple[np.ndarray, np.ndarray]:
    """This rank's rows of the batch of all ranks, (R, ...) with R >= 1, and their weights, float32.

    Every rank gets ceil(R / ranks) rows. A weight is ranks / R, or 0 for a row that fills up, so the mean over ranks of
    each rank's weighted sum is the mean over the batch.
    """
    picked = np.arange(world.rank, world.rank + -(-len(rows) // world.size) * world.size, world.size)
    real = picked < len(rows)
    return rows[np.where(real, picked, 0)], np.where(real, world.size / len(rows), 0).astype(np.float32)


class ChunkTTT:
    """Adapter that trains a model on each scored chunk."""

    def __init__(
        self,
        model: nn.Module,  # its parameters are changed in place; only those of `learning_parameters` get gradients
        # tokens (B, T) int64 -> logits (B, T, V) float32 with those parameters: `model` or its compiled form.
        forward: Callable[[Tensor], Tensor],
        config: TTTConfig,  # what learns, and optimizer, schedule and batch
        *,
        window: int,  # T, tokens per row
        num_targets: int,  # of the whole tape, for the schedule
        batch_tokens: int,  # tokens per forward pass on one rank; gradients of a larger batch are accumulated
        world: World,  # all ranks call `update` with the same chunks and keep equal weights
    ) -> None:
        self.forward, self.config, self.window, self.world = forward, config.weights, window, world
        self.losses: Callable[[Tensor], Tensor] = self._losses
        if isinstance(forward, CompiledModel):  # one graph from the tokens to the losses
            self.forward, self.losses = model, forward.compile(self._losses)
        self.num_chunks = -(-num_targets // self.config.chunk_tokens)
        self.rows_at_once = max(1, batch_tokens // window)
        self.num_steps = 0
        model.requires_grad_(False)
        self.parameters = list(learning_parameters(model, config).values())
        self.optimizer = _optimizer(self.parameters, self.config)

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        """Learn from targets start..stop-1.

        Raises TrainingDiverged when a gradient is not finite; the weights are then those of the step before.
        """
        config = self.config
        rows = chunk_rows(revealed, start, stop, self.window)  # (R, T + 1)
        chunk = start // config.chunk_tokens
        lr = cosine_lr(config.lr, chunk, self.num_chunks)
        batches = [rows[begin : begin + config.batch_rows] for begin in range(0, len(rows), config.batch_rows)]
        num_steps = config.epochs * len(batches)
        self._require_gradients(True)
        for step in range(num_steps):
            for group in self.optimizer.param_groups:
                group["lr"] = lr * step_scale(config.step_cosine_floor, step, num_steps)
            self._step(batches[step % len(batches)], chunk)
        self._require_gradients(False)

    def _require_gradients(self, value: bool) -> None:
        """Only while it trains: a compiled scorer is compiled for parameters without gradients."""
        for parameter in self.parameters:
            parameter.requires_grad_(value)

    @torch.enable_grad()
    def _step(self, batch: np.ndarray, chunk: int) -> None:
        """One update from the mean loss of a batch of rows, (R, T + 1), over all ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        for tokens, weights in self._pieces(batch):
            (self.losses(tokens) * weights).sum().backward()
        self.world.mean_([p.grad for p in self.parameters if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf)
        if not bool(torch.isfinite(norm)):
            raise TrainingDiverged(
                f"test-time training: the gradient norm is {float(norm)} in chunk {chunk} (step "
                f"{self.num_steps}); lower ttt.weights.lr ({self.config.lr:g})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1

    def _losses(self, tokens: Tensor) -> Tensor:
        """Mean loss of each row, (B,), of tokens (B, T + 1)."""
        logits = self.forward(tokens[:, :-1])  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return losses.view(len(tokens), -1).mean(1)

    def _pieces(self, batch: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's rows (B, T + 1) and weights (B,) of a batch, as many at once as a forward pass holds."""
        rows, weights = share(batch, self.world)
        for begin in range(0, len(rows), self.rows_at_once):
            part = slice(begin, begin + self.rows_at_once)
            yield (
                torch.from_numpy(rows[part]).to(self.world.device),
                torch.from_numpy(weights[part]).to(self.world.device),
            )


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore the model's weights, and which of them have gradients, at the end of the block."""
    before = {
        name: (parameter.detach().clone(), parameter.requires_grad) for name, parameter in model.named_parameters()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values, learns = before[name]
                parameter.copy_(values)
                parameter.requires_grad_(learns)
                parameter.grad = None


def _optimizer(parameters: list[nn.Parameter], config: WeightsTTTConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, foreach=True)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, foreach=True
    )
