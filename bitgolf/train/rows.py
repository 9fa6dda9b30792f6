"""The rows of text that one training reads: their order, their division into batches, and the rows it holds out.

Legend: B rows, T time (seq_len).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bitgolf.config import Config
from bitgolf.data.loader import BatchLoader, BatchShape, next_batches
from bitgolf.data.prepare import PreparedData
from bitgolf.data.row_order import HeldOut, Order, row_order
from bitgolf.data.shards import TokenShards
from bitgolf.errors import ConfigError
from bitgolf.run.ranks import World


class CheckedTokens:
    """The training tokens. Reading an id that the model has no embedding for is a DataError."""

    def __init__(self, stream: TokenShards, vocab_size: int) -> None:
        self.stream, self.vocab_size, self.num_tokens = stream, vocab_size, stream.num_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of the stream, (length,) uint16."""
        tokens = self.stream.read(start, length)
        if length and int(tokens.max()) >= self.vocab_size:
            self.stream.validate(self.vocab_size)  # raises, with file, position and id
        return tokens


@dataclass(frozen=True)
class TrainingRows:
    """Which rows are read, in which order, and in which pieces."""

    stream: CheckedTokens  # the tokens of all training shards
    order: Order  # of the rows that training may read
    shape: BatchShape  # how a batch is divided over ranks and micro-batches, the largest batch of `train.batch_ramp`
    held_out: HeldOut  # the rows that training may not read
    blocks: int = 1  # in one of the largest batches (see `bitgolf.train.ramp`)

    @classmethod
    def plan(cls, data: PreparedData, config: Config, num_ranks: int) -> TrainingRows:
        """The rows for `config`. Raises ConfigError if its vocabulary, rows or batches do not fit the data."""
        vocab_size, train = data.tokenizer.vocab_size, config.train
        if vocab_size != config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size {config.model.vocab_size} but the tokenizer of the data has {vocab_size} entries; "
                f"set --model.vocab_size {vocab_size}"
            )
        for tokens in sorted(train.batch_sizes):  # the largest last
            shape = BatchShape.plan(tokens, train.micro_batch_tokens, train.seq_len, num_ranks)
        held_out = HeldOut.of(data.train.num_tokens, train)
        stream = CheckedTokens(data.train, vocab_size)
        order = row_order(stream, held_out.first, config, data.tokenizer.bos_id)
        blocks = max(train.batch_sizes) // train.block_tokens
        return cls(stream, order, shape, held_out, blocks)

    def loader(self, world: World, first: int) -> BatchLoader:
        """This rank's blocks from number `first` on. Without a ramp, a block is a batch."""
        rank_rows = self.shape.rank_rows // self.blocks
        block = BatchShape(self.shape.rows // self.blocks, rank_rows, min(rank_rows, self.shape.micro_rows))
        return BatchLoader(
            self.stream,
            self.order,
            block,
            rank=world.rank,
            device=world.device,
            first_step=first,
            ahead=2 * self.blocks,
        )

    def num_micro_batches(self, tokens: int, num_ranks: int) -> int:
        """Micro-batches per rank that hold about `tokens` tokens over all ranks; at least one if `tokens` is not 0."""
        return max(1, tokens // (self.shape.micro_rows * self.order.seq_len * num_ranks)) if tokens else 0

    def micro_batches(self, loader: BatchLoader, count: int) -> Iterator[Tensor]:
        """The inputs of the loader's next `count` micro-batches, (B, T) int64 each."""
        while count:
            for micro in next_batches(loader, self.blocks)[0].split(self.shape.micro_rows)[:count]:
                count -= 1
                yield micro
