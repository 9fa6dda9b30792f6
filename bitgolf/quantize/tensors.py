"""Quantizes tensors: float weights become codes and scales, and the error of that is measured.

Scales come first. A bounded `Grid` searches its clips; unbounded `Steps` have their step and the column factors. Codes
follow: by GPTQ with a calibration Hessian ("gptq") or each weight for itself ("rtn"), to the nearest level or along a
trellis. Matrices of one shape are rounded together where that is faster. `pack` says what each tensor gets, and the
artifact stores `QuantizedTensor.stored()`.

Legend: R rows (outputs), C columns (inputs), N matrices of one batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bitgolf.artifact.stored import StoredTensor
from bitgolf.artifact.trellis import trellis_levels
from bitgolf.errors import ConfigError
from bitgolf.grids.grid import PERCENTILES, Grid, scale_levels
from bitgolf.measure.inverse_factor import InverseFactor
from bitgolf.quantize.column_steps import LARGEST_CODE, StepRounder, Steps, check_importance
from bitgolf.quantize.gptq import GridRounder, factorize, output_error, round_with_feedback
from bitgolf.run.clock import PartSeconds
from bitgolf.run.progress import Progress, silent

_BATCH_BYTES = 2 << 30  # working memory of one batch of matrices on a GPU
_TRELLIS_BATCH_BYTES = 1 << 29  # the same on a CPU, for matrices that are rounded along a trellis


@dataclass(frozen=True)
class QuantizeTask:
    """One tensor and how to quantize it."""

    name: str
    weight: Tensor  # (R, C) any float dtype, any device, contiguous or not
    # what to round to: a bounded `Grid` for a general-purpose compressor, or unbounded `Steps` for an entropy coder.
    grid: Grid | Steps
    # "gptq" needs `hessian`. "rtn" uses it only for column steps and to report the error.
    method: Literal["gptq", "rtn"] = "gptq"
    hessian: Tensor | None = None  # (C, C) sum or mean of x x^T over the inputs x of this matrix
    # (R,) >= 0, curvature of the loss in each output. It weighs the reported Hessian error and the path along a
    # trellis.
    importance: Tensor | None = None
    # `inverse_factor` of `hessian` with the same damping, if it was computed before.
    factor: InverseFactor | None = None


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes and scales of one tensor, on the CPU, and the error of rounding."""

    name: str
    codes: Tensor  # (R, C) int8, or int16 on grids above 8 bits and with `Steps`
    scales: Tensor  # (R,) fp32, each an fp16 number
    grid: Grid | Steps  # what was rounded to
    method: str
    weight_error: float  # |W - Q|^2 / |W|^2
    # tr(E H E^T) / tr(W H W^T), the relative error of the layer's output; rows count in proportion to their importance.
    # None without a Hessian.
    hessian_error: float | None
    # the same if every weight had been rounded to nearest with these scales; None with `Steps` and GPTQ.
    rtn_hessian_error: float | None
    # order-0 entropy of the codes, in bits per weight; with a trellis, given the quantizer in use. An entropy coder
    # that models rows and columns spends less.
    code_bits: float
    column_scales: Tensor | None = None  # (C,) fp32, each an fp16 number; None = all 1

    @property
    def trellis(self) -> int:
        """States of the trellis that the codes are a path of; 0 = none."""
        return self.grid.trellis if isinstance(self.grid, Steps) else 0

    @property
    def bits(self) -> int:
        """Bits per code in the artifact: those of the grid, or 16 for unbounded codes."""
        return self.grid.bits if isinstance(self.grid, Grid) else 16

    def levels(self) -> Tensor:
        """(R, C) int32 levels of the codes, in units of row scale * column scale."""
        return trellis_levels(self.codes, self.trellis)

    def dequantized(self) -> Tensor:
        """(R, C) fp32 weights, as the artifact gives them back."""
        return scale_levels(self.levels(), self.scales, self.column_scales)

    def stored(self) -> StoredTensor:
        """The tensor as the artifact keeps it."""
        return StoredTensor.quantized(
            self.codes, self.scales, self.bits, column_scales=self.column_scales, trellis=self.trellis
        )


