"""The training rows of every rank: a thread reads the next batches while the current one is used.

Step s uses the global rows s*R to (s+1)*R - 1 of `row_order`, and each rank reads a contiguous share of them. All
numbers of ranks therefore see the same global batches, and a resumed run needs only the step number.

Legend: T seq_len, R rows per step over all ranks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.data.row_order import Order, TokenStream
from bitgolf.errors import ConfigError


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
        order: Order,
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
        return self._on_device(item)

    def rows(self, step: int, count: int = 1) -> tuple[Tensor, Tensor]:
        """This rank's inputs and targets of `count` steps from `step` on: (count * rank_rows, T) int64 each."""
        return self._on_device(self._read(step, count))

    def _on_device(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = rows.to(self.device, non_blocking=True).long()
        return inputs, targets

    def _read(self, step: int, count: int = 1) -> Tensor:
        """Inputs and targets of this rank's rows: (2, count * rank_rows, T) int32 on the CPU, pinned for a GPU."""
        shape = self.shape
        firsts = [number * shape.rows + self.rank * shape.rank_rows for number in range(step, step + count)]
        numbers = [first + row for first in firsts for row in range(shape.rank_rows)]
        out = np.empty((2, len(numbers), self.order.seq_len), dtype=np.int32)
        for row, number in enumerate(numbers):
            at = 0
            for start, length in self.order.spans(number):
                tokens = self.stream.read(start, length + 1)
                out[:, row, at : at + length] = tokens[:-1], tokens[1:]
                out[0, row, at] += self.order.first_mark
                at += length
        rows = torch.from_numpy(out)
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def _read_ahead(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._read(step))
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
