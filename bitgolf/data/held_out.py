"""The rows at the end of the training stream that training never reads: averages and curvature are measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.data.loader import TokenStream
from bitgolf.errors import ConfigError


@dataclass(frozen=True)
class HeldOut:
    """The last rows of a token stream: row i is the tokens first + i * seq_len ... first + (i + 1) * seq_len.

    Training sees the `first` tokens before them and nothing else.
    """

    first: int
    num_rows: int
    seq_len: int

    @classmethod
    def of(cls, num_tokens: int, config: TrainConfig) -> HeldOut:
        """Whole rows of `held_out_tokens` at the end of a stream. Raises ConfigError when nothing is left of it."""
        num_rows = config.held_out_tokens // config.seq_len
        first = num_tokens - (num_rows * config.seq_len + 1) if num_rows else num_tokens
        if num_rows and first <= config.seq_len:
            raise ConfigError(
                f"train.held_out_tokens {config.held_out_tokens} leaves no row of {config.seq_len} tokens to train on: "
                f"the data has {num_tokens} training tokens; hold out fewer, or prepare more text"
            )
        return cls(first, num_rows, config.seq_len)

    def rows(self, stream: TokenStream, number: int, count: int) -> Tensor:
        """Rows number .. number + count - 1, (count, T + 1) int64 on the CPU; neighbors share a token."""
        tokens = stream.read(self.first + number * self.seq_len, count * self.seq_len + 1).astype(np.int64)
        return torch.from_numpy(tokens).unfold(0, self.seq_len + 1, self.seq_len)