@torch.no_grad()
def quantize_tensors(
    tasks: Sequence[QuantizeTask],
    percentiles: Sequence[float] = PERCENTILES,  # row clips to try (see `Grid.search_clip`)
    *,
    # damping, dtype: see `gptq.factorize`.
    damping: float = 0.01,
    block_size: int = 128,  # see `gptq.round_with_feedback`
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,  # where to work; None = on the device of each weight
    progress: Progress = silent,  # called with the number of weights done and of all weights
    seconds: PartSeconds | None = None,  # gets the time of each shape
) -> list[QuantizedTensor]:
    """Quantize many tensors; the results are on the CPU, in the order of `tasks`.

    Raises:
        ConfigError: a tensor cannot be quantized as its task asks; names the tensor.
    """
    for task in tasks:
        if task.method == "gptq" and task.hessian is None and task.factor is None:
            raise ConfigError(
                f"{task.name}: GPTQ needs a Hessian of this tensor and calibration has none; "
                "calibrate it, or use method rtn"
            )
    seconds = PartSeconds() if seconds is None else seconds
    total = sum(task.weight.numel() for task in tasks)
    done = 0
    results: list[QuantizedTensor | None] = [None] * len(tasks)
    for batch in _batches(tasks, device):
        chosen = [tasks[i] for i in batch]
        with seconds.timed("rounding " + " x ".join(map(str, chosen[0].weight.shape))):
            quantized = _quantize_batch(chosen, percentiles, damping, block_size, dtype, device)
        for i, result in zip(batch, quantized, strict=True):
            results[i] = result
        done += sum(task.weight.numel() for task in chosen)
        progress("quantize", done, total, chosen[-1].name)
    return [result for result in results if result is not None]


