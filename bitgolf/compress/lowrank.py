"""LQER: a small product of two thin integer matrices added to a quantized weight, where it repairs most.

The residual E = W - Q is approximated by left * right of rank r, best in the metric of the layer's output (a singular
value decomposition of E L, with H = L L^T), left in 2 bits and right in 4 with a scale for every `group` columns
(challenge PR 1797). Two departures: columns of left are rounded at their root mean square, which right absorbs, and
right is fitted again once left is rounded. Against an entropy coder it has to earn its bytes; `correct` reports the
gain, and tensors are chosen by gain, not by the size of the residual.

Legend: R rows (outputs), C columns (inputs), r rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.compress.gptq import output_error
from bitgolf.compress.stored import CORRECTION, StoredTensor
from bitgolf.errors import ArtifactError, ConfigError
from bitgolf.grid import LARGEST_SCALE, SMALLEST_SCALE
from bitgolf.hessian import inverse_factor

LARGEST_RANK = 64
_BLOCK = 1 << 20  # elements that are corrected at a time
_LEFT_BITS, _RIGHT_BITS = 3, 5  # grids that hold the odd levels +-1, +-3 (2 bits) and +-1 ... +-15 (4 bits)


@dataclass(frozen=True)
class Correction:
    """A low-rank correction of one tensor, on the CPU.

    Attributes:
        left: (R, r) int8, odd levels -3 ... 3.
        right: (r, C) int8, odd levels -15 ... 15.
        scales: (r, C / group) fp32, each an fp16 number > 0.
        error_before, error_after: tr(E H E^T) without and with it.
        bits: that it costs: 2 and 4 an element and 16 a scale.
    """

    left: Tensor
    right: Tensor
    scales: Tensor
    error_before: float
    error_after: float
    bits: int

    @property
    def gain(self) -> float:
        """Output error that it removes."""
        return self.error_before - self.error_after

    def product(self) -> Tensor:
        """(R, C) fp32: what is added to the dequantized weight."""
        return self.left.float() @ _restored(self.right, self.scales)

    def stored(self, group: str | None = None) -> tuple[StoredTensor, StoredTensor]:
        """Left, with scales of 1, and right, one row for each of its scales, as the container takes them."""
        rows = self.right.reshape(self.scales.numel(), -1)
        return (
            StoredTensor.quantized(self.left, torch.ones(len(self.left)), _LEFT_BITS, group),
            StoredTensor.quantized(rows, self.scales.flatten(), _RIGHT_BITS, group),
        )


@torch.no_grad()
def correct(
    residual: Tensor,  # (R, C) float: weight minus dequantized weight
    hessian: Tensor,  # (C, C)
    rank: int = 4,
    group: int = 64,
    damping: float = 0.01,
) -> Correction:
    """The low-rank correction of a residual.

    Args:
        rank: r, from 1 to the smaller side.
        group: columns of right that share a scale; divides C.
        damping: of the Hessian, as in GPTQ.
    Raises:
        ConfigError: shapes, rank or group that do not fit, NaN or infinity, or an impossible Hessian.
    """
    if residual.ndim != 2 or hessian.shape != (residual.shape[-1],) * 2:
        raise ConfigError(f"a residual of {tuple(residual.shape)} does not fit a Hessian of {tuple(hessian.shape)}")
    num_columns = residual.shape[1]
    if not 1 <= rank <= min(residual.shape) or group < 1 or num_columns % group:
        raise ConfigError(
            f"rank {rank} must lie between 1 and {min(residual.shape)} and group {group} divide {num_columns} columns"
        )
    if not bool(torch.isfinite(residual).all()):
        raise ConfigError("the residual holds NaN or infinite values")
    wide = residual.double()
    metric = hessian.to(wide)
    factor = inverse_factor(metric, damping, torch.float64)
    # With H = (U^T U)^-1 in rounding order, E U^-1 has the error of the output as its plain squared norm.
    ordered = wide[:, factor.order]
    whitened = torch.linalg.solve_triangular(factor.upper, ordered, upper=True, left=False)
    directions = torch.linalg.eigh(whitened.T @ whitened).eigenvectors[:, -rank:]  # (C, r), the strongest
    left = whitened @ directions  # (R, r)
    deviation = left.square().mean(dim=0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    left = _odd(left / (deviation / 2), 3)
    right = torch.linalg.lstsq(left.cpu(), wide.cpu(), driver="gelsd").solution  # (r, C)
    grouped = right.reshape(rank, -1, group)
    scales = (grouped.abs().amax(dim=2) / 15).to(torch.float16).double().clamp(SMALLEST_SCALE, LARGEST_SCALE)
    rounded = _odd(grouped / scales.unsqueeze(2), 15).reshape(rank, num_columns)
    left8, right8, scales32 = left.cpu().to(torch.int8), rounded.to(torch.int8), scales.float()
    repaired = wide - (left8.double() @ _restored(right8, scales32).double()).to(wide.device)
    return Correction(
        left8,
        right8,
        scales32,
        float(output_error(wide, metric)),
        float(output_error(repaired, metric)),
        2 * left.numel() + 4 * rounded.numel() + 16 * scales.numel(),
    )


def fold_(tensors: dict[str, Tensor]) -> None:
    """Add the corrections among fp32 `tensors` of an artifact to the weights that they belong to, and take them out.

    In double precision, where these sums are exact: the same weights on every machine; some rows at a time. Raises
    ArtifactError when a correction does not fit its weight, or has a rank above 64.
    """
    left_end, right_end = CORRECTION
    for name in [name for name in tensors if name.endswith(CORRECTION)]:
        if name not in tensors:
            continue  # the other half of one that is done
        base = name.removesuffix(left_end).removesuffix(right_end)
        parts = [tensors.get(base), tensors.get(base + left_end), tensors.get(base + right_end)]
        weight, left, right = parts
        if (
            weight is None or left is None or right is None or not weight.ndim == left.ndim == right.ndim == 2
            or len(left) != len(weight) or right.numel() != left.size(1) * weight.size(1) or left.size(1) > LARGEST_RANK
        ):  # fmt: skip
            shapes = ["absent" if part is None else str(tuple(part.shape)) for part in parts]
            raise ArtifactError(f"tensor {name}: weight {shapes[0]}, left {shapes[1]}, right {shapes[2]} do not fit")
        wide = right.double().reshape(left.size(1), -1)
        rows = max(1, _BLOCK // weight.size(1))
        for part, factor in zip(weight.split(rows), left.split(rows), strict=True):
            part.copy_(part.double() + factor.double() @ wide)
        del tensors[base + left_end], tensors[base + right_end]


def _odd(x: Tensor, largest: int) -> Tensor:
    """The nearest odd integers from -largest to largest."""
    return (2 * torch.floor(x / 2) + 1).clamp(-largest, largest)


def _restored(right: Tensor, scales: Tensor) -> Tensor:
    """(r, C) fp32."""
    return (right.float().reshape(*scales.shape, -1) * scales.unsqueeze(2)).reshape(right.shape)
