"""Window scorers: from a causal model on windows of fixed length to one loss per target, each target exactly once.

Windows of T inputs start every `stride` tokens. The first window scores all its targets, every later one its last
`stride` targets, so all but the first T targets see more than T - stride tokens of context. Method `chunked` is the
same with stride T: windows that do not overlap. Which window scores a target is a closed formula of the target's
index. It depends neither on the length of the text nor on batches, ranks or chunk borders. Inputs are padded on the
right to one shape (B, T): later inputs cannot change earlier outputs of a causal model, and a compiled model is
compiled once. The head runs only on positions that are scored, in slabs of P positions.

Where attention stays within documents, tokens before a target's document do not matter. So one window that begins with
the document scores all its targets whose sliding windows begin earlier, instead of many windows with the same context
(`document_plan`).
Source: sliding evaluation of the challenge, with the tail fix of PR 1218.

Legend: W windows, B rows of a batch, T window, D model width, P positions of a slab, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bitgolf.config import Config
from bitgolf.errors import ConfigError
from bitgolf.evaluate.split_model import Model, split
from bitgolf.evaluate.tape import TokenReader
from bitgolf.model.document_borders import BOS
from bitgolf.run.ranks import World

METHODS = ("chunked", "sliding")
# Most positions whose logits are held at once: 64 MiB of float32 at V = 1,024, 512 MiB at V = 8,192.
_SLAB_POSITIONS = 16_384


@dataclass(frozen=True)
class Windows:
    """How a pass cuts the text: `length` (T) and `stride` in tokens, `batch_tokens` per forward pass on one rank.

    `documents`: the model's attention stays within documents.
    """

    method: str
    length: int
    stride: int
    batch_tokens: int
    documents: bool = False

    @classmethod
    def of(cls, config: Config, method: str = "", batch_tokens: int = 0) -> Windows:
        """The windows of a configuration; by default those of its last method, with its batch."""
        score = config.score
        documents = config.model.attention.within_documents
        return cls(
            method or score.methods[-1], config.window, score.stride, batch_tokens or score.batch_tokens, documents
        )

    def scorer(self, model: Model, world: World) -> WindowScorer:
        """The scorer of `method`."""
        if self.method not in METHODS:  # the audit takes names from score.json, which anybody may have written
            raise ConfigError(f"unknown scoring method {self.method!r}; methods: {', '.join(METHODS)}")
        return WindowScorer(model, self, world)


def window_plan(
    start: int,  # first target to score
    stop: int,  # one past the last
    window: int,  # T
    stride: int,
) -> np.ndarray:  # (W, 3) int64
    """Windows that score targets start..stop-1: rows (first input, first scored target, one past the last).

    Window k begins at input k * stride. Window 0 scores targets 0..T-1; window k > 0 scores targets
    k*stride + T - stride .. k*stride + T - 1. Rows are cut to [start, stop), so the plan reads no later token.
    """
    first_k = window_of(start, window, stride)
    last_k = window_of(stop - 1, window, stride)
    k = np.arange(first_k, last_k + 1, dtype=np.int64)
    begin = k * stride
    own = np.where(k == 0, 0, begin + window - stride)
    return np.stack([begin, np.maximum(own, start), np.minimum(begin + window, stop)], axis=1)


def document_plan(
    borders: np.ndarray,  # positions of the BOS tokens among the inputs, from the window of `start` to stop - 1
    start: int,
    stop: int,
    window: int,  # T
    stride: int,
) -> np.ndarray:  # (W, 3) int64
    """Like `window_plan`, but no window begins before the document of its targets.

    Targets whose window would begin before their document, or with it, share a window that begins with it.
    """
    inside = [start, *borders[borders > start].tolist(), stop]
    rows: list[np.ndarray] = []
    for low, high in itertools.pairwise(inside):
        before = borders[borders <= low]
        begin = int(before[-1]) if len(before) else -1
        first_later = min(high, window + begin // stride * stride) if begin >= 0 else low  # whose window begins later
        if low < first_later:
            rows.append(np.array([[begin, low, first_later]]))
        if max(low, first_later) < high:
            rows.append(window_plan(max(low, first_later), high, window, stride))
    return np.concatenate(rows)


def window_of(target: int, window: int, stride: int) -> int:
    """Number k of the window that scores a target."""
    return 0 if target < window else (target - window) // stride + 1


class WindowScorer:
    """Scores with one forward pass per batch of windows. All ranks score the same ranges, and all get all losses."""

    def __init__(self, model: Model, windows: Windows, world: World) -> None:
        self.model, self.world = split(model), world
        self.window, self.documents = windows.length, windows.documents
        self.stride = windows.length if windows.method == "chunked" else windows.stride
        self.rows = windows.batch_tokens // windows.length  # B
        scored = self.rows * self.stride  # positions of a full batch, in equal slabs
        self.slab = -(-scored // -(-scored // _SLAB_POSITIONS))  # P

    @torch.no_grad()
    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        """Losses (stop - start,) float32 of targets start..stop-1, in nats, the same on every rank."""
        losses = torch.zeros(stop - start, dtype=torch.float32, device=self.world.device)
        for number, rows in enumerate(self._batches(read, start, stop)):
            if number % self.world.size != self.world.rank:
                continue
            first, last = int(rows[0, 1]), int(rows[-1, 2])
            targets = torch.from_numpy(read(first + 1, last + 1).astype(np.int64)).to(self.world.device)
            for low, logits in self._logits(read, rows):
                high = low + len(logits)
                chosen = logits.gather(-1, targets[low - first : high - first, None]).squeeze(-1)
                losses[low - start : high - start] = torch.logsumexp(logits, dim=-1) - chosen
            if tick is not None:
                tick(last - start)
        return self._gather(losses).cpu().numpy()

    @torch.no_grad()
    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        """Log-probabilities (stop - start, V) float32 of targets start..stop-1; every rank computes all of them."""
        parts: list[Tensor] = []
        for rows in self._batches(read, start, stop):
            parts += [torch.log_softmax(logits, dim=-1).cpu() for _, logits in self._logits(read, rows)]
        return torch.cat(parts).numpy()

    def _batches(self, read: TokenReader, start: int, stop: int) -> Iterator[np.ndarray]:
        plan = window_plan(start, stop, self.window, self.stride)
        if self.documents and self.stride < self.window:
            first = int(plan[0, 0])
            borders = first + np.flatnonzero(read(first, stop) == BOS)
            plan = document_plan(borders, start, stop, self.window, self.stride)
        for i in range(0, len(plan), self.rows):
            yield plan[i : i + self.rows]

    def _logits(self, read: TokenReader, rows: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """The targets of a batch in order, per slab: the first target, and logits (up to P, V) float32."""
        inputs = self._inputs(read, rows)
        hidden = self.model.hidden(inputs).flatten(0, 1)  # (B * T, D)
        positions = np.concatenate(
            [row * self.window + np.arange(low - begin, high - begin) for row, (begin, low, high) in enumerate(rows)]
        )
        for done in range(0, len(positions), self.slab):
            scored = positions[done : done + self.slab]
            padded = np.pad(scored, (0, self.slab - len(scored)), mode="edge")  # (P,)
            places = torch.from_numpy(padded).to(self.world.device)
            logits = self.model.logits(hidden[places], inputs.flatten()[places])  # (P, V)
            yield int(rows[0, 1]) + done, logits[: len(scored)].float()

    def _inputs(self, read: TokenReader, rows: np.ndarray) -> Tensor:
        """Tokens (B, T) int64 of a batch of windows, padded on the right and below with token 0."""
        origin = int(rows[0, 0])
        block = read(origin, int(rows[-1, 2])).astype(np.int64)
        inputs = np.zeros((self.rows, self.window), dtype=np.int64)
        for row, (begin, _, high) in enumerate(rows.tolist()):
            inputs[row, : high - begin] = block[begin - origin : high - origin]
        return torch.from_numpy(inputs).to(self.world.device)

    def _gather(self, losses: Tensor) -> Tensor:
        """Sum the losses of all ranks; the sum is exact, because each target is nonzero on one rank only."""
        if self.world.size == 1:
            return losses
        shared = losses if "nccl" in str(dist.get_backend()) else losses.cpu()
        dist.all_reduce(shared, op=dist.ReduceOp.SUM)
        return shared
