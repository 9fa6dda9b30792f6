"""Bits of ideal entropy coding, for tests.

The variance of a code is taken for the product of a row and a column part. Trained weights look like Gaussian noise
with such variances, so a coder that models rows and columns spends these bits, apart from its side information.

Legend: R rows, C columns.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.trellis import trellis_levels

_LEAST_DEVIATION = 0.08  # of a weight, in steps: 6 standard deviations to the first nonzero code
_ROUNDS = 4  # of the alternating fit; changes in the fifth are below 1e-4 bit


@torch.no_grad()
def gaussian_bits(
    codes: Tensor,  # (R, C) integers
    trellis: int = 0,
) -> float:
    """Bits per weight of `codes` under discretized Gaussians of fitted variance row_i * column_j.

    With a trellis a code k is coded given the quantizer z in use, as a bin of width 1 around k + z / 2. Side
    information (the variances themselves) is not counted.
    """
    levels = trellis_levels(codes.cpu(), trellis)
    position = levels.double() / (2 if trellis else 1)  # in steps
    deviation = _deviation(_fit(position.square()))
    # Mass of the bin on the negative side, where the difference of tails keeps its precision.
    far = torch.special.ndtr((-position.abs() - 0.5) / deviation)
    near = torch.special.ndtr((0.5 - position.abs()) / deviation)
    mass = (near - far).clamp_min_(torch.finfo(torch.float64).tiny)
    return float(-mass.log2().mean())


@functools.cache
def _moments() -> tuple[np.ndarray, np.ndarray]:
    """Second moments of rounded Gaussians, ascending, and the standard deviations they belong to; both as log2."""
    deviation = np.exp2(np.arange(math.log2(_LEAST_DEVIATION), 3, 1 / 64))
    codes = np.arange(0.5, 12 * deviation[-1])
    beyond = torch.special.ndtr(torch.from_numpy(-codes[:, None] / deviation)).numpy()  # P(rounded >= k)
    moment = 2 * ((2 * np.arange(len(codes)) + 1)[:, None] * beyond).sum(axis=0)  # sum of k^2 - (k - 1)^2, both sides
    return np.log2(moment), np.log2(deviation)


def _deviation(moment: Tensor) -> Tensor:
    """Standard deviation of the Gaussian that has this second moment (fp64) once it is rounded to integers."""
    moments, deviations = _moments()
    fine = (moment - 1 / 12).clamp_min(_LEAST_DEVIATION**2).sqrt()  # exact to 1e-9 from one step upward
    coarse = np.exp2(np.interp(moment.clamp_min(1e-300).log2().numpy(), moments, deviations))
    return torch.where(moment > 2.0, fine, torch.from_numpy(coarse))


def _fit(
    squares: Tensor,  # (R, C) fp64
) -> Tensor:  # (R, C)
    """The product of a row and a column part nearest to `squares` in likelihood: alternating weighted means."""
    tiny = math.sqrt(torch.finfo(torch.float64).tiny)
    rows = squares.mean(dim=1, keepdim=True).clamp_min(tiny)
    columns = torch.ones_like(squares[:1])
    for _ in range(_ROUNDS):
        columns = (squares / rows).mean(dim=0, keepdim=True).clamp_min(tiny)
        rows = (squares / columns).mean(dim=1, keepdim=True).clamp_min(tiny)
    return rows * columns
