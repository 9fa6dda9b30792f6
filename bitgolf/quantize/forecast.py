"""Predicts the bits of tensors for steps that were not tried. The search for the byte cap uses it (see `fill_cap`).

The model: weight (i, j) is Gaussian with variance r_i * v_j, a row part times a column part. Rounded to levels at
distance s it costs the entropy of a rounded Gaussian of variance r_i * v_j / s^2, in units of the step. GPTQ adds the
feedback of earlier columns to column j before it is rounded. With U the factor of the inverse Hessian, c_j the column
steps and e the mean squared error of one rounding, this adds the variance

    e * sum over k < j of (U_kj * c_k / (U_kk * c_j))^2

in units of the step of column j. At coarse steps it keeps the bits from falling as fast as they would without it.

The level of the prediction is off by a percent or so, because weights are not quite Gaussian and a file holds more than
codes. Its slope is off by a few percent. `find_theta` corrects both with the files that it makes.

Legend: R rows, C columns, T tensors, K cells (a group of rows times a group of columns).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.trellis import MEAN_SQUARED_ERROR
from bitgolf.measure.inverse_factor import InverseFactor

_ROW_GROUPS = 8
_COLUMN_GROUPS = 32
_LEAST_LOG2 = -12  # smallest tabulated variance in steps^2, as log2
_MOST_LOG2 = 6  # largest
_POINTS_PER_DOUBLING = 32  # tabulated variances per factor of 2
_GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)  # entropy of a Gaussian of variance 1, differential


@dataclass(frozen=True)
class Spread:
    """Variances of a tensor, cell by cell. All cells hold equally many weights."""

    variance: np.ndarray  # (K,) fp64 mean square of the weights divided by their column steps
    feedback: np.ndarray  # (K,) fp64 variance that GPTQ adds, in units of the squared error of one rounding


@torch.no_grad()
def spread(
    weight: Tensor,  # (R, C)
    column_scales: Tensor | None,  # (C,); None = all 1
    factor: InverseFactor | None,  # None without feedback
) -> Spread:
    """The variances in `weight`, from its row and column means of squares."""
    scaled = weight.float() if column_scales is None else weight.float() / column_scales
    square = scaled.square()
    rows = square.mean(dim=1, dtype=torch.float64)  # (R,)
    columns = (square / rows.float().clamp_min(1e-30).unsqueeze(1)).mean(dim=0, dtype=torch.float64)  # (C,)
    feedback = torch.zeros_like(columns)
    if factor is not None:
        steps = torch.ones_like(columns) if column_scales is None else column_scales.double()
        ordered = steps[factor.order]  # c_j in the order of rounding
        shares = (ordered / factor.pivots.double()).square()
        total = factor.upper.square().T @ shares.to(factor.upper)  # (C,) with the diagonal's share of c_j^2
        feedback[factor.order] = (total.double() / ordered.square() - 1).clamp_min(0)
    by_row = _group_means(np.sort(rows.cpu().numpy()), _ROW_GROUPS)
    column_parts = columns.cpu().numpy()
    order = np.argsort(column_parts, kind="stable")
    by_column = _group_means(column_parts[order], _COLUMN_GROUPS)
    feedback_by_column = _group_means(feedback.cpu().numpy()[order], _COLUMN_GROUPS)
    return Spread(np.outer(by_row, by_column).reshape(-1), np.tile(feedback_by_column, _ROW_GROUPS))


def _group_means(values: np.ndarray, num_groups: int) -> np.ndarray:
    """(num_groups,) means of neighbors in groups of nearly equal size. With fewer values than groups, some repeat."""
    edges = np.linspace(0, len(values), num_groups + 1)
    starts = np.minimum(np.floor(edges[:-1]), len(values) - 1).astype(int)
    ends = np.maximum(np.floor(edges[1:]), starts + 1).astype(int)
    return np.array([values[start:end].mean() for start, end in zip(starts, ends, strict=True)])


class Forecast:
    """Predicts the bits of T tensors for any steps.

    Args:
        spreads: of each tensor.
        num_weights: of each tensor.
        trellis: states of the trellis that weights are rounded along, 0 = none.
    """

    def __init__(self, spreads: Sequence[Spread], num_weights: Sequence[int], trellis: int) -> None:
        self.num_weights = np.array(num_weights, dtype=np.float64)
        self._levels_per_step = 2 if trellis else 1
        self._variance = np.stack([s.variance for s in spreads])  # (T, K)
        self._feedback = np.stack([s.feedback for s in spreads])
        self._mean_squared_error = MEAN_SQUARED_ERROR[trellis]

    def bits(
        self,
        steps: np.ndarray,  # (T,)
        which: slice | int = slice(None),
    ) -> np.ndarray:  # (T,) bits of all weights of each tensor
        """Expected bits. Steps are rounded to fp16, as the artifact stores them. `which` selects tensors."""
        level = np.clip(steps / self._levels_per_step, 2.0**-24, 65504.0).astype(np.float16).astype(np.float64)
        stored = np.asarray(level * self._levels_per_step)[..., None]
        variance = self._variance[which] / np.square(stored)
        # The error of a weight that is rounded to zero is the weight itself.
        error = variance * self._mean_squared_error / (variance + self._mean_squared_error)
        bits = _rounded_gaussian_bits(variance + error * self._feedback[which])
        return np.asarray(self.num_weights[which] * bits.mean(axis=-1))


def _rounded_gaussian_bits(variance: np.ndarray) -> np.ndarray:
    """Entropy in bits of a Gaussian of each variance, rounded to integers."""
    log_variance = np.log2(np.maximum(variance, 2.0**_LEAST_LOG2))
    points, bits = _table()
    fine = _GAUSSIAN_BITS + log_variance / 2
    return np.where(log_variance < points[-1], np.interp(log_variance, points, bits), fine)


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """log2 of variances, ascending, and the entropies of Gaussians of these variances, rounded to integers."""
    points = np.linspace(_LEAST_LOG2, _MOST_LOG2, (_MOST_LOG2 - _LEAST_LOG2) * _POINTS_PER_DOUBLING + 1)
    deviation = np.exp2(points / 2)[:, None]
    codes = np.arange(0, math.ceil(10 * float(deviation[-1, 0])))
    tail = torch.special.ndtr(torch.from_numpy((0.5 - codes) / deviation)).numpy()  # P(x > k - 1/2)
    mass = tail - np.concatenate([tail[:, 1:], np.zeros_like(tail[:, :1])], axis=1)
    mass[:, 0] = 1 - 2 * tail[:, 1]
    positive = np.where(mass > 0, mass, 1.0)
    terms = -positive * np.log2(positive)
    return points, terms[:, 0] + 2 * terms[:, 1:].sum(axis=1)
