"""Which tokens of the stream each training row consists of, in the orders of `train.loader`, and the held-out rows.

A row is `seq_len` inputs, each with the token after it in the stream as its target. The rows are numbered in an endless
sequence of epochs. Order `sequential` reads the stream from start to end. Order `shuffled` starts each epoch at a
random offset and permutes its rows (PR 1394). Order `documents` fills the rows with the documents of the stream, in a
new order in each epoch; documents that attention cuts are cut beforehand, so that their pieces are in different
batches. The loader reads the rows.

Legend: T seq_len.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bitgolf.config import Config, TrainConfig
from bitgolf.errors import ConfigError

_SCANNED = 1 << 24  # number of tokens searched for documents at a time


class TokenStream(Protocol):
    """The part of `TokenShards` that the loader uses."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, length: int) -> np.ndarray: ...


@dataclass(frozen=True)
class HeldOut:
    """The last rows of a token stream, which training never reads: it reads only the `first` tokens before them.

    Averages of the weights are compared on them. Row i is the tokens from first + i * seq_len to
    first + (i + 1) * seq_len.
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


Span = tuple[int, int]
"""Position of the first token in the stream, and number of tokens."""


class Order(Protocol):
    """The spans of the stream that a row consists of, and what is added to the first input of every span."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def seq_len(self) -> int: ...

    @property
    def first_mark(self) -> int: ...

    def spans(self, row: int) -> list[Span]: ...

    def draw(self, epoch: int) -> tuple[Any, np.ndarray]: ...


@dataclass(frozen=True)
class RowOrder:
    """Rows of consecutive tokens. Raises ConfigError if the stream is shorter than one row."""

    num_tokens: int  # length of the stream
    seq_len: int
    shuffled: bool  # permute the rows of each epoch and start it at a random offset
    seed: int  # of offsets and permutations
    first_mark: int = 0

    def __post_init__(self) -> None:
        _require_row(self.num_tokens, self.seq_len)

    @property
    def rows_per_epoch(self) -> int:
        """Complete rows per epoch; one fewer if shuffled, to leave room for the offset."""
        rows = (self.num_tokens - 1) // self.seq_len
        return max(1, rows - 1) if self.shuffled else rows

    def spans(self, row: int) -> list[Span]:
        """The one span of a global row."""
        epoch, inside = divmod(row, self.rows_per_epoch)
        if not self.shuffled:
            return [(inside * self.seq_len, self.seq_len)]
        offset, order = _epoch(self, epoch)
        return [(offset + int(order[inside]) * self.seq_len, self.seq_len)]

    def draw(self, epoch: int) -> tuple[int, np.ndarray]:
        """(offset, permutation of the rows) of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        slack = self.num_tokens - 1 - self.rows_per_epoch * self.seq_len
        return int(rng.integers(min(slack, self.seq_len - 1) + 1)), rng.permutation(self.rows_per_epoch)


class DocumentOrder:
    """Rows of documents, or of pieces of documents, in a new order in each epoch.

    A piece that does not fit the rest of a row goes on in the next row. `first_mark` tells the model that a token
    begins a piece (see `GPT.hidden`). Raises ConfigError if the stream is shorter than one row.

    Args:
        stream: the tokens, of which the first `num_tokens` are read.
        bos: id of the token that begins a document.
        most: tokens of a piece; 0 = documents are not cut.
        seed: of the permutations.
        first_mark: the size of the vocabulary.
    """

    def __init__(
        self, stream: TokenStream, num_tokens: int, seq_len: int, *, bos: int, most: int, seed: int, first_mark: int
    ) -> None:
        _require_row(num_tokens, seq_len)
        self.num_tokens, self.seq_len, self.first_mark, self._seed = num_tokens, seq_len, first_mark, seed
        last = num_tokens - 1  # the last token has no target in this part of the stream
        begins = [np.zeros(1, dtype=np.int64)]
        for start in range(0, last, _SCANNED):
            begins.append(start + np.flatnonzero(stream.read(start, min(_SCANNED, last - start)) == bos))
        documents = np.unique(np.concatenate(begins))
        lengths = np.diff(documents, append=last)
        pieces = -(-lengths // most) if most else np.ones_like(lengths)  # of each document
        number = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)  # of a piece in its document
        self._starts = np.repeat(documents, pieces) + number * most
        self._lengths = np.diff(self._starts, append=last)
        self.rows_per_epoch = last // seq_len

    def spans(self, row: int) -> list[Span]:
        """The spans of a global row."""
        epoch, inside = divmod(row, self.rows_per_epoch)
        order, ends = _epoch(self, epoch)
        at, end = inside * self.seq_len, (inside + 1) * self.seq_len  # in the text of this epoch
        spans = []
        for place in range(int(np.searchsorted(ends, at, side="right")), len(order)):
            piece, stop = order[place], min(int(ends[place]), end)
            # The piece ends where `ends` says, so `at` is that many tokens before its end.
            start = self._starts[piece] + self._lengths[piece] - (ends[place] - at)
            spans.append((int(start), stop - at))
            at = stop
            if at == end:
                break
        return spans

    def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(permutation of the pieces, where each of them ends in the text of this epoch)."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._starts))
        return order, self._lengths[order].cumsum()


@functools.lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> tuple[Any, np.ndarray]:
    return order.draw(epoch)


def row_order(stream: TokenStream, num_tokens: int, config: Config, bos: int) -> Order:
    """The order of `train.loader` for the first `num_tokens` of the stream. Raises ConfigError if they are no row."""
    train, seed = config.train, config.seed
    if train.loader == "documents":
        most, mark = config.model.attention.document_tokens, config.model.vocab_size
        return DocumentOrder(stream, num_tokens, train.seq_len, bos=bos, most=most, seed=seed, first_mark=mark)
    return RowOrder(num_tokens, train.seq_len, train.loader == "shuffled", seed)


def _require_row(num_tokens: int, seq_len: int) -> None:
    if num_tokens <= seq_len:
        raise ConfigError(
            f"train.seq_len {seq_len} needs more than {seq_len} training tokens, but the data has {num_tokens}; lower "
            "train.seq_len or prepare more text"
        )
