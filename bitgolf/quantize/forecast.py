"""What tensors will cost in bits at steps that nobody has tried yet: the map that the search for the cap walks by.

Weights are taken for Gaussian with a variance that is a product of a row and a column part. GPTQ adds what it feeds
back: column j is pushed by the errors of the columns before it, in units of its own step by
mse * sum_k<j (U_kj c_k / (U_kk c_j))^2, c the column steps; this sets the floor below which bits stop falling as fast.
The level is off by a percent or so (weights are not quite Gaussian, and a file holds more than codes), the slope by a
few percent; the search corrects both by the files it makes (see `allocate.land`).

Legend: R rows, C columns, T tensors, K cells (a group of rows times a group of columns).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.trellis import MEAN_SQUARED_ERROR
from bitgolf.measure.inverse_factor import InverseFactor

_ROW_GROUPS, _COLUMN_GROUPS = 8, 32
_LEAST, _MOST, _A_DOUBLING = -12, 6, 32  # log2 of the variances that are tabulated, in steps^2; points between
_GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)  # of a Gaussian of variance 1, in bins of width 1 and finer


@dataclass(frozen=True)
class Spread:
    """How the variances of a tensor are spread, cell by cell; all cells hold as many weights.

    Attributes:
        variance: (K,) fp64 of the weights divided by their column steps.
        feedback: (K,) fp64, what GPTQ adds, in units of the squared error of rounding.
    """

    variance: np.ndarray
    feedback: np.ndarray


@torch.no_grad()
def spread(
    weight: Tensor,  # (R, C)
    column_scales: Tensor | None,  # (C,); None = all 1
    factor: InverseFactor | None,  # None without feedback
) -> Spread:
    """The variances that rounding `weight` will meet."""
    scaled = weight.float() if column_scales is None else weight.float() / column_scales
    square = scaled.square()
    rows = square.mean(dim=1, dtype=torch.float64)  # (R,)
    columns = (square / rows.float().clamp_min(1e-30).unsqueeze(1)).mean(dim=0, dtype=torch.float64)  # (C,)
    fed = torch.zeros_like(columns)
    if factor is not None:
        steps = torch.ones_like(columns) if column_scales is None else column_scales.double()
        ordered = steps[factor.order]
        shares = (ordered / factor.pivots.double()).square()
        total = factor.upper.square().T @ shares.to(factor.upper)  # (C,), the diagonal's share included
        fed[factor.order] = (total.double() / ordered.square() - 1).clamp_min(0)
    by_row = _group_means(np.sort(rows.cpu().numpy()), _ROW_GROUPS)
    by_size = columns.cpu().numpy()
    order = np.argsort(by_size, kind="stable")
    by_column = _group_means(by_size[order], _COLUMN_GROUPS)
    noise = _group_means(fed.cpu().numpy()[order], _COLUMN_GROUPS)
    return Spread(np.outer(by_row, by_column).reshape(-1), np.tile(noise, _ROW_GROUPS))


def _group_means(values: np.ndarray, num_groups: int) -> np.ndarray:
    """(num_groups,) means of neighbors, the groups as equal as can be; of fewer values, some stand in two groups."""
    edges = np.linspace(0, len(values), num_groups + 1)
    starts = np.minimum(np.floor(edges[:-1]), len(values) - 1).astype(int)
    ends = np.maximum(np.floor(edges[1:]), starts + 1).astype(int)
    return np.array([values[start:end].mean() for start, end in zip(starts, ends, strict=True)])


class Forecast:
    """Bits of tensors at any steps.

    Args:
        spreads: T of them.
        num_weights: of each tensor.
        trellis: states of the trellis, 0 = none.
    """

    def __init__(self, spreads: Sequence[Spread], num_weights: Sequence[int], trellis: int) -> None:
        self.num_weights = np.array(num_weights, dtype=np.float64)
        self._levels_a_step = 2 if trellis else 1
        self._variance = np.stack([s.variance for s in spreads])  # (T, K)
        self._feedback = np.stack([s.feedback for s in spreads])
        self._mean_squared_error = MEAN_SQUARED_ERROR[trellis]

    def bits(
        self,
        steps: np.ndarray,  # (T,)
        which: slice | int = slice(None),
    ) -> np.ndarray:  # (T,) bits of all weights of each tensor
        """Expected bits with the steps as stored, in fp16; `which` picks some of the tensors."""
        level = np.clip(steps / self._levels_a_step, 2.0**-24, 65504.0).astype(np.float16).astype(np.float64)
        stored = np.asarray(level * self._levels_a_step)[..., None]
        alone = self._variance[which] / np.square(stored)
        # An error is no larger than the weight itself.
        error = alone * self._mean_squared_error / (alone + self._mean_squared_error)
        bits = _rounded_gaussian_bits(alone + error * self._feedback[which])
        return np.asarray(self.num_weights[which] * bits.mean(axis=-1))


def _rounded_gaussian_bits(variance: np.ndarray) -> np.ndarray:
    """Entropy in bits of a Gaussian of each variance, rounded to integers."""
    at = np.log2(np.maximum(variance, 2.0**_LEAST))
    points, bits = _table()
    return np.where(at < points[-1], np.interp(at, points, bits), _GAUSSIAN_BITS + at / 2)


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """log2 of variances, ascending, and the entropies of rounded Gaussians that have them."""
    points = np.linspace(_LEAST, _MOST, (_MOST - _LEAST) * _A_DOUBLING + 1)
    deviation = np.exp2(points / 2)[:, None]
    codes = np.arange(0, math.ceil(10 * float(deviation[-1, 0])))
    tail = torch.special.ndtr(torch.from_numpy((0.5 - codes) / deviation)).numpy()  # P(x > k - 1/2)
    mass = tail - np.concatenate([tail[:, 1:], np.zeros_like(tail[:, :1])], axis=1)
    mass[:, 0] = 1 - 2 * tail[:, 1]
    share = np.where(mass > 0, mass, 1.0)
    terms = -share * np.log2(share)
    return points, terms[:, 0] + 2 * terms[:, 1:].sum(axis=1)
