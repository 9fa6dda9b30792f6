"""Unbounded steps: every integer is a level, and the distance of two levels may differ by column.

With an entropy coder no range has to be chosen. The step alone sets the bits and the error: halving it costs one bit
per weight and quarters the squared error, whatever the weights are.

    weight_ij ~ scale * c_j * level_ij        c_j: column factor, with geometric mean 1

GPTQ leaves the loss sum_j D_j * |e_j|^2, where e_j is the rounding error of column j. D_j = 1 / U_jj^2 is the
variance of input j given the inputs that are rounded later, and U the factor of the inverse Hessian. The loss is
least at a given number of bits if c_j is in proportion to D_j^(-1/2). One step for all columns wastes 1/2 log2(AM(D)
/ GM(D)) bits per weight, with AM and GM the arithmetic and the geometric mean (WaterSIC, arXiv:2603.04956). Rounding
uses the scales as the artifact stores them.

Legend: R rows (outputs), C columns (inputs), N matrices of one shape.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitgolf.errors import ConfigError
from bitgolf.grids.grid import LARGEST_SCALE, SMALLEST_SCALE, require_finite
from bitgolf.measure.inverse_factor import InverseFactor
from bitgolf.quantize.viterbi import trellis_quantize

ColumnFactor = Literal["one", "pivot"]
LARGEST_CODE = 32_767  # codes are stored as int16
_LARGEST_LEVEL = 1 << 22  # up to here, integers and their halves are exact in fp32
_LEAST_IMPORTANCE = 1e-3  # of the mean importance; no output is ignored
_FACTORS_PER_OCTAVE = (
    8  # values of column factors; storing one takes about 3 bits, rounding wastes 0.001 bits per weight
)


@dataclass(frozen=True)
class Steps:
    """The distance between the levels of a matrix.

    Raises:
        ConfigError: a setting out of range.
    """

    # distance of the weights of codes k and k + 1, before the column factors. At fine steps a weight costs h -
    # log2(step) bits, with or without a trellis, and its mean squared error is `MEAN_SQUARED_ERROR[trellis] * step^2`.
    step: float
    # "one" step for all columns; "pivot": in proportion to D_j^(-1/2), which needs a Hessian.
    columns: ColumnFactor = "one"
    trellis: int = 0  # 0, or the 8 states of trellis-coded quantization

    def __post_init__(self) -> None:
        if not 0.0 < self.step < math.inf:
            raise ConfigError(f"a step of {self.step!r} does not exist; it must be finite and > 0")

    @property
    def levels_per_step(self) -> int:
        """Levels between two neighboring codes: 2 with a trellis, whose quantizers interleave."""
        return 2 if self.trellis else 1

    def row_scales(
        self,
        weight: Tensor,  # (R, C) any float dtype
    ) -> Tensor:  # (R,) fp32, every value an fp16 number > 0
        """Weight of one level before the column factors: the same for all rows, and the smallest scale for zero rows.

        Raises:
            ConfigError: NaN or infinite weights, or a step that does not fit fp16.
        """
        if weight.ndim != 2 or 0 in weight.shape or not weight.is_floating_point():
            raise ConfigError(
                f"steps quantize non-empty float matrices (R, C), not {weight.dtype} of {tuple(weight.shape)}"
            )
        require_finite(weight)
        scale = torch.tensor(self.step / self.levels_per_step, dtype=torch.float64, device=weight.device)
        scale = scale.to(torch.float16).float().clamp_min(SMALLEST_SCALE)
        zero = weight.double().square().mean(dim=1) == 0
        scales = scale.expand(len(weight)).masked_fill(zero, SMALLEST_SCALE)
        if bool(torch.isinf(scales).any()):
            raise ConfigError(
                f"the step {self.step:.6g} does not fit fp16 (at most {LARGEST_SCALE:.0f}); a tensor with weights that "
                "large must stay in fp32"
            )
        return scales

    def column_scales(
        self,
        factor: InverseFactor | None,  # of the tensor's Hessian; needed by "pivot"
    ) -> Tensor | None:
        """(C,) fp32 column factors, each an fp16 number > 0, and 1 for dead columns; None = all 1.

        Raises ConfigError if the settings need a Hessian and there is none.
        """
        if self.columns == "one":
            return None
        if factor is None:
            raise ConfigError(
                f"columns {self.columns!r} needs a Hessian of this tensor; calibrate it, or use columns 'one'"
            )
        live = ~factor.dead
        pivots = torch.empty_like(factor.pivots, dtype=torch.float64)
        pivots[factor.order] = factor.pivots.double()
        if not bool(live.any()):
            return torch.ones_like(pivots, dtype=torch.float32)
        octaves = torch.where(live, pivots, 1.0).log2()
        octaves = torch.round((octaves - octaves[live].mean()) * _FACTORS_PER_OCTAVE) / _FACTORS_PER_OCTAVE
        scales = octaves.exp2().masked_fill(factor.dead, 1.0)
        return scales.to(torch.float16).float().clamp_min(SMALLEST_SCALE)


def check_importance(
    importance: Tensor,  # (R,) >= 0, the curvature of the loss in each output
    weight: Tensor,  # (R, C)
) -> Tensor:  # (R,) fp32 > 0 on the weight's device, mean 1 before the floor
    """Importance in units of its mean, at least 1/1000. Raises ConfigError if shape or values are wrong."""
    values = importance.to(device=weight.device, dtype=torch.float32)
    if values.shape != weight.shape[:1]:
        raise ConfigError(f"importance has shape {tuple(importance.shape)} for {len(weight)} rows")
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ConfigError("importance must be finite and >= 0 in every row")
    mean = values.double().mean()
    if float(mean) == 0.0:
        return torch.ones_like(values)
    return (values.double() / mean).clamp_min(_LEAST_IMPORTANCE).float()


class StepRounder:
    """Rounds columns of N matrices to unbounded levels, to the nearest or along a trellis; a `gptq.Rounder`.

    Args:
        steps: the settings.
        scales: (N, R) as stored.
        importance: (N, R) > 0, how much the squared error of a row counts along a trellis; None = all the same.
    """

    def __init__(self, steps: Steps, scales: Tensor, importance: Tensor | None) -> None:
        self.trellis = steps.trellis
        self.weight: Tensor | None = None  # (N, R) cost of a squared error of one level, relative to the other rows
        if importance is not None:
            cost = importance.double() * scales.double().square()
            self.weight = (cost / cost.mean(dim=1, keepdim=True)).to(torch.float32).clamp_min(1e-6)

    def __call__(self, x: Tensor) -> Tensor:
        return self._round(x, self.weight)

    def without_feedback(
        self,
        x: Tensor,  # (N, R, C) in units of the stored steps
    ) -> Tensor:  # (N, R, C) integer-valued
        """Levels of whole matrices; no column's error is fed back to another."""
        weight = None if self.weight is None else self.weight.unsqueeze(1)
        return self._round(x.transpose(1, 2), weight).transpose(1, 2)

    def _round(
        self,
        x: Tensor,  # (..., R)
        weight: Tensor | None,  # broadcastable to x
    ) -> Tensor:  # (..., R)
        levels = trellis_quantize(x, self.trellis, weight) if self.trellis else torch.round(x)
        return levels.clamp(-_LARGEST_LEVEL, _LARGEST_LEVEL)
