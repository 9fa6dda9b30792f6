"""Paired bootstrap over documents: the interval of a difference in bits per byte.

Documents are drawn with replacement. Each document has its bits under both systems and its bytes, and the difference
is a ratio of sums, as the score is. The interval says what other documents of this kind would give with the *same*
trained models. `t_tests` answers what another seed would give.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval).

Legend: D documents, R resamples.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitgolf.errors import ConfigError
from bitgolf.run.progress import Progress, silent

RESAMPLES = 10_000
_MOST_RESAMPLES = 10_000_000  # 80 MB
_DRAWS = 1 << 18  # drawn at a time; 2 MB of indices


@dataclass(frozen=True)
class Interval:
    """A difference in bits per byte over documents; negative is better."""

    difference_bpb: float  # on the documents as they are
    # low, high: 2.5th and 97.5th percentile of the resamples.
    low: float
    high: float
    share_better: float  # of the resamples with a difference below 0
    # resamples, documents: R and D.
    resamples: int
    documents: int
    seed: int  # of the draws

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"excludes_zero": self.excludes_zero}


def resample(
    bits: np.ndarray,  # (D,) float64, difference of bits of each document
    num_bytes: np.ndarray,  # (D,) integers above 0
    resamples: int,
    seed: int,
    progress: Progress = silent,
) -> np.ndarray:
    """Sum of bits over sum of bytes of each resample, (R,) float64.

    Resample r takes row r of the (R, D) indices that `np.random.default_rng(seed).integers(D)` draws.
    """
    rng, count = np.random.default_rng(seed), len(bits)
    weights = num_bytes.astype(np.float64)
    differences = np.empty(resamples)
    rows = max(1, _DRAWS // count)
    for begin in range(0, resamples, rows):
        drawn = rng.integers(count, size=(min(rows, resamples - begin), count))
        differences[begin : begin + rows] = bits[drawn].sum(1) / weights[drawn].sum(1)
        progress("bootstrap", min(begin + rows, resamples), resamples)
    return differences


def require_possible(resamples: int) -> None:
    """Raise ConfigError if the number of resamples is too small or too large."""
    if resamples < 100:
        raise ConfigError(
            f"{resamples} resamples are too few for a 95 % interval; use at least 100, usually {RESAMPLES:,}"
        )
    if resamples > _MOST_RESAMPLES:
        raise ConfigError(
            f"{resamples:,} resamples are more than the {_MOST_RESAMPLES:,} allowed; use {RESAMPLES:,}, as usual"
        )


def bootstrap(
    bits: np.ndarray,  # (D,) float64, candidate's bits - baseline's bits of each document
    num_bytes: np.ndarray,  # (D,) integers above 0, bytes of each document
    *,
    resamples: int = RESAMPLES,  # R, see `require_possible`
    seed: int = 0,  # of the draws
    progress: Progress = silent,  # called with stage "bootstrap"
) -> Interval:
    """The 95 % percentile interval of a paired difference over at least two documents."""
    differences = resample(bits, num_bytes, resamples, seed, progress)
    low, high = np.percentile(differences, (2.5, 97.5)).tolist()
    return Interval(
        float(bits.sum() / num_bytes.sum()), low, high, float((differences < 0).mean()), resamples, len(bits), seed
    )
