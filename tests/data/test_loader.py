"""Row order, batch plans and the prefetching loader."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.data.loader import BatchLoader, BatchShape, RowOrder
from bitgolf.errors import ConfigError, DataError


class ArrayStream:
    """A token stream in memory."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0
        assert start + length <= len(self.tokens)
        return self.tokens[start : start + length]


@settings(max_examples=60, deadline=None)
@given(
    num_tokens=st.integers(9, 400),
    seq_len=st.integers(2, 8),
    shuffled=st.booleans(),
    seed=st.integers(0, 5),
    first=st.integers(0, 100),
    count=st.integers(1, 60),
)
def test_rows_stay_inside_the_stream_and_an_epoch_visits_each_once(
    num_tokens: int, seq_len: int, shuffled: bool, seed: int, first: int, count: int
) -> None:
    order = RowOrder(num_tokens, seq_len, shuffled, seed)
    starts = order.starts(first, count)
    assert starts.min() >= 0
    assert starts.max() + seq_len + 1 <= num_tokens
    assert starts.tolist() == [int(order.starts(first + i, 1)[0]) for i in range(count)]
    epoch = np.sort(order.starts(order.rows_per_epoch * 2, order.rows_per_epoch))
    assert (np.diff(epoch) == seq_len).all()


def test_sequential_order_walks_the_stream() -> None:
    assert RowOrder(21, 4, False, 0).starts(0, 7).tolist() == [0, 4, 8, 12, 16, 0, 4]


def test_every_epoch_has_an_order_and_an_offset_of_its_own() -> None:
    order = RowOrder(10_007, 8, True, 3)
    epochs = [order.starts(number * order.rows_per_epoch, order.rows_per_epoch) for number in range(12)]
    assert len({tuple(starts // 8) for starts in epochs}) == 12
    offsets = {int(starts.min()) for starts in epochs}
    assert len(offsets) > 4 and max(offsets) < 8
    for starts in epochs:
        assert (np.sort(starts) == starts.min() + 8 * np.arange(order.rows_per_epoch)).all()
        assert not (np.diff(starts) > 0).all(), "the rows are permuted"
    other = RowOrder(10_007, 8, True, 4)
    assert (other.starts(0, 50) != order.starts(0, 50)).any(), "the seed decides the order"
    assert (RowOrder(10_007, 8, True, 3).starts(0, 5_000) == order.starts(0, 5_000)).all()


def test_the_rows_of_an_epoch() -> None:
    assert [RowOrder(n, 4, False, 0).rows_per_epoch for n in (5, 8, 9, 21)] == [1, 1, 2, 5]
    assert [RowOrder(n, 4, True, 0).rows_per_epoch for n in (5, 8, 9, 21)] == [1, 1, 1, 4]
    assert {int(RowOrder(9, 4, True, seed).starts(0, 1)[0]) for seed in range(40)} == {0, 1, 2, 3}


def test_the_cache_of_orders_does_not_mix_them_up() -> None:
    orders = [RowOrder(1_000, 8, True, seed) for seed in range(6)]
    first = [order.starts(300, 300).tolist() for order in orders]
    assert [order.starts(300, 300).tolist() for order in reversed(orders)] == first[::-1]


@pytest.mark.parametrize(
    ("batch", "micro", "seq_len", "ranks", "shape", "accumulation"),
    [
        (64, 16, 8, 2, (8, 4, 2), 2),
        (64, 64, 8, 2, (8, 4, 4), 1),
        (64, 8, 8, 1, (8, 8, 1), 8),
        (64, 32, 8, 8, (8, 1, 1), 1),
    ],
)
def test_the_division_of_a_batch(
    batch: int, micro: int, seq_len: int, ranks: int, shape: tuple[int, int, int], accumulation: int
) -> None:
    plan = BatchShape.plan(batch, micro, seq_len, ranks)
    assert (plan.rows, plan.rank_rows, plan.micro_rows) == shape and plan.accumulation == accumulation


def test_too_little_data_is_named() -> None:
    RowOrder(65, 64, False, 0)
    with pytest.raises(ConfigError, match=r"seq_len 64 .* has 10"):
        RowOrder(10, 64, False, 0)


def test_any_number_of_ranks_sees_the_same_global_batch() -> None:
    stream = ArrayStream(np.arange(1000, dtype=np.uint16))
    order = RowOrder(1000, 8, True, 3)

    def batches(size: int) -> list[np.ndarray]:
        shape = BatchShape.plan(64, 16, 8, size)
        collected = []
        for rank in range(size):
            with BatchLoader(stream, order, shape, rank=rank, device=torch.device("cpu"), first_step=2) as loader:
                collected.append([next(loader)[0].numpy() for _ in range(3)])
        return [np.concatenate([rank[i] for rank in collected]) for i in range(3)]

    for one, four in zip(batches(1), batches(4), strict=True):
        np.testing.assert_array_equal(one, four)


def test_targets_are_the_next_tokens_and_the_state_is_the_step() -> None:
    stream = ArrayStream(np.arange(200, dtype=np.uint16))
    order, shape = RowOrder(200, 8, False, 0), BatchShape.plan(16, 16, 8, 1)
    with BatchLoader(stream, order, shape, rank=0, device=torch.device("cpu")) as loader:
        inputs, targets = next(loader)
        second = next(loader)[0]
    assert torch.equal(targets, inputs + 1)
    assert inputs.dtype == torch.int64
    with BatchLoader(stream, order, shape, rank=0, device=torch.device("cpu"), first_step=1) as loader:
        assert torch.equal(next(loader)[0], second)


def test_plans_that_do_not_divide_are_named() -> None:
    assert BatchShape.plan(64, 16, 8, 2) == BatchShape(8, 4, 2)
    with pytest.raises(ConfigError, match=r"8 rows .* 3 ranks"):
        BatchShape.plan(64, 16, 8, 3)
    with pytest.raises(ConfigError, match="micro-batches of 3"):
        BatchShape.plan(64, 24, 8, 1)


def test_an_error_of_the_reading_thread_reaches_the_consumer() -> None:
    class Broken(ArrayStream):
        def read(self, start: int, length: int) -> np.ndarray:
            raise DataError("shard 3 is truncated")

    loader = BatchLoader(
        Broken(np.arange(100)),
        RowOrder(100, 8, False, 0),
        BatchShape.plan(16, 16, 8, 1),
        rank=0,
        device=torch.device("cpu"),
    )
    with loader, pytest.raises(DataError, match="shard 3"):
        next(loader)
