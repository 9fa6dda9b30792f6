"""Bits per byte against exact sums, and against the constant of one nat per token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgolf.evaluate.bits import bits_per_byte, bpb_per_nat


@given(st.lists(st.tuples(st.floats(0, 20, width=32), st.integers(0, 9)), min_size=1, max_size=50))
def test_definition(pairs: list[tuple[float, int]]) -> None:
    nll, costs = np.array([p[0] for p in pairs], np.float32), np.array([p[1] for p in pairs], np.uint8)
    total_bytes = sum(p[1] for p in pairs)
    if total_bytes == 0:
        with pytest.raises(ValueError, match="at least one token and one byte"):
            bits_per_byte(nll, costs)
        return
    score = bits_per_byte(nll, costs)
    assert (score.tokens, score.bytes) == (len(pairs), total_bytes)
    assert score.loss_nats == pytest.approx(math.fsum(map(float, nll)) / len(pairs), rel=1e-12)
    assert score.bpb == pytest.approx(math.fsum(map(float, nll)) / math.log(2) / total_bytes, rel=1e-12)
    assert score.bpb == pytest.approx(score.loss_nats * score.bpb_per_nat, rel=1e-15)


def test_sum_is_not_taken_in_float32() -> None:
    """A running sum in float32 of this many equal terms is wrong by percents; a sum in uint8 overflows."""
    n = 3_000_000
    score = bits_per_byte(np.full(n, 0.1, np.float32), np.full(n, 200, np.uint8))
    assert score.loss_nats == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert score.bytes == 200 * n


def test_constant() -> None:
    """With one byte per token, one nat per token is 1 / ln 2 bits per byte; with two bytes it is half of that."""
    assert bpb_per_nat(7, 7) == pytest.approx(1.4426950408889634, rel=1e-15)
    assert bpb_per_nat(7, 14) == pytest.approx(0.7213475204444817, rel=1e-15)


@pytest.mark.parametrize(
    "nll, costs, message",
    [
        (np.ones(3), np.ones(2, int), "one byte count per target"),
        (np.ones((2, 2)), np.ones((2, 2), int), "one byte count per target"),
        (np.ones(2), np.ones(2), "integers"),
        (np.ones(2), np.array([3, -1]), "byte count -1 of target 1"),
        (np.ones(0), np.ones(0, int), "at least one token"),
        (np.array([1.0, np.nan]), np.ones(2, int), "finite loss"),
    ],
)
def test_bad_input(nll: np.ndarray, costs: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bits_per_byte(nll, costs)
