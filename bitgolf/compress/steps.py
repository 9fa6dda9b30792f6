"""Unbounded steps: every integer is a level, so the step alone sets rate and error, and may differ by row and column.

weight ~ row_scale_i * column_scale_j * level_ij. With an entropy coder no range has to be chosen: halving the step
costs one bit and quarters the squared error, whatever the data. The loss that GPTQ leaves is sum_j D_j |e_j|^2, with
D_j = 1 / U_jj^2 the variance of input j given the inputs rounded later, so column steps in proportion to D_j^(-1/2)
are optimal, and one step for all wastes 1/2 log2(AM(D) / GM(D)) bit a weight (WaterSIC, arXiv:2603.04956). Rows want
steps in proportion to g_i^(-1/2), with g_i the loss's curvature in output i. Factors have geometric mean 1, so that
the rate depends on the base step alone. Rounding uses the scales as stored.

Legend: R rows (outputs), C columns (inputs), N matrices of one shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bitgolf.compress.trellis import MEAN_SQUARED_ERROR, STATE_COUNTS, trellis_quantize
from bitgolf.errors import ConfigError
from bitgolf.grid import LARGEST_SCALE, SMALLEST_SCALE, require_finite
from bitgolf.hessian import InverseFactor

RowFactor = Literal["one", "deviation", "importance"]
ColumnFactor = Literal["one", "pivot", "salient"]
LARGEST_CODE = 32_767  # codes are kept as int16
_LARGEST_LEVEL = 1 << 22  # integers and their neighbors are exact in fp32 up to here
_LEAST_IMPORTANCE = 1e-3  # of the mean: outputs that hardly matter get steps at most 32 times the average
_SALIENT_GROUP = 64  # columns that "salient" refines together (PR 1908)
_SALIENT_REFINEMENT = 4.0  # by how much: int8 among int6
_SHEPPARD = 1 / 12  # variance that rounding adds to integers


@dataclass(frozen=True)
class Steps:
    """How far apart the levels of a matrix lie.

    Args:
        step: distance of the weights of codes k and k + 1, before the factors. At high rate a weight costs
            h - log2(step) bits, with or without a trellis, and leaves `MEAN_SQUARED_ERROR[trellis] * step^2`.
        rows: "one" step for all rows; in proportion to the "deviation" (root mean square) of a row, as SDClip does;
            or to g_i^(-1/2) of its "importance".
        columns: "one"; "pivot": in proportion to D_j^(-1/2); or "salient": a quarter in the 64 neighboring columns
            that carry most output, as AWQ-lite (PR 1908) keeps them at int8 among int6. The last two need a Hessian.
        per_octave: factors are rounded to this many values an octave, so that they cost about 3 bits each to store
            (8 an octave lose 0.001 bit a weight); 0 = fp16 as they are.
        trellis: 0, or the 4 or 8 states of trellis-coded quantization.
        rate: weight of the bits in rounding, as a share of their price at this step (2 ln 2 * squared error a bit).
            0 = nearest; 0.6 to 1 pays below 2.5 bits a weight.
    Raises:
        ConfigError: a setting out of range.
    """

    step: float
    rows: RowFactor = "one"
    columns: ColumnFactor = "one"
    per_octave: int = 8
    trellis: int = 0
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.step < math.inf:
            raise ConfigError(f"a step of {self.step!r} does not exist; it must be finite and > 0")
        for name, kinds in (("rows", get_args(RowFactor)), ("columns", get_args(ColumnFactor))):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of {', '.join(kinds)}")
        if type(self.per_octave) is not int or not 0 <= self.per_octave <= 1024:
            raise ConfigError(f"per_octave {self.per_octave!r} must be an integer from 0 (fp16) to 1024")
        if self.trellis not in STATE_COUNTS:
            raise ConfigError(f"a trellis of {self.trellis!r} states does not exist; choose 4 or 8 (0 = no trellis)")
        if not 0.0 <= self.rate < math.inf:
            raise ConfigError(f"rate {self.rate!r} must be finite and >= 0")

    @property
    def levels_a_step(self) -> int:
        """Levels between two neighboring codes: 2 with a trellis, whose quantizers interleave."""
        return 2 if self.trellis else 1

    def row_scales(
        self,
        weight: Tensor,  # (R, C) any float dtype
        importance: Tensor | None = None,  # (R,) >= 0, the curvature g_i of the loss in each output
    ) -> Tensor:  # (R,) fp32, every value an fp16 number > 0
        """What one level of each row is worth, before the column factors. All-zero rows get the smallest scale.

        Raises:
            ConfigError: NaN or infinite weights, a step that does not fit fp16, or importance that is missing,
                misshapen, negative or not finite.
        """
        if weight.ndim != 2 or 0 in weight.shape or not weight.is_floating_point():
            raise ConfigError(
                f"steps quantize non-empty float matrices (R, C), not {weight.dtype} of {tuple(weight.shape)}"
            )
        require_finite(weight)
        root_mean_square = weight.double().square().mean(dim=1).sqrt()
        zero = root_mean_square == 0
        wanted = torch.ones_like(root_mean_square)
        if self.rows == "deviation":
            wanted = root_mean_square
        elif self.rows == "importance":
            wanted = check_importance(importance, weight).double().rsqrt()
        factor = self._on_grid(wanted, ~zero)
        scales = (self.step / self.levels_a_step * factor).to(torch.float16).float().clamp_min(SMALLEST_SCALE)
        scales = scales.masked_fill(zero, SMALLEST_SCALE)
        if bool(torch.isinf(scales).any()):
            row = int(scales.argmax())
            raise ConfigError(
                f"the step of row {row}, {self.step * float(factor[row]):.6g}, does not fit fp16 (at most "
                f"{LARGEST_SCALE:.0f}); a tensor with weights that large must stay in fp32"
            )
        return scales

    def column_scales(
        self,
        weight: Tensor,  # (R, C)
        hessian: Tensor | None = None,  # (C, C), for "salient"
        factor: InverseFactor | None = None,  # for "pivot"
    ) -> Tensor | None:
        """(C,) fp32 of fp16 numbers > 0 by which each column's step is multiplied, 1 for dead columns; None = all 1.

        Raises ConfigError when the statistics that the settings ask for are missing.
        """
        if self.columns == "one":
            return None
        if (factor if self.columns == "pivot" else hessian) is None:
            raise ConfigError(
                f"columns {self.columns!r} needs a Hessian of this tensor; calibrate it, or use columns 'one'"
            )
        if self.columns == "salient":
            assert hessian is not None
            wanted = _refined(weight, hessian)
            dead = torch.zeros_like(wanted, dtype=torch.bool)
        else:
            assert factor is not None
            wanted = torch.empty_like(factor.pivots, dtype=torch.float64)
            wanted[factor.order] = factor.pivots.double()
            dead = factor.dead
        scales = self._on_grid(wanted, ~dead).masked_fill(dead, 1.0)
        return scales.to(torch.float16).float().clamp_min(SMALLEST_SCALE)

    def _on_grid(self, wanted: Tensor, counts: Tensor) -> Tensor:
        """`wanted` (M,) fp64 divided by its geometric mean over `counts` (M,) bool, on the logarithmic grid."""
        if not bool(counts.any()):
            return torch.ones_like(wanted)
        octaves = torch.where(counts, wanted, 1.0).log2()
        octaves = octaves - octaves[counts].mean()
        if self.per_octave:
            octaves = torch.round(octaves * self.per_octave) / self.per_octave
        return octaves.exp2()


def _refined(weight: Tensor, hessian: Tensor) -> Tensor:
    """(C,) fp64 column steps, smaller in the group where root mean square of the input times mean |w| is largest."""
    saliency = hessian.diagonal().double().sqrt() * weight.double().abs().mean(dim=0)
    groups = [float(part.sum()) for part in saliency.split(_SALIENT_GROUP)]
    best = _SALIENT_GROUP * max(range(len(groups)), key=groups.__getitem__)
    steps = torch.ones_like(saliency)
    steps[best : best + _SALIENT_GROUP] /= _SALIENT_REFINEMENT
    return steps


def check_importance(
    importance: Tensor | None,
    weight: Tensor,  # (R, C)
) -> Tensor:  # (R,) fp32 > 0 on the weight's device, mean 1 before the floor
    """Row importance in units of its mean, floored at 1/1000. Raises ConfigError when it is missing or unusable."""
    if importance is None:
        raise ConfigError("steps by importance need the importance of every row; gather it, or use rows = 'one'")
    values = importance.to(device=weight.device, dtype=torch.float32)
    if values.shape != weight.shape[:1]:
        raise ConfigError(f"importance has shape {tuple(importance.shape)} for {len(weight)} rows")
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise ConfigError("importance must be finite and >= 0 in every row")
    mean = values.double().mean()
    if float(mean) == 0.0:
        return torch.ones_like(values)
    return (values.double() / mean).clamp_min(_LEAST_IMPORTANCE).float()


def wasted_bits(factor: InverseFactor, column_scales: Tensor | None = None) -> float:
    """1/2 log2(AM / GM) of D_j * column_scale_j^2 over live columns: bits a weight that these steps waste."""
    live = ~factor.dead[factor.order]
    if not bool(live.any()):
        return 0.0
    shares = factor.pivots.double().pow(-2)
    if column_scales is not None:
        shares = shares * column_scales.to(shares)[factor.order].square()
    shares = shares[live]
    return max(0.0, 0.5 * float(torch.log2(shares.mean()) - torch.log2(shares).mean()))


class StepRounder:
    """Rounds columns of N matrices to unbounded levels; a `gptq.Rounder`.

    The price of bits is that of a Gaussian whose variance is a product of a row and a column part: a code at position
    y (in steps) costs y^2 / (2 (v + 1/12)) nats more than a zero. A quadratic price only shrinks the input and weighs
    its error, so the search for the least squared error finds the least total too.

    Args:
        steps: the settings.
        weights: (N, R, C) what will be rounded; only its variances are used, and only with a rate.
        scales, column_scales: (N, R) and (N, C) or None, as stored.
        importance: (N, R) > 0 or None.
    """

    def __init__(
        self,
        steps: Steps,
        weights: Tensor,
        scales: Tensor,
        column_scales: Tensor | None,
        importance: Tensor | None,
    ) -> None:
        self.steps = steps
        self.weight: Tensor | None = None  # (N, R): what a squared error of one level costs, relative to other rows
        if importance is not None:
            cost = importance.double() * scales.double().square()
            self.weight = (cost / cost.mean(dim=1, keepdim=True)).to(torch.float32).clamp_min(1e-6)
        self.variance: tuple[Tensor, Tensor] | None = None
        if steps.rate:
            position = weights.double() / scales.double().unsqueeze(2) / steps.levels_a_step
            if column_scales is not None:
                position = position / column_scales.double().unsqueeze(1)
            square = position.square()
            rows = square.mean(dim=2)  # (N, R)
            columns = (square / rows.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(2)).mean(dim=1)  # (N, C)
            self.variance = rows.float(), columns.float()

    def __call__(self, x: Tensor, columns: Tensor) -> Tensor:
        """See `gptq.Rounder`."""
        if self.variance is None:
            return self._round(x, self.weight, None)
        rows, by_column = self.variance
        return self._round(x, self.weight, rows * by_column.gather(1, columns.unsqueeze(1)))

    def without_feedback(
        self,
        x: Tensor,  # (N, R, C) in units of the stored steps
    ) -> Tensor:  # (N, R, C) integer-valued
        """Levels of whole matrices, every column for itself."""
        variance = None
        if self.variance is not None:
            rows, columns = self.variance
            variance = rows.unsqueeze(1) * columns.unsqueeze(2)  # (N, C, R)
        weight = None if self.weight is None else self.weight.unsqueeze(1)
        return self._round(x.transpose(1, 2), weight, variance).transpose(1, 2)

    def _round(
        self,
        x: Tensor,  # (..., R)
        weight: Tensor | None,  # broadcastable to x
        variance: Tensor | None,  # like x, steps^2
    ) -> Tensor:  # (..., R)
        steps = self.steps
        if variance is not None:
            price = steps.rate * MEAN_SQUARED_ERROR[steps.trellis] / (variance.to(x) + _SHEPPARD)
            if weight is not None:
                price = price / weight.to(x)
            # (x - l)^2 + price l^2 = (1 + price) (x / (1 + price) - l)^2 + what does not depend on l
            x = x / (1 + price)
            if steps.trellis:
                weight = 1 + price if weight is None else weight.to(x) * (1 + price)
        levels = trellis_quantize(x, steps.trellis, weight) if steps.trellis else torch.round(x)
        return levels.clamp(-_LARGEST_LEVEL, _LARGEST_LEVEL)
