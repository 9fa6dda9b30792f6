"""The quantization grid: its range, steps, rounding and clip search.

Quantization-aware training, GPTQ and the artifact use the same `Grid` object, so they agree on every code. A grid is
symmetric: codes are the integers from -qmax to qmax with qmax = 2^(bits-1) - 1. Every row of a matrix has one step
("scale"), stored as fp16, and all rounding uses the stored value.
Source of the clip search by percentile: GPTQ-lite, PR 414 of openai/parameter-golf.

Legend: R rows (outputs), C columns (inputs).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.errors import ConfigError

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)  # row clips of PR 414
SMALLEST_SCALE = 2.0**-24  # smallest positive fp16 number; the step of rows that are zero or almost zero
LARGEST_SCALE = 65504.0  # largest finite fp16 number
MAX_BITS = 12
_CHUNK_ELEMENTS = 1 << 22  # number of weights that the clip search processes at a time


@dataclass(frozen=True)
class Grid:
    """Symmetric per-row integer grid.

    Raises:
        ConfigError: bits or floor out of range.
    """

    bits: int  # bits per code, 2 to 12
    # smallest step of a row; 0 = the smallest fp16 number. The published int5 systems used 1 / qmax, which makes rows
    # of small norm coarser.
    floor: float = 0.0
    # clip every row at this many standard deviations instead of searching percentiles (SDClip, PR 1394). 0 = search.
    clip_sigmas: float = 0.0

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= MAX_BITS:
            raise ConfigError(f"a grid of {self.bits!r} bits is impossible; choose an integer from 2 to {MAX_BITS}")
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
        """Steps of rows whose largest magnitude is `clip`, rounded to fp16 as in the artifact.

        The function has no checks and no branches on data, so a training step that contains it can be compiled. A step
        below the smallest fp16 number becomes that number. A step above the largest becomes infinite (see `scales`).
        """
        step = (clip.detach().float() / self.qmax).clamp_min(max(self.floor, SMALLEST_SCALE))
        return step.to(torch.float16).float()

    def scales(
        self,
        weight: Tensor,  # (..., R, C) any float dtype
        clip: Tensor | None = None,  # (..., R); None = the largest magnitude of each row
    ) -> Tensor:  # (..., R) fp32, every value an fp16 number > 0
        """Steps of the rows of `weight`, with checks.

        Raises:
            ConfigError: NaN or infinite weights, a negative or non-finite clip, or a step that is too large for
                fp16. The message names the row.
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
        """Nearest codes, half to even, without checks."""
        return torch.round(weight / steps).clamp(-self.qmax, self.qmax)

    def quantize(
        self,
        weight: Tensor,  # (..., R, C) any float dtype
        scales: Tensor,  # (..., R) fp32 from `scales`
    ) -> Tensor:  # (..., R, C) of `code_dtype`
        """Round `weight` to the nearest codes. Raises ConfigError for NaN, infinity or shapes that do not fit."""
        weight = _matrix(weight)
        require_finite(weight)
        _require_rows(scales, weight, "scales")
        return self.round_codes(weight, scales.unsqueeze(-1)).to(self.code_dtype)

    def dequantize(
        self,
        codes: Tensor,  # (..., R, C) integers
        scales: Tensor,  # (..., R) fp32
    ) -> Tensor:  # (..., R, C) fp32
        """The weights of `codes`: code * step of the row."""
        _require_rows(scales, codes, "scales")
        return scale_levels(codes, scales)

    def fake_quantize(
        self,
        weight: Tensor,  # (..., R, C) any float dtype, may require gradients
        scales: Tensor,  # (..., R) fp32
    ) -> Tensor:  # like weight
        """Forward: `dequantize(quantize(weight))`. Backward: identity (straight-through estimator).

        The function has no checks and no branches on data, so a training step that contains it can be compiled.
        Clipped weights receive gradients too; `scales` receive none.
        """
        steps = scales.detach().float().unsqueeze(-1)
        rounded = self.round_codes(weight.detach().float(), steps) * steps
        # The value of the bracket is zero, and its gradient is one.
        return rounded.to(weight.dtype) + (weight - weight.detach())

    @torch.no_grad()
    def search_clip(
        self,
        weight: Tensor,  # (R, C) any float dtype
        percentiles: Sequence[float] = PERCENTILES,
    ) -> Tensor:  # (R,) fp32
        """For each row, the percentile of |w| whose *stored* scale gives the least squared error.

        With `clip_sigmas` there is no search: the clip is that many population standard deviations of the row.
        Percentiles are interpolated linearly between order statistics, as in `torch.quantile`.

        Raises ConfigError for weights that are not finite, and for percentiles outside (0, 1].
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
        pieces = weight.split(max(1, _CHUNK_ELEMENTS // weight.shape[1]))
        return torch.cat([self._search_rows(rows, levels) for rows in pieces])

    def _search_rows(self, weight: Tensor, levels: list[float]) -> Tensor:
        num_columns = weight.shape[1]
        positions = [p * (num_columns - 1) for p in levels]  # ascending order statistics, fractional
        depth = num_columns - math.floor(min(positions))
        top = weight.abs().topk(depth, dim=1).values  # (rows, depth) descending: top[:, i] is rank C-1-i
        best_clip = top[:, 0]  # kept if every squared error overflows; `scales` then refuses the row
        best_error = torch.full_like(best_clip, math.inf)
        for position in positions:
            low = num_columns - 1 - math.floor(position)
            high = max(low - 1, 0)
            clip = torch.lerp(top[:, low], top[:, high], position - math.floor(position))
            steps = self.round_scales(clip).unsqueeze(1)
            error = (weight - self.round_codes(weight, steps) * steps).square_().sum(dim=1)
            better = error < best_error
            best_clip = torch.where(better, clip, best_clip)
            best_error = torch.where(better, error, best_error)
        return best_clip


def _matrix(weight: Tensor) -> Tensor:
    """`weight` as fp32. It must have at least two dimensions and one element per row."""
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
    """level * row scale * column scale. Every reader multiplies in this order, so all get the same weights."""
    weight = levels.float() * scales.float().unsqueeze(-1)
    return weight if column_scales is None else weight * column_scales.float().unsqueeze(-2)


def require_finite(weight: Tensor) -> None:
    """Raise ConfigError with the first index if `weight` contains NaN or infinity."""
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
