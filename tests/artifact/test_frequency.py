"""Integer tables: they approximate their distribution, are the same on every machine, and have no zero."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.artifact.frequency import BETAS, MAX_SCALE, PRECISION, Contexts, Law, adapt, normalize, tables


def scale(log2_alpha: float) -> int:
    return round(64 * (log2_alpha + 12))


def of_class(law: Law, scale_class: int = 0, quantizer: int = 0) -> np.ndarray:
    return tables(law, Contexts.one(scale_class, quantizer))[0]


def by_definition(law: Law, scale_class: int, quantizer: int) -> np.ndarray:
    """Probabilities in float64, every bin integrated by 4000 points."""
    alpha = 2.0 ** ((law.scale + 8 * scale_class) / 64 - 12)
    width = 2**law.shift
    points = (np.arange(4000) + 0.5) / 4000 * width - 0.5 + 0.5 * quantizer
    symbols = np.arange(law.low, law.high + 1)
    density = np.exp2(-((np.abs(symbols[:, None] * width + points) / alpha) ** (law.beta / 8))).mean(axis=1)
    density *= (1 - (law.spike + law.ends) / 2**16) / density.sum()
    if law.spike:
        density[law.spike_at - law.low] += law.spike / 2**16
    density[[0, -1]] += law.ends / 2**17
    return density


@pytest.mark.parametrize("quantizer", [0, 1])
@pytest.mark.parametrize("beta", [8, 12, 16, 25, 39])
@pytest.mark.parametrize("log2_alpha", [-1.5, 0.0, 0.9, 1.1, 3.9, 4.1, 6.0])
def test_tables_are_the_distribution(log2_alpha: float, beta: int, quantizer: int) -> None:
    for law in (
        Law(-127, 127, beta, scale(log2_alpha)),
        Law(-31, 20, beta, scale(log2_alpha - 0.5), ends=500, spike=3000, spike_at=-7),
        Law(-40, 90, beta, scale(log2_alpha + 1), shift=3),
    ):
        scale_class = 4 if law.ends else 0
        exact = by_definition(law, scale_class, quantizer)
        table = of_class(law, scale_class, quantizer) / 2**PRECISION
        divergence = float((exact * np.log2(np.maximum(exact, 1e-300) / table)).sum())
        # Bits a symbol; the least frequency of 255 symbols alone takes 2e-5, the edges of a narrow law more.
        assert -1e-9 < divergence < (6e-4 if log2_alpha < 0 else 6e-5)


def in_python_integers(law: Law, scale_class: int, quantizer: int) -> list[int]:
    """The format's arithmetic once more, one number at a time and without numpy."""
    one, root, powers = 1 << 60, 2 << 60, [1 << 60]
    for _ in range(12):
        root = math.isqrt(root << 60)
        powers = [value for power in powers for value in (power, power * root >> 60)]
    powers = [power >> 30 for power in powers]
    assert one == 1 << 60

    def log2(value: int) -> int:
        whole = value.bit_length() - 1
        return (whole << 12) + sum(power <= value << (30 - whole) for power in powers) - 1

    def exp2(exponent: int, fraction: int) -> int:
        return powers[exponent & 4095] >> min(30 - fraction - (exponent >> 12), 62)

    total_scale = law.scale + 8 * scale_class
    bins = total_scale - 64 * (law.shift - (-12))
    samples, reach = next((s, r) for most, s, r in ((64, 16, 128), (256, 4, 1024), (4096, 1, 1 << 18)) if bins < most)
    log_alpha = max((total_scale << 12) // 64 - (12 << 12), -4 << 12)
    weights = []
    for symbol in range(law.low, law.high + 1):
        weight = 0
        for sample in range(samples if abs(symbol) <= reach else 0):
            offset = (2 * sample + 1) * (16 // samples) << law.shift
            distance = abs((symbol << (law.shift + 5)) - 16 + 16 * quantizer + offset)
            exponent = min(law.beta * (log2(max(distance, 1)) - (5 << 12) - log_alpha) // 8, 6 << 12)
            weight += exp2(-exp2(exponent, 12), 30)
        weights.append(weight)
    if not sum(weights):
        weights = [1] * len(weights)
    total = (1 << 24) - (law.spike + law.ends) * 256
    table = [1 + weight * (total - len(weights)) // sum(weights) for weight in weights]
    table[weights.index(max(weights))] += total - sum(table)
    if law.spike:
        table[law.spike_at - law.low] += law.spike * 256
    table[0] += law.ends * 128
    table[-1] += law.ends * 128
    return table


LAWS = [
    (Law(-31, 31, 16, scale(2.0)), 3, 0),
    (Law(-31, 31, 16, scale(2.0)), 3, 1),
    (Law(-3, 200, 13, scale(-2.5), ends=77, spike=1000, spike_at=5), 0, 0),
    (Law(-20, 20, 9, scale(9.3), shift=5), 2, 0),
    (Law(100, 110, 20, scale(-9.0)), 0, 0),
    (Law(-300, 300, 39, scale(7.7)), 1, 1),
]


@pytest.mark.parametrize(("law", "scale_class", "quantizer"), LAWS)
def test_tables_agree_with_plain_integers(law: Law, scale_class: int, quantizer: int) -> None:
    assert of_class(law, scale_class, quantizer).tolist() == in_python_integers(law, scale_class, quantizer)


def test_tables_are_the_same_everywhere() -> None:
    """The tables are part of the format: existing artifacts decode with these only."""
    digest = hashlib.sha256()
    for law, scale_class, quantizer in LAWS:
        digest.update(of_class(law, scale_class, quantizer).astype("<i8").tobytes())
    assert digest.hexdigest() == "ec59f104f31c3ba2cceddd21c1ea67ba69e6c32baf0a2ca7eb895603f5723dae"


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(-600, 600),
    count=st.integers(2, 700),
    beta=st.sampled_from(BETAS),
    log_scale=st.integers(0, MAX_SCALE),
    shift=st.integers(0, 8),
    spikes=st.tuples(st.integers(0, 1 << 15), st.integers(0, 1 << 14)),
    place=st.integers(0, 10**6),
    scale_class=st.integers(0, 255),
    quantizer=st.integers(0, 1),
)
def test_every_table_sums_up_and_has_no_zero(
    low: int,
    count: int,
    beta: int,
    log_scale: int,
    shift: int,
    spikes: tuple[int, int],
    place: int,
    scale_class: int,
    quantizer: int,
) -> None:
    law = Law(low, low + count - 1, beta, log_scale, shift, *spikes, spike_at=low + place % count)
    rows = tables(law, Contexts(np.array([scale_class, 0]), np.array([quantizer, quantizer])))
    assert rows.shape == (2, count) and rows.min() >= 1 and (rows.sum(axis=1) == 1 << PRECISION).all()
    assert np.array_equal(rows[1], of_class(law, 0, quantizer))  # a row does not depend on the other rows
    assert adapt(rows[0], rows[1] >> 10).sum() == 1 << PRECISION


def test_largest_tables_are_built_in_pieces() -> None:
    law = Law(-(1 << 17) + 1, 1 << 17, 16, scale(14.0))
    table = of_class(law)
    assert len(table) == 1 << 18 and table.sum() == 1 << PRECISION and table.min() >= 1
    assert table[(1 << 17) - 1] > 1.9 * table[(1 << 17) - 1 + (1 << 14)] > 3.8 * table[(1 << 17) - 1 - (1 << 15)]


def test_normalizing_keeps_proportions() -> None:
    weights = np.array([[1 << 38, 1 << 37, 0], [0, 0, 0]])
    table = normalize(weights)
    assert table[0].tolist() == [11184809 + 1, 5592404 + 1, 1]
    assert table[1].tolist() == [(1 << 24) - 2 * 5592405, 5592405, 5592405]


def test_learning_moves_a_table_towards_what_was_seen() -> None:
    prior = normalize(np.array([[8, 4, 4]]))[0]
    assert np.abs(adapt(prior, np.zeros(3, dtype=np.int64)) - prior).max() <= 2
    learned = adapt(prior, np.array([0, 48, 0])) / 2**24
    assert learned == pytest.approx([8 / 64, (4 + 48) / 64, 4 / 64], abs=1e-3)
