"""The held-out rows at the end of the training stream."""

import numpy as np
import pytest

from bitgolf.config import TrainConfig
from bitgolf.data.held_out import HeldOut
from bitgolf.errors import ConfigError


class Counting:
    """A stream whose token i is i."""

    num_tokens = 1_000

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0 and start + length <= self.num_tokens
        return np.arange(start, start + length, dtype=np.uint16)


def config(held_out_tokens: int) -> TrainConfig:
    return TrainConfig(seq_len=8, batch_tokens=8, micro_batch_tokens=8, held_out_tokens=held_out_tokens)


def test_the_rows_are_the_last_ones_and_share_one_token() -> None:
    held_out = HeldOut.of(1_000, config(30))
    assert (held_out.first, held_out.num_rows, held_out.seq_len) == (1_000 - 25, 3, 8)
    rows = held_out.rows(Counting(), 0, 3)
    assert rows.tolist() == [list(range(975 + 8 * i, 984 + 8 * i)) for i in range(3)]
    assert rows[-1, -1] == 999
    assert held_out.rows(Counting(), 1, 1).tolist() == [list(range(983, 992))]


def test_without_held_out_tokens_training_sees_everything() -> None:
    held_out = HeldOut.of(1_000, config(0))
    assert (held_out.first, held_out.num_rows) == (1_000, 0)


def test_training_keeps_at_least_one_row() -> None:
    assert HeldOut.of(8 + 1 + 8 + 1, config(8)).first == 9
    with pytest.raises(ConfigError, match="held_out_tokens 8 leaves no row of 8"):
        HeldOut.of(8 + 1 + 8, config(8))