def _batches(tasks: Sequence[QuantizeTask], device: torch.device | str | None) -> list[list[int]]:
    """Indices of tasks that can be rounded together: same shape, grid and device, within the memory bound."""
    batches: list[list[int]] = []
    open_batch: dict[object, list[int]] = {}
    for i, task in enumerate(tasks):
        target = torch.device(device) if device is not None else task.weight.device
        rows, columns = task.weight.shape if task.weight.ndim == 2 else (1, 1)
        each = 4 * (3 * columns * columns + 6 * rows * columns)
        # On a CPU one matrix keeps the cores busy. Only the search along a trellis is faster with several.
        memory = _BATCH_BYTES if target.type == "cuda" else 0
        if isinstance(task.grid, Steps) and task.grid.trellis:
            memory = max(memory, _TRELLIS_BATCH_BYTES)
        statistics = task.hessian is None, task.importance is None
        key = (tuple(task.weight.shape), _without_step(task.grid), task.method, statistics, target)
        batch = open_batch.get(key)
        if batch is None or len(batch) >= max(1, memory // each):
            batch = open_batch[key] = []
            batches.append(batch)
        batch.append(i)
    return batches


def _without_step(grid: Grid | Steps) -> object:
    """The grid with its base step left out, which may differ within a batch."""
    return grid if isinstance(grid, Grid) else replace(grid, step=1.0)


@dataclass(frozen=True)
class _Ready:
    """A task with its scales and its factor, on the device where it is rounded."""

    task: QuantizeTask
    weight: Tensor  # (R, C)
    hessian: Tensor | None  # (C, C)
    factor: InverseFactor | None
    scales: Tensor  # (R,)
    column_scales: Tensor | None  # (C,)
    importance: Tensor | None  # (R,)


def _quantize_batch(
    tasks: list[QuantizeTask],
    percentiles: Sequence[float],
    damping: float,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> list[QuantizedTensor]:
    ready = []
    for task in tasks:
        try:
            ready.append(_prepare(task, percentiles, damping, dtype, device))
        except ConfigError as error:
            raise ConfigError(f"{task.name}: {error}") from error
    codes, levels, dequantized = _round(ready, block_size, dtype)
    return [_measure(*parts) for parts in zip(ready, codes, levels, dequantized, strict=True)]


def _prepare(
    task: QuantizeTask,
    percentiles: Sequence[float],
    damping: float,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> _Ready:
    """Check one task and choose its scales. Raises ConfigError."""
    weight = task.weight.detach().to(device=device or task.weight.device)
    hessian = None if task.hessian is None else task.hessian.to(device=weight.device, dtype=dtype)
    if weight.ndim == 2 and hessian is not None and hessian.shape != (weight.shape[1],) * 2:
        raise ConfigError(
            f"the Hessian has shape {tuple(hessian.shape)}; a weight of shape "
            f"{tuple(weight.shape)} needs ({weight.shape[1]}, {weight.shape[1]})"
        )
    importance = None
    if task.importance is not None and weight.ndim == 2:
        importance = check_importance(task.importance, weight)
    if isinstance(task.grid, Grid):
        scales = task.grid.scales(weight, task.grid.search_clip(weight, percentiles))
        factor = _factor(task, weight, hessian, damping, dtype) if task.method == "gptq" else None
        return _Ready(task, weight, hessian, factor, scales, None, importance)
    scales = task.grid.row_scales(weight)
    has_statistics = hessian is not None or task.factor is not None
    needs_factor = task.method == "gptq" or task.grid.columns == "pivot"
    factor = _factor(task, weight, hessian, damping, dtype) if has_statistics and needs_factor else None
    column_scales = task.grid.column_scales(factor)
    largest = float(_in_steps(weight, scales, column_scales, torch.float32).abs().max())
    _require_codes(largest / task.grid.levels_per_step, task)
    return _Ready(task, weight, hessian, factor, scales, column_scales, importance)


def _factor(
    task: QuantizeTask, weight: Tensor, hessian: Tensor | None, damping: float, dtype: torch.dtype
) -> InverseFactor:
    if task.factor is None:
        assert hessian is not None, "quantize_tensors refuses GPTQ without a Hessian"
        return factorize(weight, hessian, damping, dtype)
    upper, order, dead = task.factor.upper, task.factor.order, task.factor.dead
    return InverseFactor(upper.to(weight.device, dtype), order.to(weight.device), dead.to(weight.device))


def _in_steps(weight: Tensor, scales: Tensor, column_scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights (..., R, C) in units of their stored steps."""
    x = weight.to(dtype) / scales.to(dtype).unsqueeze(-1)
    return x if column_scales is None else x / column_scales.to(dtype).unsqueeze(-2)


def _require_codes(largest: float, task: QuantizeTask) -> None:
    if not largest <= LARGEST_CODE:
        assert isinstance(task.grid, Steps), "grids are bounded"
        least = task.grid.step * largest / LARGEST_CODE
        raise ConfigError(
            f"a step of {task.grid.step:.6g} is too small: codes would reach {largest:.6g} and at most {LARGEST_CODE} "
            f"is stored; take a step of {least:.6g} or more, or keep the tensor in fp32"
        )


def _round(ready: list[_Ready], block_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of a batch, their levels and their fp32 weights; (N, R, C) each."""
    grid, method = ready[0].task.grid, ready[0].task.method
    weights = torch.stack([r.weight for r in ready])
    scales = torch.stack([r.scales for r in ready])
    factors = [r.factor for r in ready if r.factor is not None]
    if isinstance(grid, Grid):
        if method == "gptq":
            levels = round_with_feedback(weights, factors, scales, None, GridRounder(grid), block_size)
            codes = levels.to(grid.code_dtype)
        else:
            codes = grid.quantize(weights, scales)
        return codes, codes, grid.dequantize(codes, scales)
    column_scales = _stack([r.column_scales for r in ready])
    rounder = StepRounder(grid, scales, _stack([r.importance for r in ready]))
    if method == "gptq":
        levels = round_with_feedback(weights, factors, scales, column_scales, rounder, block_size)
    else:
        levels = rounder.without_feedback(_in_steps(weights, scales, column_scales, dtype)).to(torch.int32)
    codes = levels >> 1 if grid.trellis else levels
    for r, largest in zip(ready, codes.abs().amax(dim=(1, 2)).tolist(), strict=True):
        try:
            _require_codes(largest, r.task)
        except ConfigError as error:
            raise ConfigError(f"{r.task.name}: {error}") from error
    if grid.trellis:
        _require_decodable(codes, levels, grid.trellis)
    return codes.to(torch.int16), levels, scale_levels(levels, scales, column_scales)


def _stack(tensors: list[Tensor | None]) -> Tensor | None:
    """The tensors of a batch along a new first dimension; None if they are None, which holds for all or for none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def _require_decodable(
    codes: Tensor,  # (N, R, C)
    levels: Tensor,  # (N, R, C)
    trellis: int,
) -> None:
    """Compare the levels of the search with those of the decoder. A compiler that breaks the kernel fails here.

    This takes little time beside the search.
    """
    num_matrices, num_rows, _ = codes.shape
    side_by_side = codes.transpose(0, 1).flatten(1)  # (R, N * C)
    decoded = trellis_levels(side_by_side, trellis).reshape(num_rows, num_matrices, -1)
    assert torch.equal(decoded.transpose(0, 1), levels), "the trellis search and its decoder disagree"


def _measure(ready: _Ready, codes: Tensor, levels: Tensor, dequantized: Tensor) -> QuantizedTensor:
    task, hessian = ready.task, ready.hessian
    wide = ready.weight.float()
    error = wide - dequantized
    # A row of importance g counts like a row sqrt(g) times as large.
    share = 1.0 if ready.importance is None else ready.importance.sqrt().unsqueeze(1)
    hessian_error = rtn_hessian_error = None
    if hessian is not None:
        signal = float(output_error(wide * share, hessian))
        hessian_error = _ratio(float(output_error(error * share, hessian)), signal)
        if task.method == "rtn":
            rtn_hessian_error = hessian_error
        elif isinstance(task.grid, Grid):
            nearest = task.grid.dequantize(task.grid.quantize(wide, ready.scales), ready.scales)
            rtn_hessian_error = _ratio(float(output_error((wide - nearest) * share, hessian)), signal)
    return QuantizedTensor(
        name=task.name,
        codes=codes.cpu(),
        scales=ready.scales.cpu(),
        grid=task.grid,
        method=task.method,
        weight_error=_ratio(float(error.square().sum()), float(wide.square().sum())),
        hessian_error=hessian_error,
        rtn_hessian_error=rtn_hessian_error,
        code_bits=_code_bits(codes, levels, task.grid),
        column_scales=None if ready.column_scales is None else ready.column_scales.cpu(),
    )


def _code_bits(codes: Tensor, levels: Tensor, grid: Grid | Steps) -> float:
    """Order-0 entropy in bits per weight; with a trellis, given which of its two quantizers is in use.

    The codes are counted on their device: on a GPU that is faster than moving the levels.
    """
    symbols = codes.reshape(-1).long()
    symbols -= symbols.min()
    num_quantizers = 1
    if isinstance(grid, Steps) and grid.trellis:
        num_quantizers = 2
        symbols.mul_(2).add_(levels.reshape(-1) & 1)
    counts = torch.bincount(symbols)
    counts = torch.nn.functional.pad(counts, (0, -len(counts) % num_quantizers)).reshape(-1, num_quantizers).double()
    bits = torch.special.xlogy(counts.sum(dim=0), counts.sum(dim=0)).sum() - torch.special.xlogy(counts, counts).sum()
    return max(0.0, float(bits)) / (math.log(2) * codes.numel())


def _ratio(error: float, signal: float) -> float:
    """Relative error; zero for an all-zero signal, which every grid represents exactly."""
    return error / signal if signal > 0 else 0.0
