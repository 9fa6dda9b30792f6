"""Better scales for codes that are already chosen: least squares in the metric of the layer's output, in closed form.

For fixed levels the Hessian error is quadratic in the scales. Rows are independent: r_i = <w_i, q_i> / <q_i, q_i>
with <a, b> = a H b^T. Column factors solve one system of C equations, and a single factor for the whole tensor is a
ratio of sums. No text is needed. New scales are rounded to fp16, and kept only where they lower the error.
Source: last step of WaterSIC (arXiv:2603.04956). Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bitgolf.compress.gptq import output_error
from bitgolf.compress.quantize import QuantizedTensor
from bitgolf.compress.steps import check_importance
from bitgolf.errors import ConfigError
from bitgolf.grid import LARGEST_SCALE, SMALLEST_SCALE, scale_levels

Share = Literal["tensor", "row", "column"]


@torch.no_grad()
def rescale(
    tensor: QuantizedTensor,
    weight: Tensor,  # (R, C) any float dtype: what was quantized
    hessian: Tensor,  # (C, C) positive semi-definite
    share: Share = "tensor",
    importance: Tensor | None = None,  # (R,) as in the task
) -> QuantizedTensor:
    """`tensor` with its scales multiplied by the factors of least Hessian error, its codes as they are.

    Args:
        share: who shares a factor: the whole "tensor" (costs no bits), a "row" or a "column" (costs the precision of
            fp16 in side information: about 8 bits for each).
    Returns:
        A copy with new scales and errors; its Hessian error is never larger.
    Raises:
        ConfigError: shapes that do not fit, or an unknown share.
    """
    if share not in ("tensor", "row", "column"):
        raise ConfigError(f"share {share!r} is not one of tensor, row, column")
    num_rows, num_columns = tensor.codes.shape
    if weight.shape != tensor.codes.shape or hessian.shape != (num_columns, num_columns):
        raise ConfigError(
            f"{tensor.name}: codes of shape {(num_rows, num_columns)} need a weight of that shape and a Hessian "
            f"({num_columns}, {num_columns}), not {tuple(weight.shape)} and {tuple(hessian.shape)}"
        )
    wide, metric = weight.double(), hessian.to(weight.device, torch.float64)
    levels = tensor.levels().to(weight.device)
    scales = tensor.scales.to(weight.device)
    columns = None if tensor.column_scales is None else tensor.column_scales.to(weight.device)
    counts = torch.ones(num_rows, dtype=torch.float64, device=weight.device)
    if importance is not None:
        counts = check_importance(importance, weight).double()
    rounded = scale_levels(levels, scales, columns).double()
    before = _errors(wide - rounded, metric)
    if share == "column":
        # d/dc of sum_i g_i |w_i - c * q_i|^2: (Q^T G Q o H) c = diag(Q^T G W H)
        weighted = rounded * counts.unsqueeze(1)
        system = (weighted.T @ rounded) * metric
        wanted = (weighted * (wide @ metric)).sum(dim=0)
        factors = torch.linalg.lstsq(system.cpu(), wanted.unsqueeze(1).cpu(), driver="gelsd").solution[:, 0]
        factors = torch.where(system.diagonal() > 0, factors.to(weight.device), 1.0)  # columns of zeros stay
        start = torch.ones(num_columns, device=weight.device) if columns is None else columns
        columns = _stored(start, factors)
        better = _errors(wide - scale_levels(levels, scales, columns).double(), metric)
        if float((counts * better).sum()) >= float((counts * before).sum()):
            return tensor
    else:
        image = rounded @ metric
        overlap, energy = (wide * image).sum(dim=1), (rounded * image).sum(dim=1)  # (R,)
        if share == "tensor":
            overlap, energy = (counts * overlap).sum(), (counts * energy).sum()
        factors = torch.where(energy > 0, overlap / energy.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
        candidate = _stored(scales, factors.expand(num_rows))
        better = _errors(wide - scale_levels(levels, candidate, columns).double(), metric)
        if share == "row":
            scales = torch.where(better < before, candidate, scales)
        elif float((counts * better).sum()) < float((counts * before).sum()):
            scales = candidate
    error = wide - scale_levels(levels, scales, columns).double()
    shares = counts.sqrt().unsqueeze(1)
    signal = float(output_error(wide * shares, metric))
    energy_of_weight = float(wide.square().sum())
    return replace(
        tensor,
        scales=scales.cpu(),
        column_scales=None if columns is None else columns.cpu(),
        weight_error=float(error.square().sum()) / energy_of_weight if energy_of_weight > 0 else 0.0,
        hessian_error=float(output_error(error * shares, metric)) / signal if signal > 0 else 0.0,
    )


def _stored(
    scales: Tensor,  # (M,) fp32
    factors: Tensor,  # (M,) fp64
) -> Tensor:  # (M,) fp32 of fp16 numbers > 0
    """Scales times factors as the artifact keeps them; where a factor would flip a sign, the scale stays."""
    wanted = torch.where(factors > 0, scales.double() * factors, scales.double())
    return wanted.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16).float()


def _errors(error: Tensor, metric: Tensor) -> Tensor:
    """(R,) fp64: e_i H e_i^T of each row."""
    return ((error @ metric) * error).sum(dim=1)
