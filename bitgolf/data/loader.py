"""The training rows of every rank, in an order that depends only on the step, and the held-out rows at the end.

A row is `seq_len + 1` consecutive tokens (inputs and shifted targets). Step s uses the global rows s*R to (s+1)*R - 1
of an endless sequence of epochs, and each rank reads a contiguous share of them. All numbers of ranks therefore see the
same global batches, and a resumed run needs only the step number. Order `sequential` reads the stream from start to
end; order `shuffled` starts each epoch at a random offset and permutes its rows (PR 1394). A thread reads the next
batches while the current one is used.

Legend: T seq_len, R rows per step over all ranks.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.errors import ConfigError


class TokenStream(Protocol):
    """The part of `TokenShards` that the loader uses."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, length: int) -> np.ndarray: ...


@dataclass(frozen=True)
class HeldOut:
    """The last rows of a token stream, which training never reads: it reads only the `first` tokens before them.

    Averages of the weights are compared and curvature is measured on them. Row i is the tokens from
    first + i * seq_len to first + (i + 1) * seq_len.
    """

    first: int
    num_rows: int
    seq_len: int

    @classmethod
    def of(cls, num_tokens: int, config: TrainConfig) -> HeldOut:
        """The complete rows of the last `held_out_tokens` of a stream. Raises ConfigError if it has no other row."""
        num_rows = config.held_out_tokens // config.seq_len
        first = num_tokens - (num_rows * config.seq_len + 1) if num_rows else num_tokens
        if num_rows and first <= config.seq_len:
            raise ConfigError(
                f"train.held_out_tokens {config.held_out_tokens} leaves no row of {config.seq_len} tokens to train on: "
                f"the data has {num_tokens} training tokens; lower train.held_out_tokens, or prepare more text"
            )
        return cls(first, num_rows, config.seq_len)

    def rows(self, stream: TokenStream, number: int, count: int) -> Tensor:
        """Rows number to number + count - 1: (count, T + 1) int64 on the CPU. Adjacent rows share a token."""
        tokens = stream.read(self.first + number * self.seq_len, count * self.seq_len + 1).astype(np.int64)
        return torch.from_numpy(tokens).unfold(0, self.seq_len + 1, self.seq_len)


@dataclass(frozen=True)
class RowOrder:
    """Maps a global row number to its first token. Raises ConfigError if the stream is shorter than one row."""

    num_tokens: int  # length of the stream
    seq_len: int  # tokens per row, without the one more that is read for the last target
    shuffled: bool  # permute the rows of each epoch and start it at a random offset
    seed: int  # of offsets and permutations

    def __post_init__(self) -> None:
        if self.num_tokens <= self.seq_len:
            raise ConfigError(
                f"train.seq_len {self.seq_len} needs more than {self.seq_len} training tokens, but the data "
                f"has {self.num_tokens}; lower train.seq_len or prepare more text"
            )

    @property
    def rows_per_epoch(self) -> int:
        """Complete rows per epoch; one fewer if shuffled, to leave room for the offset."""
        rows = (self.num_tokens - 1) // self.seq_len
        return max(1, rows - 1) if self.shuffled else rows

    def starts(self, first_row: int, count: int) -> np.ndarray:
        """Positions of the first tokens of rows first_row to first_row + count - 1: (count,) int64."""
        rows = np.arange(first_row, first_row + count, dtype=np.int64)
        epochs, inside = np.divmod(rows, self.rows_per_epoch)
        if not self.shuffled:
            return inside * self.seq_len
        starts = np.empty_like(rows)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            offset, order = _epoch(self, int(epoch))
            starts[chosen] = offset + order[inside[chosen]] * self.seq_len
        return starts


@functools.lru_cache(maxsize=4)
def _epoch(order: RowOrder, epoch: int) -> tuple[int, np.ndarray]:
    """(offset, permutation of the rows) of an epoch."""
    rng = np.random.default_rng([order.seed, epoch])
    slack = order.num_tokens - 1 - order.rows_per_epoch * order.seq_len
    return int(rng.integers(min(slack, order.seq_len - 1) + 1)), rng.permutation(order.rows_per_epoch)


@dataclass(frozen=True)
class BatchShape:
    """The division of a global batch: rows per step, rows per rank, rows per micro-batch."""

    rows: int
    rank_rows: int
    micro_rows: int

    @classmethod
    def plan(cls, batch_tokens: int, micro_batch_tokens: int, seq_len: int, world_size: int) -> BatchShape:
        """Divide `batch_tokens` over `world_size` ranks into micro-batches of at most `micro_batch_tokens`.

        0 micro-batch tokens are all of a rank's. Raises ConfigError if the rows do not divide evenly.
        """
        rows = batch_tokens // seq_len
        if rows % world_size:
            raise ConfigError(
                f"train.batch_tokens {batch_tokens} is {rows} rows of {seq_len}, which do not divide over "
                f"{world_size} ranks; use a multiple of {seq_len * world_size}"
            )
        rank_rows = rows // world_size
        micro_rows = min(rank_rows, micro_batch_tokens // seq_len or rank_rows)
        if rank_rows % micro_rows:
            raise ConfigError(
                f"the {rank_rows} rows of a rank do not divide into micro-batches of {micro_rows} "
                f"(train.micro_batch_tokens {micro_batch_tokens})"
            )
        return cls(rows, rank_rows, micro_rows)

    @property
    def accumulation(self) -> int:
        """Micro-batches per step on one rank."""
        return self.rank_rows // self.micro_rows


def next_batches(loader: Iterator[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """The next `count` batches of a loader as one: inputs and targets, (count * rank_rows, T) int64 each."""
    batches = [next(loader) for _ in range(count)]
    return batches[0] if count == 1 else (torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))


class BatchLoader:
    """Iterates over (inputs, targets), each (rank_rows, T) int64 on `device`, beginning with step `first_step`.

    It is a context manager; the reading thread ends with the block. `ahead` is the number of batches read in advance.
    """

    def __init__(
        self,
        stream: TokenStream,
        order: RowOrder,
        shape: BatchShape,
        *,
        rank: int,
        device: torch.device,
        first_step: int = 0,
        ahead: int = 2,
    ) -> None:
        self.stream, self.order, self.shape, self.rank, self.device = stream, order, shape, rank, device
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, args=(first_step,), daemon=True)

    def __enter__(self) -> BatchLoader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> BatchLoader:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        tokens = item.to(self.device, non_blocking=True).long()
        return tokens[:, :-1], tokens[:, 1:]

    def rows(self, step: int, count: int = 1) -> Tensor:
        """This rank's rows of `count` steps from `step` on: (count * rank_rows, T + 1) int32 on the CPU."""
        shape = self.shape
        firsts = [number * shape.rows + self.rank * shape.rank_rows for number in range(step, step + count)]
        starts = np.concatenate([self.order.starts(first, shape.rank_rows) for first in firsts])
        length = self.order.seq_len + 1
        out = np.empty((len(starts), length), dtype=np.int32)
        for row, start in zip(out, starts, strict=True):
            row[:] = self.stream.read(int(start), length)
        return torch.from_numpy(out)

    def _read_ahead(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                rows = self.rows(step)
                self._put(rows.pin_memory() if self.device.type == "cuda" else rows)
                step += 1
        except BaseException as error:  # `__next__` raises it in the consumer
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
