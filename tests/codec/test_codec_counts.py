"""Integer counts: exactly their definition in whole numbers, and never far from the softmax."""

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.codec import counts
from bitgolf.codec.counts import TOTAL


def token_counts(logits: np.ndarray) -> np.ndarray:
    """The counts, which NumPy and PyTorch compute alike."""
    result = counts.token_counts(logits)
    sums = counts.DeviceSums(torch.from_numpy(logits))
    for token in {0, 1, logits.shape[1] - 1, *logits.argmax(1).tolist(), *range(0, logits.shape[1], 97)}:
        before, own = sums.intervals(torch.full((len(logits),), token))
        assert own.tolist() == result[:, token].tolist()
        assert before.tolist() == result[:, :token].sum(1).tolist()
    return result


def by_definition(logits: np.ndarray) -> list[int]:
    """One row, token by token, with Python's whole numbers and decimal exponentials."""
    getcontext().prec = 30
    top = max(logits)
    weights = []
    for logit in logits:
        step = min(float(np.rint(np.float32(top - logit) * np.float32(16384))), 524287.0)
        coarse, fine = divmod(int(step), 512)
        first = int((Decimal(2**31) * (Decimal(-coarse) / 32).exp()).to_integral_value())
        second = int((Decimal(2**31) * (Decimal(-fine) / 16384).exp()).to_integral_value())
        weights.append(first * second // 2**31)
    share = (TOTAL - len(logits)) * 2**38 // sum(weights)
    result = [1 + weight * share // 2**38 for weight in weights]
    result[int(np.argmax(logits))] += TOTAL - sum(result)
    return result


def rows(seed: int, num_rows: int, vocab: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((num_rows, vocab)) * scale).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(260, 400), st.sampled_from([0.0, 0.1, 1.0, 4.0, 20.0]))
@settings(max_examples=25, deadline=None)
def test_counts_are_their_definition(seed: int, vocab: int, scale: float) -> None:
    logits = rows(seed, 2, vocab, scale)
    assert token_counts(logits).tolist() == [by_definition(row) for row in logits]


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([260, 1024, 8192, 65536]), st.sampled_from([0.0, 0.3, 2.0, 6.0, 30.0])
)
@settings(max_examples=40, deadline=None)
def test_counts_are_complete_and_follow_the_softmax(seed: int, vocab: int, scale: float) -> None:
    logits = rows(seed, 3, vocab, scale)
    result = token_counts(logits)
    assert result.dtype == np.int64 and result.min() >= 1
    assert (result.sum(axis=1) == TOTAL).all()
    exact = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    p = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    extra_bits = (p * np.log2(p / (result / TOTAL), where=p > 0, out=np.zeros_like(p))).sum(axis=1)
    assert extra_bits.max() < 1.5 * vocab / TOTAL + 1e-4
    assert (np.argsort(-result, axis=1, kind="stable")[:, 0] == logits.argmax(axis=1)).all()


def test_a_larger_logit_never_gets_a_smaller_count() -> None:
    logits = rows(1, 1, 3000, 5.0)
    order = np.argsort(logits[0])
    assert (np.diff(token_counts(logits)[0][order]) >= 0).all()


def test_a_common_shift_changes_nothing() -> None:
    logits = np.round(rows(2, 4, 300, 5.0) * 256) / 256  # so that the shift is exact
    assert np.array_equal(token_counts(logits), token_counts(logits + np.float32(16)))


def test_extremes() -> None:
    vocab = 260
    certain = np.full((1, vocab), -30, dtype=np.float32)
    certain[0, 7] = 30
    impossible = np.full((1, vocab), -np.inf, dtype=np.float32)
    impossible[0, 7] = 0
    for logits in (certain, impossible):
        result = token_counts(logits)[0]
        assert result[7] == TOTAL - vocab + 1 and np.delete(result, 7).max() == 1
    flat = token_counts(np.zeros((1, vocab), dtype=np.float32))[0]
    assert flat.max() - flat.min() <= vocab


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_have_no_counts(bad: float) -> None:
    logits = np.zeros((2, 260), dtype=np.float32)
    logits[1, 3] = bad
    result = token_counts(logits)
    assert result[0].sum() == TOTAL and not result[1].any()


def test_of_equal_largest_logits_the_first_gets_the_remainder() -> None:
    logits = np.zeros((1, 300), dtype=np.float32)
    logits[0, [7, 200]] = 5
    result = token_counts(logits)[0]
    assert result[7] > result[200] and result.sum() == TOTAL


def test_the_tables_are_rounded_exponentials() -> None:
    coarse, fine = counts._exponentials()
    assert len(coarse) == 1024 and len(fine) == 512
    for table, step in ((coarse, 32), (fine, 16384)):
        expected = np.array([math.exp(-i / step) * 2**31 for i in range(len(table))])
        assert np.abs(table - expected).max() <= 0.51
