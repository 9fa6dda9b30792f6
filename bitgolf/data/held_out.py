"""The held-out rows at the end of the training stream. Training never reads them.

Averages of the weights are compared and curvature is measured on them.
"""

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
    """The last rows of a token stream. Row i is the tokens from first + i * seq_len to first + (i + 1) * seq_len.

    Training reads only the `first` tokens before them.
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
