"""The quantization grid: range, step, rounding and clip search, in one object with three users.

Training fakes it (quantization-aware training), GPTQ rounds to it and the artifact stores it, so the three
cannot disagree. A grid is symmetric: codes are the integers of [-qmax, qmax], qmax = 2^(bits-1) - 1, and
every row of a matrix has one step ("scale") that is stored as fp16. All rounding uses the scale *as stored*.
Clip search by percentile: GPTQ-lite, challenge PR 414. Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.errors import ConfigError

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)  # the row clips of challenge PR 414
SMALLEST_SCALE = 2.0**-24  # smallest positive fp16 number: the step of all-zero and of vanishing rows
LARGEST_SCALE = 65504.0  # largest finite fp16 number
MAX_BITS = 12
_CHUNK_ELEMENTS = 1 << 22  # clip search works on this many weights at a time


@dataclass(frozen=True)
class Grid:
    """Symmetric per-row integer grid.

    Args:
        bits: width of a code, 2 to 12.
        floor: smallest step that a row may have; 0 = no floor beyond fp16. The published int5 systems used
            1 / qmax, which coarsens rows of small norm.
        clip_sigmas: clip every row at this many standard deviations instead of searching percentiles (SDClip,
            challenge PR 1394): it sets the rate directly. 0 = search.
    Raises:
        ConfigError: bits or floor out of range.
    """

    bits: int
    floor: float = 0.0
    clip_sigmas: float = 0.0

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= MAX_BITS:
            raise ConfigError(f"a grid of {self.bits!r} bits does not exist; choose an integer from 2 to {MAX_BITS}")
        if not 0.0 <= self.floor <= LARGEST_SCALE:
            raise ConfigError(f"the scale floor {self.floor!r} must lie between 0 and {LARGEST_SCALE:.0f}")

        if not 0.0 <= self.clip_sigmas < math.inf:
            raise ConfigError(f"clip_sigmas {self.clip_sigmas!r} must be 0 (search the clips) or a positive number")

    @property
    def qmax(self) -> int:
        """Largest code; the smallest is -qmax."""
        return 2 ** (self.bits - 1) - 1

    @property
    def code_dtype(self) -> torch.dtype:
        """Integer type that holds a code: int8 up to 8 bits, int16 above."""
        return torch.int8 if self.bits <= 8 else torch.int16

    def round_scales(
        self,
        clip: Tensor,  # (..., R) largest magnitude that each row represents, >= 0
    ) -> Tensor:  # (..., R) fp32
        """Steps of rows that reach up to `clip`, rounded to fp16 as the artifact stores them.

        Unchecked and free of branches on data, so it can be compiled into a training step. A step below the
        smallest fp16 number becomes that number; one above the largest becomes infinite (see `scales`).
        """
        step = (clip.detach().float() / self.qmax).clamp_min(max(self.floor, SMALLEST_SCALE))
        return step.to(torch.float16).float()

    def scales(
        self,
        weight: Tensor,  # (..., R, C) any float dtype
        clip: Tensor | None = None,  # (..., R); None = the largest magnitude of each row
    ) -> Tensor:  # (..., R) fp32, every value an fp16 number > 0
        """Checked steps of `weight`'s rows.

        Raises:
            ConfigError: NaN or infinite weights, a negative or non-finite clip, or a row so large that its
                step does not fit fp16; the message names the row.
        """
        weight = _matrix(weight)
        require_finite(weight)
        if clip is None:
            clip = weight.abs().amax(dim=-1)
        _require_rows(clip, weight, "clip")
        bad = ~(torch.isfinite(clip) & (clip >= 0))
        if bool(bad.any()):
            row = _first(bad)
            raise ConfigError(f"the clip of row {row} is {clip.flatten()[row].item()}, not finite and >= 0")
        scales = self.round_scales(clip)
        if bool(torch.isinf(scales).any()):
            row = _first(torch.isinf(scales))
            raise ConfigError(
                f"row {row} reaches {clip.flatten()[row].item():.6g}: its int{self.bits} step "
                f"does not fit fp16 (at most {LARGEST_SCALE * self.qmax:.6g}); keep it in fp32"
            )
        return scales

    def round_codes(
        self,
        weight: Tensor,  # (..., R, C) or one column (..., R) with unsqueezed scales; float
        steps: Tensor,  # broadcastable to weight
    ) -> Tensor:  # like weight, integer-valued floats in [-qmax, qmax]
        """Nearest codes (half to even), unchecked; the inner operation of every user of the grid."""
        return torch.round(weight / steps).clamp(-self.qmax, self.qmax)

    def quantize(
        self,
        weight: Tensor,  # (..., R, C) any float dtype
        scales: Tensor,  # (..., R) fp32 from `scales`
    ) -> Tensor:  # (..., R, C) of `code_dtype`
        """Round `weight` to the nearest code. Raises ConfigError on NaN, infinity or mismatched shapes."""
        weight = _matrix(weight)
        require_finite(weight)
        _require_rows(scales, weight, "scales")
        return self.round_codes(weight, scales.unsqueeze(-1)).to(self.code_dtype)

    def dequantize(
        self,
        codes: Tensor,  # (..., R, C) integers
        scales: Tensor,  # (..., R) fp32
    ) -> Tensor:  # (..., R, C) fp32
        """The weights that `codes` stand for: code times the row's step."""
        _require_rows(scales, codes, "scales")
        return scale_levels(codes, scales)

    def fake_quantize(
        self,
        weight: Tensor,  # (..., R, C) any float dtype, may require gradients
        scales: Tensor,  # (..., R) fp32
    ) -> Tensor:  # like weight
        """Exactly `dequantize(quantize(weight))` forward, identity backward (straight-through).

        Unchecked and free of branches on data, so it can be compiled into a training step. Gradients pass to
        clipped weights too; none flow to `scales`.
        """
        steps = scales.detach().float().unsqueeze(-1)
        rounded = self.round_codes(weight.detach().float(), steps) * steps
        # The bracket is exactly zero; its gradient is not.
        return rounded.to(weight.dtype) + (weight - weight.detach())

    @torch.no_grad()
    def search_clip(
        self,
        weight: Tensor,  # (R, C) any float dtype
        percentiles: Sequence[float] = PERCENTILES,
        importance: Tensor | None = None,  # (C,) >= 0, for example the diagonal of the Hessian
    ) -> Tensor:  # (R,) fp32
        """For each row, the percentile of |w| whose *stored* scale leaves the least squared error.

        With `clip_sigmas` nothing is searched: the clip is that many population standard deviations of the row.
        Percentiles interpolate linearly between order statistics, as `torch.quantile` does. With `importance`
        the squared error of column j counts importance[j] times.

        Raises:
            ConfigError: non-finite weights, percentiles outside (0, 1], or importance of another shape or
                with a negative or non-finite value.
        """
        if weight.ndim != 2:
            raise ConfigError(f"clip search takes a matrix (R, C), not a tensor of {tuple(weight.shape)}")
        weight = _matrix(weight)
        require_finite(weight)
        levels = [float(p) for p in percentiles]
        if not levels or not all(0.0 < p <= 1.0 for p in levels):
            raise ConfigError(f"percentiles {tuple(percentiles)} must be one or more numbers in (0, 1]")
        if self.clip_sigmas:
            return self.clip_sigmas * weight.float().std(dim=1, correction=0)
        num_columns = weight.shape[1]
        column_weight = None
        if importance is not None:
            column_weight = importance.to(device=weight.device, dtype=torch.float32)
            if column_weight.shape != (num_columns,):
                raise ConfigError(f"importance has shape {tuple(importance.shape)} for {num_columns} columns")
            if not bool((torch.isfinite(column_weight) & (column_weight >= 0)).all()):
                raise ConfigError("importance must be finite and >= 0 in every column")
        rows_at_once = max(1, _CHUNK_ELEMENTS // num_columns)
        pieces = weight.split(rows_at_once)
        return torch.cat([self._search_rows(rows, levels, column_weight) for rows in pieces])

    def _search_rows(self, weight: Tensor, levels: list[float], column_weight: Tensor | None) -> Tensor:
        num_columns = weight.shape[1]
        positions = [p * (num_columns - 1) for p in levels]  # ascending order statistics, fractional
        depth = num_columns - math.floor(min(positions))
        top = weight.abs().topk(depth, dim=1).values  # (rows, depth) descending: top[:, i] is rank C-1-i
        best_clip = top[:, 0]  # stays where every squared error overflows; `scales` then refuses the row
        best_error = torch.full_like(best_clip, math.inf)
        for position in positions:
            low = num_columns - 1 - math.floor(position)
            high = max(low - 1, 0)
            clip = torch.lerp(top[:, low], top[:, high], position - math.floor(position))
            steps = self.round_scales(clip).unsqueeze(1)
            squared = (weight - self.round_codes(weight, steps) * steps).square_()
            error = squared.sum(dim=1) if column_weight is None else squared @ column_weight
            better = error < best_error
            best_clip = torch.where(better, clip, best_clip)
            best_error = torch.where(better, error, best_error)
        return best_clip


def _matrix(weight: Tensor) -> Tensor:
    """`weight` as fp32 with at least two dimensions and one element a row."""
    if weight.ndim < 2 or weight.shape[-1] == 0 or not weight.is_floating_point():
        raise ConfigError(
            f"a grid quantizes float matrices (R, C) with C >= 1, not {weight.dtype} of shape {tuple(weight.shape)}"
        )
    return weight.float()


def scale_levels(
    levels: Tensor,  # (..., R, C) integers
    scales: Tensor,  # (..., R) fp32
    column_scales: Tensor | None = None,  # (..., C) fp32
) -> Tensor:  # (..., R, C) fp32
    """level * row scale * column scale, multiplied in this order by whoever restores a weight, so all agree."""
    weight = levels.float() * scales.float().unsqueeze(-1)
    return weight if column_scales is None else weight * column_scales.float().unsqueeze(-2)


def require_finite(weight: Tensor) -> None:
    """Raise ConfigError, with the first place, when `weight` holds NaN or infinity."""
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        where = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ConfigError(
            f"{int((~finite).sum())} weights are NaN or infinite, the first at index {where}; "
            "the model diverged or the file is damaged"
        )


def _require_rows(values: Tensor, weight: Tensor, what: str) -> None:
    if values.shape != weight.shape[:-1]:
        raise ConfigError(f"{what} of {tuple(values.shape)} do not fit a weight of {tuple(weight.shape)}")


def _first(mask: Tensor) -> int:
    return int(mask.flatten().nonzero()[0].item())
