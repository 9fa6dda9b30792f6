"""Row order, batch plans and the prefetching loader."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.data.loader import BatchLoader, BatchShape
from bitgolf.data.row_order import DocumentOrder, RowOrder
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


def starts(order: RowOrder, first: int, count: int) -> np.ndarray:
    """Positions of the first tokens of rows first to first + count - 1, each of one span."""
    spans = [order.spans(row) for row in range(first, first + count)]
    assert all(len(row) == 1 and row[0][1] == order.seq_len for row in spans)
    return np.array([row[0][0] for row in spans])


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
    positions = starts(order, first, count)
    assert positions.min() >= 0
    assert positions.max() + seq_len + 1 <= num_tokens
    epoch = np.sort(starts(order, order.rows_per_epoch * 2, order.rows_per_epoch))
    assert (np.diff(epoch) == seq_len).all()


def test_sequential_order_walks_the_stream() -> None:
    assert starts(RowOrder(21, 4, False, 0), 0, 7).tolist() == [0, 4, 8, 12, 16, 0, 4]


def test_every_epoch_has_an_order_and_an_offset_of_its_own() -> None:
    order = RowOrder(10_007, 8, True, 3)
    epochs = [starts(order, number * order.rows_per_epoch, order.rows_per_epoch) for number in range(12)]
    assert len({tuple(positions // 8) for positions in epochs}) == 12
    offsets = {int(positions.min()) for positions in epochs}
    assert len(offsets) > 4 and max(offsets) < 8
    for positions in epochs:
        assert (np.sort(positions) == positions.min() + 8 * np.arange(order.rows_per_epoch)).all()
        assert not (np.diff(positions) > 0).all(), "the rows are permuted"
    other = RowOrder(10_007, 8, True, 4)
    assert (starts(other, 0, 50) != starts(order, 0, 50)).any(), "the seed decides the order"
    assert (starts(RowOrder(10_007, 8, True, 3), 0, 5_000) == starts(order, 0, 5_000)).all()


def test_the_rows_of_an_epoch() -> None:
    assert [RowOrder(n, 4, False, 0).rows_per_epoch for n in (5, 8, 9, 21)] == [1, 1, 2, 5]
    assert [RowOrder(n, 4, True, 0).rows_per_epoch for n in (5, 8, 9, 21)] == [1, 1, 1, 4]
    assert {int(starts(RowOrder(9, 4, True, seed), 0, 1)[0]) for seed in range(40)} == {0, 1, 2, 3}


def test_the_cache_of_orders_does_not_mix_them_up() -> None:
    orders = [RowOrder(1_000, 8, True, seed) for seed in range(6)]
    first = [starts(order, 300, 300).tolist() for order in orders]
    assert [starts(order, 300, 300).tolist() for order in reversed(orders)] == first[::-1]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    seq_len=st.integers(2, 12),
    most=st.sampled_from([0, 1, 5, 8]),
    seed=st.integers(0, 3),
    unread=st.integers(0, 4),
)
def test_an_epoch_of_documents_reads_their_pieces_once_and_whole(
    documents: list[int], seq_len: int, most: int, seed: int, unread: int
) -> None:
    """Token i of the stream is 1 (BOS) at the start of a document, and else 10 + i."""
    begins = np.cumsum([3, *documents])[:-1]  # three tokens of a document whose start is missing, then the documents
    tokens = 10 + np.arange(3 + sum(documents), dtype=np.uint16)
    tokens[begins] = 1
    num_tokens = len(tokens) - unread
    if num_tokens <= seq_len:
        return
    order = DocumentOrder(ArrayStream(tokens), num_tokens, seq_len, bos=1, most=most, seed=seed, first_mark=1000)
    expected = set()  # the pieces
    for begin, end in zip([0, *begins], [*begins, num_tokens - 1], strict=True):
        end = min(int(end), num_tokens - 1)
        expected |= {(start, min(start + (most or 99), end)) for start in range(int(begin), end, most or 99)}
    for epoch in (0, 1):
        spans = [order.spans(epoch * order.rows_per_epoch + row) for row in range(order.rows_per_epoch)]
        assert all(sum(length for _, length in row) == seq_len for row in spans)
        read: list[list[int]] = []  # spans that go on in the next row are joined
        for start, length in (span for row in spans for span in row):
            if read and read[-1][1] == start and (read[-1][0], start) not in expected:
                read[-1][1] = start + length
            else:
                read.append([start, start + length])
        pieces = [(start, end) for start, end in read]
        assert len(set(pieces)) == len(pieces) and set(pieces[:-1]) <= expected
        last = [piece for piece in expected if piece[0] == pieces[-1][0]]
        assert last and pieces[-1][1] <= last[0][1]  # the rest of an epoch is less than a row
        left = sum(end - start for start, end in expected) - sum(end - start for start, end in pieces)
        assert 0 <= left < seq_len


def test_documents_come_in_another_order_in_each_epoch_and_with_each_seed() -> None:
    tokens = np.where(np.arange(5_000) % 50 == 0, 1, 7).astype(np.uint16)

    def read(seed: int, epoch: int) -> tuple[int, ...]:
        order = DocumentOrder(ArrayStream(tokens), 5_000, 100, bos=1, most=0, seed=seed, first_mark=9)
        rows = range(epoch * order.rows_per_epoch, (epoch + 1) * order.rows_per_epoch)
        return tuple(start for row in rows for start, _ in order.spans(row))

    orders = {read(seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 6 and read(1, 2) in orders
    assert all(len(order) > 90 and list(order) != sorted(order) for order in orders)


def test_the_first_input_of_a_piece_is_marked_and_targets_follow_in_the_stream() -> None:
    tokens = np.arange(400, dtype=np.uint16) % 100 + 2
    tokens[::40] = 1
    order = DocumentOrder(ArrayStream(tokens), 400, 64, bos=1, most=16, seed=1, first_mark=500)
    shape = BatchShape.plan(128, 128, 64, 1)
    with BatchLoader(ArrayStream(tokens), order, shape, rank=0, device=torch.device("cpu")) as loader:
        inputs, targets = next(loader)
        assert all(torch.equal(a, b) for a, b in zip(loader.rows(0), (inputs, targets), strict=True))
    for row in range(2):
        at = 0
        for start, length in order.spans(row):
            assert inputs[row, at].item() == tokens[start] + 500
            assert inputs[row, at + 1 : at + length].tolist() == tokens[start + 1 : start + length].tolist()
            assert targets[row, at : at + length].tolist() == tokens[start + 1 : start + length + 1].tolist()
            at += length
        assert at == 64
    assert len(order.spans(0)) > 3


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
