"""Integer frequency tables of a generalized Gaussian: the same on every machine, from a few small integers.

An entropy decoder that rebuilds its tables in floating point breaks as soon as two math libraries disagree in the last
bit. Here nothing but integer arithmetic is used: 2^(i / 4096) comes from integer square roots, logarithms from
searching that table. The density at distance x is 2^-((|x| / alpha)^beta), alpha on a grid of 64 steps an octave,
beta on a grid of 1/8: 2 is the Gaussian, 1 the Laplacian. Used by `coder`; the fit, in floats, is in `scale_model`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

PRECISION = 24  # every table sums to 2^24, what constriction's models work with
SCALE_STEPS = 64  # steps of `scale` an octave; a scale class is 8 of them
SMALLEST_LOG2 = -12  # of alpha; far below 1 all values are 0
MAX_SCALE = 28 * SCALE_STEPS
BETA_STEPS = 8
BETAS = range(8, 40)
SPIKE_BITS = 16  # spikes are counted in 2^-16 of the total
MAX_VALUE = 1 << 18  # largest magnitude that a law describes
MAX_CELLS = 1 << 18  # classes times symbols of a law: bounds the work that a hostile one can ask for
_FRACTION = 12  # bits after the point of logarithms
_MANTISSA = 30
_NARROWEST_LOG2 = -4  # of alpha; what is narrower falls between the samples, and is as good as constant anyway
# How a bin is sampled, by log2 of alpha in bins: up to which, samples, bins from the center that have any density.
_SAMPLING = ((1, 16, 128), (4, 4, 1024), (64, 1, MAX_VALUE))
_SAMPLED_UP_TO = np.array([SCALE_STEPS * most for most, _, _ in _SAMPLING])
_CELLS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Law:
    """The distribution of a tensor's integers, but for the scale class of each.

    Attributes:
        low, high: smallest and largest symbol.
        beta: shape in units of 1/8.
        scale: alpha of class 0 is 2^(scale / 64 - 12).
        shift: a symbol stands for 2^shift neighboring integers, equiprobable.
        ends: extra probability of `low` and `high` together (values clipped to the ends of a grid), in units of 2^-16.
        spike: extra probability of the symbol `spike_at`, in the same units.
    """

    low: int
    high: int
    beta: int
    scale: int
    shift: int = 0
    ends: int = 0
    spike: int = 0
    spike_at: int = 0

    @property
    def num_symbols(self) -> int:
        """Length of the tables."""
        return self.high - self.low + 1


def tables(
    law: Law,
    classes: np.ndarray,  # (K,) int64 scale classes >= 0, each 1/8 octave
    halves: np.ndarray,  # (K,) int64, 1 where the value stands for itself plus 1/2
) -> np.ndarray:  # (K, N) int64, every entry >= 1, every row with sum 2^24
    """Frequencies of the symbols low ... high of `law`, one row a class."""
    spikes = (law.spike + law.ends) << (PRECISION - SPIKE_BITS)
    table = normalize(_densities(law, classes, halves), (1 << PRECISION) - spikes)
    if law.spike:
        table[:, law.spike_at - law.low] += law.spike << (PRECISION - SPIKE_BITS)
    if law.ends:
        half = law.ends << (PRECISION - SPIKE_BITS - 1)
        table[:, 0] += half
        table[:, -1] += half
    return table


def normalize(
    weights: np.ndarray,  # (K, N) int64 >= 0, at most 2^38 each
    total: int = 1 << PRECISION,
) -> np.ndarray:  # (K, N) int64 >= 1
    """Frequencies in proportion to `weights` that sum to `total` in every row; no symbol is impossible."""
    num_symbols = weights.shape[1]
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.where(sums > 0, weights, 1)
    sums = np.where(sums > 0, sums, num_symbols)
    table = 1 + weights * (total - num_symbols) // sums
    rows = np.arange(len(table))
    table[rows, weights.argmax(axis=1)] += total - table.sum(axis=1)
    return table


def adapt(
    table: np.ndarray,  # (N,) int64 with sum 2^24
    counts: np.ndarray,  # (N,) int64 how often each symbol occurred, 2^24 in all at most
) -> np.ndarray:  # (N,) int64 with sum 2^24
    """`table` as the symbols so far correct it: it weighs as much as 16 of them."""
    return normalize(((table << 4) + (counts << PRECISION) >> 12)[None])[0]


def _densities(law: Law, classes: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """(K, N) int64 unnormalized probabilities of the bins, in units of 2^-30 of the peak density and the sample."""
    scales = law.scale + SCALE_STEPS // 8 * classes
    weights = np.zeros((len(classes), law.num_symbols), dtype=np.int64)
    at_once = max(1, _CELLS_AT_ONCE // law.num_symbols)
    width = scales - SCALE_STEPS * (law.shift - SMALLEST_LOG2)  # of alpha in bins, 64 an octave
    kinds = 2 * np.searchsorted(_SAMPLED_UP_TO, width, side="right") + halves
    for kind in set(kinds.tolist()):
        rows, half = np.flatnonzero(kinds == kind), kind & 1
        _, samples, reach = _SAMPLING[kind >> 1]
        low, high = max(law.low, -reach), min(law.high, reach)
        if low <= high:
            points = _points(low, high, law.shift, half, samples)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                weights[some, low - law.low : high - law.low + 1] = _sample(points, law.beta, scales[some])
    return weights


@functools.lru_cache(maxsize=16)
def _points(low: int, high: int, shift: int, half: int, samples: int) -> np.ndarray:
    """(N, S) int64 log2 of the distances from the center at which the bins are sampled, 12 bits after the point."""
    offsets = (2 * np.arange(samples, dtype=np.int64) + 1) * (16 // samples) << shift  # in units of 1/32
    symbols = np.arange(low, high + 1, dtype=np.int64)
    distance = np.abs((symbols[:, None] << (shift + 5)) - 16 + 16 * half + offsets)
    # A sample on 0 itself is taken just beside it.
    return _log2(np.maximum(distance, 1)) - (5 << _FRACTION)


def _sample(points: np.ndarray, beta: int, scales: np.ndarray) -> np.ndarray:
    """(K, N) sums of 2^-((x / alpha)^beta) over the samples of each bin."""
    log_alpha = (scales << _FRACTION) // SCALE_STEPS + (SMALLEST_LOG2 << _FRACTION)
    log_alpha = np.maximum(log_alpha, _NARROWEST_LOG2 << _FRACTION)
    exponent = (beta * (points - log_alpha[:, None, None])) // BETA_STEPS  # log2 of (x / alpha)^beta
    exponent = np.minimum(exponent, 6 << _FRACTION)  # 2^-64 is nothing
    power = _exp2(exponent, _FRACTION)
    return _exp2(-power, _MANTISSA).sum(axis=2)


def _exp2(
    exponent: np.ndarray,  # int64, 12 bits after the point, below 2^5
    fraction: int,
) -> np.ndarray:  # int64, `fraction` <= 30 bits after the point, rounded down
    table = _powers()
    return table[exponent & (len(table) - 1)] >> np.minimum(_MANTISSA - fraction - (exponent >> _FRACTION), 62)


def _log2(
    values: np.ndarray,  # int64 from 1 to 2^30
) -> np.ndarray:  # int64, 12 bits after the point, rounded down
    whole = np.searchsorted(1 << np.arange(1, _MANTISSA + 1, dtype=np.int64), values, side="right")
    return (whole << _FRACTION) + np.searchsorted(_powers(), values << (_MANTISSA - whole), side="right") - 1


@functools.cache
def _powers() -> np.ndarray:
    """(4096,) int64: 2^(i / 4096), 30 bits after the point, rounded down; products of repeated square roots of 2."""
    one = 1 << 60
    root, powers = 2 * one, [one]
    for _ in range(_FRACTION):
        root = math.isqrt(root * one)
        powers = [value for power in powers for value in (power, power * root >> 60)]
    return np.array([power >> (60 - _MANTISSA) for power in powers], dtype=np.int64)
