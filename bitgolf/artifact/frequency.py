"""Integer frequency tables of generalized Gaussians: the same on every machine, from a few small integers.

An entropy decoder that computes its tables in floating point fails as soon as two math libraries differ in the last
bit. Only integer arithmetic is used here. Powers 2^(i / 4096) come from integer square roots, and logarithms from
searching that table. The density at distance x from the center is 2^-((|x| / alpha)^beta). alpha has 64 steps per
octave, beta has 8 per unit: beta 2 is the Gaussian, 1 the Laplacian. All of this is part of the artifact's format, so
every constant here is fixed. `integer_coder` codes with these tables; `scale_model` fits the laws, in floating point.

Legend: K contexts, N symbols, S samples per bin.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

PRECISION = 24  # every table sums to 2^24, the default of constriction's models
SCALE_STEPS = 64  # values of `scale` per octave of alpha
CLASS_STEPS = 8  # scale classes per octave of alpha
SMALLEST_LOG2 = -12  # log2 of alpha at scale 0; far below 1 all values are 0
MAX_SCALE = 28 * SCALE_STEPS  # alpha from 2^-12 to 2^16, beyond the largest value
BETA_STEPS = 8  # values of `beta` per unit
BETAS = range(8, 40)  # from the Laplacian to nearly uniform
GAUSSIAN = 2 * BETA_STEPS  # the `beta` of the Gaussian
SPIKE_BITS = 16  # spikes are in units of 2^-16 of the total
MAX_VALUE = 1 << 18  # largest magnitude of a value
MAX_CELLS = 1 << 18  # scale classes times symbols of one tensor; bounds the work that a file can ask for
_FRACTION = 12  # bits after the point of logarithms
_MANTISSA = 30  # bits after the point of powers
_NARROWEST_LOG2 = -4  # of alpha: the density of a narrower law lies between the samples
# The bins are sampled according to log2 of alpha in bins: (used below this, samples per bin, bins from the center).
_SAMPLING = ((1, 16, 128), (4, 4, 1024), (64, 1, MAX_VALUE))
_SAMPLED_BELOW = np.array([SCALE_STEPS * below for below, _, _ in _SAMPLING])
_CELLS_AT_ONCE = 1 << 13  # table entries that are computed together: stays in the cache
_PRIOR_BITS = 4  # `adapt`: the first table counts as much as 2^4 symbols


@dataclass(frozen=True)
class Law:
    """The distribution of a tensor's integers in scale class 0."""

    # low, high: smallest and largest symbol
    low: int
    high: int
    beta: int  # shape in units of 1/8
    scale: int  # alpha is 2^(scale / 64 - 12)
    shift: int = 0  # a symbol stands for 2^shift neighboring integers of equal probability
    ends: int = 0  # extra probability of `low` and `high` together, for values that were clipped; in units of 2^-16
    spike: int = 0  # extra probability of the symbol `spike_at`, in the same units
    spike_at: int = 0

    @property
    def num_symbols(self) -> int:
        """Length of the tables."""
        return self.high - self.low + 1


@dataclass(frozen=True)
class Contexts:
    """K contexts. Each has its own table of frequencies."""

    scale_classes: np.ndarray  # (K,) int64 >= 0. A class k multiplies alpha by 2^(k / 8).
    # (K,) int64: which of a trellis's two quantizers. In quantizer 1 a value v stands for v + 1/2. Without a trellis
    # all are 0.
    quantizers: np.ndarray

    @classmethod
    def one(cls, scale_class: int = 0, quantizer: int = 0) -> Contexts:
        return cls(np.array([scale_class]), np.array([quantizer]))

    def __len__(self) -> int:
        return len(self.scale_classes)

    def __getitem__(self, chosen: np.ndarray) -> Contexts:
        return Contexts(self.scale_classes[chosen], self.quantizers[chosen])


def tables(law: Law, contexts: Contexts) -> np.ndarray:  # (K, N) int64, every entry >= 1, every row with sum 2^24
    """Frequencies of the symbols low ... high of `law`, one row per context."""
    spikes = (law.spike + law.ends) << (PRECISION - SPIKE_BITS)
    table = normalize(_densities(law, contexts), (1 << PRECISION) - spikes)
    if law.spike:
        table[:, law.spike_at - law.low] += law.spike << (PRECISION - SPIKE_BITS)
    if law.ends:
        one_end = law.ends << (PRECISION - SPIKE_BITS - 1)
        table[:, 0] += one_end
        table[:, -1] += one_end
    return table


def normalize(
    weights: np.ndarray,  # (K, N) int64 >= 0, at most 2^38 each
    total: int = 1 << PRECISION,
) -> np.ndarray:  # (K, N) int64 >= 1
    """Frequencies in proportion to `weights` that sum to `total` in every row. No symbol has frequency 0."""
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
    counts: np.ndarray,  # (N,) int64: how often each symbol has occurred, 2^24 in all at most
) -> np.ndarray:  # (N,) int64 with sum 2^24
    """`table` corrected by the symbols so far. The table itself weighs as much as 16 symbols."""
    return normalize(((table << _PRIOR_BITS) + (counts << PRECISION) >> 12)[None])[0]


def _densities(law: Law, contexts: Contexts) -> np.ndarray:
    """(K, N) int64 unnormalized probabilities of the bins, in units of 2^-30 of the peak density per sample."""
    scales = law.scale + SCALE_STEPS // CLASS_STEPS * contexts.scale_classes
    weights = np.zeros((len(contexts), law.num_symbols), dtype=np.int64)
    at_once = max(1, _CELLS_AT_ONCE // law.num_symbols)
    width = scales - SCALE_STEPS * (law.shift - SMALLEST_LOG2)  # of alpha in bins, 64 per octave
    kinds = 2 * np.searchsorted(_SAMPLED_BELOW, width, side="right") + contexts.quantizers
    for kind in set(kinds.tolist()):
        rows, quantizer = np.flatnonzero(kinds == kind), kind & 1
        _, num_samples, reach = _SAMPLING[kind >> 1]
        low, high = max(law.low, -reach), min(law.high, reach)
        if low <= high:
            points = _points(low, high, law.shift, quantizer, num_samples)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                weights[some, low - law.low : high - law.low + 1] = _sample(points, law.beta, scales[some])
    return weights


@functools.lru_cache(maxsize=16)
def _points(low: int, high: int, shift: int, quantizer: int, num_samples: int) -> np.ndarray:
    """(N, S) int64 log2 of the distances from the center at which the bins are sampled, 12 bits after the point."""
    offsets = (2 * np.arange(num_samples, dtype=np.int64) + 1) * (16 // num_samples) << shift  # in units of 1/32
    symbols = np.arange(low, high + 1, dtype=np.int64)
    distance = np.abs((symbols[:, None] << (shift + 5)) - 16 + 16 * quantizer + offsets)
    # A sample at the center itself is taken 1/32 beside it.
    return _log2(np.maximum(distance, 1)) - (5 << _FRACTION)


def _sample(points: np.ndarray, beta: int, scales: np.ndarray) -> np.ndarray:
    """(K, N) sums of 2^-((x / alpha)^beta) over the samples of each bin."""
    log_alpha = (scales << _FRACTION) // SCALE_STEPS + (SMALLEST_LOG2 << _FRACTION)
    log_alpha = np.maximum(log_alpha, _NARROWEST_LOG2 << _FRACTION)
    exponent = (beta * (points - log_alpha[:, None, None])) // BETA_STEPS  # log2 of (x / alpha)^beta
    exponent = np.minimum(exponent, 6 << _FRACTION)  # 2^-64 is below the smallest unit
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
