"""GPTQ: rounding with feedback, so that the layer's output, not its weights, stays close.

Columns are rounded one after the other; the rounding error of a column is spread over the columns not yet
rounded so as to minimize tr(E H E^T), with E the weight error and H = sum of x x^T over calibration inputs x.
Called by `quantize` with scales fixed before. Method: Frantar et al. 2022 (arXiv:2210.17323), full Hessian;
order by descending diagonal; the inverse factor from one Cholesky of the reversed Hessian and one triangular
solve, as in challenge PR 1948. Legend: N matrices of one shape, R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bitgolf.errors import ConfigError
from bitgolf.grid import Grid

logger = logging.getLogger(__name__)

_ASYMMETRY = 1e-3  # tolerated |H - H^T| as a share of the largest diagonal element
_MAX_DAMPING = 1.0  # a Hessian that needs more than its own mean diagonal is not a Hessian


def gptq(
    weight: Tensor,  # (R, C) any float dtype
    hessian: Tensor,  # (C, C)
    grid: Grid,
    scales: Tensor,  # (R,) fp32 from `grid.scales`
    damping: float = 0.01,
    block_size: int = 128,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # (R, C) codes, (R, C) fp32
    """Round one matrix; see `gptq_batched`, of which this is the case N = 1."""
    codes, dequantized = gptq_batched(
        weight.unsqueeze(0), hessian.unsqueeze(0), grid, scales.unsqueeze(0), damping, block_size, dtype
    )
    return codes[0], dequantized[0]


@torch.no_grad()
def gptq_batched(
    weights: Tensor,  # (N, R, C) any float dtype
    hessians: Tensor,  # (N, C, C)
    grid: Grid,
    scales: Tensor,  # (N, R) fp32 from `grid.scales`
    damping: float = 0.01,
    block_size: int = 128,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # (N, R, C) codes, (N, R, C) fp32
    """Round N matrices of one shape, each with its own Hessian, together (fewer, larger GPU operations).

    A column whose input was always zero (H_jj = 0) gets weight zero. `damping` times the mean diagonal of the
    live columns is added to the diagonal; when a Hessian is still not positive definite it is raised tenfold,
    with a warning, up to one mean diagonal.

    Args:
        damping: share of the mean diagonal, > 0.
        block_size: columns between two updates of the rest of the matrix; changes speed, not the result.
        dtype: working precision, float32 or float64.
    Returns:
        codes and the weights they stand for, `grid.dequantize(codes, scales)`, in the original column order.
    Raises:
        ConfigError: shapes that do not fit, NaN or infinity, or a Hessian that is not symmetric positive
            semi-definite.
    """
    _check_shapes(weights, hessians, scales, damping, block_size, dtype)
    num_columns = weights.shape[2]
    with _full_matmul_precision():
        factors, orders, dead = zip(*(_inverse_factor(h, damping, dtype) for h in hessians), strict=True)
        factor = torch.stack(factors)  # (N, C, C) upper, rows and columns in rounding order
        order = torch.stack(orders)  # (N, C)
        live = weights.to(dtype).masked_fill(torch.stack(dead).unsqueeze(1), 0.0)
        # Work is transposed, so that the column being rounded is contiguous.
        index = order.unsqueeze(2).expand(-1, -1, weights.shape[1])  # (N, C, R)
        work = live.transpose(1, 2).gather(1, index)  # (N, C, R)
        steps = scales.to(dtype)  # (N, R)
        ordered_codes = torch.empty_like(work, dtype=grid.code_dtype)
        for start in range(0, num_columns, block_size):
            end = min(start + block_size, num_columns)
            errors = _round_block(
                work[:, start:end], factor[:, start:end, start:end], grid, steps, ordered_codes[:, start:end]
            )
            if end < num_columns:
                work[:, end:].baddbmm_(factor[:, start:end, end:].transpose(1, 2), errors, alpha=-1)
    codes = torch.empty_like(ordered_codes).scatter_(1, index, ordered_codes).transpose(1, 2).contiguous()
    return codes, grid.dequantize(codes, scales)


def _round_block(
    block: Tensor,  # (N, B, R) columns of the block, already corrected by every earlier block
    factor: Tensor,  # (N, B, B) upper triangular diagonal block of the inverse factor
    grid: Grid,
    steps: Tensor,  # (N, R)
    codes_: Tensor,  # (N, B, R) integers, written
) -> Tensor:  # (N, B, R) rounding errors divided by the pivots
    """Round the columns of one block in order, each after the corrections of its predecessors."""
    errors = torch.empty_like(block)
    influence = factor.transpose(1, 2).contiguous()  # (N, B, B): row j = how earlier columns push column j
    pivots = factor.diagonal(dim1=1, dim2=2)  # (N, B)
    for j in range(block.shape[1]):
        column = block[:, j]  # (N, R)
        if j:
            push = influence[:, j : j + 1, :j]  # (N, 1, j)
            column = torch.baddbmm(block[:, j : j + 1], push, errors[:, :j], alpha=-1)[:, 0]
        rounded = grid.round_codes(column, steps)
        codes_[:, j] = rounded
        errors[:, j] = (column - rounded * steps) / pivots[:, j : j + 1]
    return errors


def _inverse_factor(
    hessian: Tensor,  # (C, C)
    damping: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Upper U (C, C) with U^T U = inverse of the ordered, damped Hessian; order (C,); dead columns (C,)."""
    hessian = hessian.to(dtype)
    if not bool(torch.isfinite(hessian).all()):
        raise ConfigError("the Hessian holds NaN or infinite values; did the model diverge?")
    diagonal = hessian.diagonal().clone()
    largest = float(diagonal.abs().max())
    if float((hessian - hessian.T).abs().max()) > _ASYMMETRY * largest:
        raise ConfigError("the Hessian is not symmetric; it must be a sum of x x^T over the layer's inputs x")
    if float(diagonal.min()) < 0:
        raise ConfigError(
            "the Hessian is not positive semi-definite: diagonal element "
            f"{int(diagonal.argmin())} is {float(diagonal.min()):.6g}; it must be a sum of "
            "x x^T over the layer's inputs x"
        )
    dead = diagonal == 0
    num_dead = int(dead.sum())
    if num_dead == dead.numel():
        logger.warning("the Hessian is zero: calibration fed this layer only zeros, so its weights become 0")
    mean = float(diagonal[~dead].mean()) if num_dead < dead.numel() else 1.0
    hessian = (hessian + hessian.T) / 2
    hessian.diagonal()[dead] = 1.0
    order = torch.argsort(diagonal, descending=True, stable=True)
    # H reversed = L L^T makes H = M M^T with M = reversed L, upper triangular; so H^-1 = U^T U with U = M^-1.
    backwards = order.flip(0)
    reversed_hessian = hessian[backwards][:, backwards]
    identity = torch.eye(len(order), dtype=dtype, device=hessian.device)
    share = damping
    while True:
        lower, failed_at = torch.linalg.cholesky_ex(reversed_hessian + share * mean * identity)
        if int(failed_at) == 0:
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            if bool(torch.isfinite(inverse).all()):
                return inverse.flip(0, 1).contiguous(), order, dead
        if share * 10 > max(_MAX_DAMPING, damping) * (1 + 1e-9):
            raise ConfigError(
                f"the Hessian is not positive semi-definite, even with {share:g} of its mean "
                "diagonal added; it must be a sum of x x^T over the layer's inputs x"
            )
        logger.warning("Cholesky factorization failed with damping %g; trying %g", share, share * 10)
        share *= 10


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
    """True fp32 products inside, whatever training chose (TF32 keeps 10 bits of mantissa: too few here)."""
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


def _check_shapes(
    weights: Tensor, hessians: Tensor, scales: Tensor, damping: float, block_size: int, dtype: torch.dtype
) -> None:
    if weights.ndim != 3 or 0 in weights.shape:
        raise ConfigError(f"GPTQ takes non-empty matrices (R, C), not a tensor of {tuple(weights.shape[1:])}")
    num_matrices, num_rows, num_columns = weights.shape
    if hessians.shape != (num_matrices, num_columns, num_columns):
        raise ConfigError(
            f"the Hessian has shape {tuple(hessians.shape[1:])}; a weight of "
            f"shape ({num_rows}, {num_columns}) needs ({num_columns}, {num_columns})"
        )
    if scales.shape != (num_matrices, num_rows):
        raise ConfigError(f"scales have shape {tuple(scales.shape[1:])}; {num_rows} rows need ({num_rows},)")
    if not damping > 0 or block_size < 1 or dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"damping {damping} must be > 0, block_size {block_size} >= 1 and dtype {dtype} float32 or float64"
        )
    if not bool(torch.isfinite(weights).all()):
        raise ConfigError("the weight holds NaN or infinite values; did the model diverge?")
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise ConfigError("scales must be finite and > 0; take them from Grid.scales")
