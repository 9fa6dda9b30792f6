"""GPTQ: rounding with feedback, so that the output of the layer stays close rather than its weights.

Columns are rounded one after the other. The rounding error of a column is spread over the columns that are not rounded
yet, so as to minimize tr(E H E^T), with E the weight error and H = sum of x x^T over calibration inputs x. The caller
chooses the scales beforehand, and the `Rounder`: a grid, unbounded steps, or a trellis down the rows.
Method: Frantar et al. 2022 (arXiv:2210.17323) with the full Hessian. `measure.inverse_factor` computes the factor that
spreads the errors.

Legend: N matrices of one shape, R rows (outputs), C columns (inputs), B columns of one block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bitgolf.errors import ConfigError
from bitgolf.grids.grid import Grid
from bitgolf.measure.inverse_factor import InverseFactor, inverse_factor


class Rounder(Protocol):
    """Rounds one column of each matrix."""

    def __call__(self, x: Tensor) -> Tensor:
        """Integer-valued levels (N, R) for x (N, R), a column of each matrix in units of its stored steps."""


@dataclass(frozen=True)
class GridRounder:
    """Rounds to the nearest code of a grid."""

    grid: Grid

    def __call__(self, x: Tensor) -> Tensor:
        return torch.round(x).clamp(-self.grid.qmax, self.grid.qmax)


def factorize(
    weight: Tensor,  # (R, C)
    hessian: Tensor,  # (C, C)
    damping: float,  # share of the mean diagonal, > 0
    dtype: torch.dtype,  # working precision, float32 or float64
) -> InverseFactor:
    """The factor of a matrix that `round_with_feedback` takes (see `inverse_factor`).

    Raises:
        ConfigError: shapes that do not fit, NaN or infinity, or a Hessian that is not symmetric positive semi-definite.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ConfigError(f"GPTQ takes non-empty matrices (R, C), not a tensor of {tuple(weight.shape)}")
    num_rows, num_columns = weight.shape
    if hessian.shape != (num_columns, num_columns):
        raise ConfigError(
            f"the Hessian has shape {tuple(hessian.shape)}; a weight of "
            f"shape ({num_rows}, {num_columns}) needs ({num_columns}, {num_columns})"
        )
    with _full_matmul_precision():
        return inverse_factor(hessian, damping, dtype)


@torch.no_grad()
def round_with_feedback(
    weights: Tensor,  # (N, R, C) any float dtype
    factors: Sequence[InverseFactor],  # N
    scales: Tensor,  # (N, R) fp32 > 0, as stored
    column_scales: Tensor | None,  # (N, C) fp32 > 0, as stored; None = all 1
    rounder: Rounder,
    block_size: int = 128,  # at least 1
) -> Tensor:  # (N, R, C) int32
    """Levels of N matrices, in the column order of the weights; weight ~ scale * column_scale * level.

    Columns whose input was always zero get level 0.

    Args:
        factors: they set the working precision.
        block_size: columns between two updates of the rest of the matrix. It changes the speed, not the result.
    Raises:
        ConfigError: a weight is NaN or infinite.
    """
    if not bool(torch.isfinite(weights).all()):
        raise ConfigError("the weight holds NaN or infinite values; did the model diverge?")
    num_columns = weights.shape[2]
    factor = torch.stack([f.upper for f in factors])  # (N, C, C) upper, rows and columns in rounding order
    order = torch.stack([f.order for f in factors])  # (N, C)
    dead = torch.stack([f.dead for f in factors])  # (N, C)
    with _full_matmul_precision():
        live = weights.to(factor.dtype).masked_fill(dead.unsqueeze(1), 0.0)
        # Work is transposed, so that the column being rounded is contiguous.
        index = order.unsqueeze(2).expand(-1, -1, weights.shape[1])  # (N, C, R)
        work = live.transpose(1, 2).gather(1, index)  # (N, C, R)
        steps = scales.to(factor.dtype)
        multipliers = None if column_scales is None else column_scales.to(factor.dtype).gather(1, order)
        ordered = torch.empty_like(work, dtype=torch.int32)
        for start in range(0, num_columns, block_size):
            some = slice(start, min(start + block_size, num_columns))
            errors = _round_block(
                work[:, some],
                factor[:, some, some],
                steps,
                None if multipliers is None else multipliers[:, some],
                rounder,
                ordered[:, some],
            )
            if some.stop < num_columns:
                rest = slice(some.stop, num_columns)
                work[:, rest].baddbmm_(factor[:, some, rest].transpose(1, 2), errors, alpha=-1)
    return torch.empty_like(ordered).scatter_(1, index, ordered).transpose(1, 2).contiguous()


def _round_block(
    block: Tensor,  # (N, B, R) columns of the block, already corrected by every earlier block
    factor: Tensor,  # (N, B, B) diagonal block of the upper triangular inverse factor
    steps: Tensor,  # (N, R)
    multipliers: Tensor | None,  # (N, B) column steps in rounding order
    rounder: Rounder,
    levels_: Tensor,  # (N, B, R) int32, written
) -> Tensor:  # (N, B, R) rounding errors divided by the pivots
    """Round the columns of one block in order, each after the corrections of its predecessors."""
    errors = torch.empty_like(block)
    influence = factor.transpose(1, 2).contiguous()  # (N, B, B); row j: influence of earlier columns on column j
    pivots = factor.diagonal(dim1=1, dim2=2)  # (N, B)
    for j in range(block.shape[1]):
        column = block[:, j]  # (N, R)
        if j:
            push = influence[:, j : j + 1, :j]  # (N, 1, j)
            column = torch.baddbmm(block[:, j : j + 1], push, errors[:, :j], alpha=-1)[:, 0]
        unit = steps if multipliers is None else steps * multipliers[:, j : j + 1]
        rounded = rounder(column / unit)
        levels_[:, j] = rounded
        errors[:, j] = (column - rounded * unit) / pivots[:, j : j + 1]
    return errors


def output_error(
    error: Tensor,  # (..., R, C) difference of two weights
    hessian: Tensor,  # (..., C, C)
) -> Tensor:  # (...) fp32 or the wider dtype of the two
    """tr(E H E^T): the squared error of the layer's output, summed over calibration inputs."""
    with _full_matmul_precision():
        dtype = torch.promote_types(torch.promote_types(error.dtype, hessian.dtype), torch.float32)
        wide = error.to(dtype)
        return ((wide @ hessian.to(dtype)) * wide).sum(dim=(-2, -1))


@contextmanager
def _full_matmul_precision() -> Iterator[None]:
    """Exact fp32 products inside. TF32, which training may have chosen, keeps 10 bits of mantissa: too few here."""
    cpu: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, cpu.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
