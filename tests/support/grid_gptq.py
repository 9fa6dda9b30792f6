"""GPTQ on a grid in one call, for tests: factors, rounding and the weights that the codes stand for."""

import torch
from torch import Tensor

from bitgolf.grids.grid import Grid
from bitgolf.quantize.gptq import GridRounder, factorize, round_with_feedback
from bitgolf.quantize.tensors import PERCENTILES, QuantizedTensor, QuantizeTask, quantize_tensors


def gptq_batched(
    weights: Tensor,  # (N, R, C) any float dtype
    hessians: Tensor,  # (N, C, C)
    grid: Grid,
    scales: Tensor,  # (N, R) fp32 from `grid.scales`
    damping: float = 0.01,
    block_size: int = 128,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # (N, R, C) codes, (N, R, C) fp32
    """Round N matrices of one shape to a grid, each with its own Hessian."""
    factors = [factorize(*pair, damping, dtype) for pair in zip(weights, hessians, strict=True)]
    codes = round_with_feedback(weights, factors, scales, None, GridRounder(grid), block_size).to(grid.code_dtype)
    return codes, grid.dequantize(codes, scales)


def gptq(
    weight: Tensor,  # (R, C)
    hessian: Tensor,  # (C, C)
    grid: Grid,
    scales: Tensor,  # (R,)
    damping: float = 0.01,
    block_size: int = 128,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # (R, C) codes, (R, C) fp32
    """Round one matrix to a grid."""
    codes, dequantized = gptq_batched(weight[None], hessian[None], grid, scales[None], damping, block_size, dtype)
    return codes[0], dequantized[0]


def quantize_tensor(
    name: str, weight: Tensor, grid: object, method="gptq", hessian=None, percentiles=PERCENTILES, **settings
) -> QuantizedTensor:
    """One tensor on its device; `settings` are those of the task and of `quantize_tensors`."""
    task = QuantizeTask(name, weight, grid, method, hessian, settings.pop("importance", None))
    return quantize_tensors([task], percentiles, **settings)[0]
