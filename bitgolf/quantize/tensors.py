"""One tensor, or a whole model's, from float weights to codes and scales, with the error that it costs.

Scales come first: a clip search on a `Grid`, or the step and the column factors of unbounded `Steps`. Codes follow, by
GPTQ against the calibration Hessian or each weight for itself ("rtn"), to the nearest level or along a trellis.
Matrices of one shape go through together where that is faster. Stands between `pack`, which decides what each tensor
gets, and the container, which takes `QuantizedTensor.stored(group)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitgolf.artifact.stored import StoredTensor
from bitgolf.artifact.trellis import trellis_levels
from bitgolf.errors import ConfigError
from bitgolf.grids.grid import PERCENTILES, Grid, scale_levels
from bitgolf.measure.inverse_factor import InverseFactor
from bitgolf.quantize.column_steps import LARGEST_CODE, StepRounder, Steps, check_importance, wasted_bits
from bitgolf.quantize.gptq import GridRounder, factorize, output_error, round_with_feedback
from bitgolf.run.progress import Progress, silent

METHODS = ("gptq", "rtn")
_BATCH_BYTES = 2 << 30  # working memory of one batch of matrices on a GPU
_TRELLIS_BATCH_BYTES = 1 << 29  # the same on a CPU, where only a trellis gains from batches


@dataclass(frozen=True)
class QuantizeTask:
    """What to do with one tensor.

    Attributes:
        weight: (R, C) any float dtype, any device, contiguous or not.
        grid: what to round to: a bounded `Grid` for a general-purpose compressor, or unbounded `Steps` for an
            entropy coder.
        method: "gptq" (needs `hessian`) or "rtn" (uses it only to report the error and for column steps).
        hessian: (C, C) sum or mean of x x^T over the inputs x of this matrix, weighted by token or not.
        importance: (R,) >= 0, curvature of the loss in each output; weighs the reported Hessian error and the
            path along a trellis.
        factor: `hessian.inverse_factor` of `hessian`, when it was computed before; it must have been damped as asked.
    """

    name: str
    weight: Tensor
    grid: Grid | Steps
    method: str = "gptq"
    hessian: Tensor | None = None
    importance: Tensor | None = None
    factor: InverseFactor | None = None


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes and scales of one tensor (on the CPU), and what the rounding cost.

    Attributes:
        codes: (R, C) int8, or int16 on grids above 8 bits and with `Steps`.
        scales: (R,) fp32, each an fp16 number.
        grid: what was rounded to.
        weight_error: |W - Q|^2 / |W|^2.
        hessian_error: tr(E H E^T) / tr(W H W^T), the same of the layer's output (rows weighted by importance if it
            was given); None without a Hessian.
        rtn_hessian_error: the same if every weight had been rounded to nearest with these scales; None with `Steps`
            and GPTQ.
        code_bits: order-0 entropy of the codes, in bits a weight; with a trellis, given the quantizer in use. An
            entropy coder that models rows and columns spends less (see `code_length.gaussian_bits`).
        column_scales: (C,) fp32, each an fp16 number; None = all 1.
        uniform_waste_bits: bits a weight that one step for all columns wastes on this Hessian; None without GPTQ.
    """

    name: str
    codes: Tensor
    scales: Tensor
    grid: Grid | Steps
    method: str
    weight_error: float
    hessian_error: float | None
    rtn_hessian_error: float | None
    code_bits: float
    column_scales: Tensor | None = None
    uniform_waste_bits: float | None = None

    @property
    def trellis(self) -> int:
        """States of the trellis that the codes walk through; 0 = none."""
        return self.grid.trellis if isinstance(self.grid, Steps) else 0

    @property
    def bits(self) -> int:
        """Width that the container calls the codes: the grid's, or 16 for unbounded ones."""
        return self.grid.bits if isinstance(self.grid, Grid) else 16

    def levels(self) -> Tensor:
        """(R, C) int32: what the codes stand for, in units of row scale * column scale."""
        return trellis_levels(self.codes, self.trellis)

    def dequantized(self) -> Tensor:
        """(R, C) fp32: the weights that the artifact will give back."""
        return scale_levels(self.levels(), self.scales, self.column_scales)

    def stored(self, group: str | None = None) -> StoredTensor:
        """The form that the container takes; `group` is the tensor's role."""
        return StoredTensor.quantized(
            self.codes, self.scales, self.bits, group, column_scales=self.column_scales, trellis=self.trellis
        )


def quantize_tensor(
    name: str,
    weight: Tensor,  # (R, C) any float dtype
    grid: Grid | Steps,
    method: str = "gptq",
    hessian: Tensor | None = None,  # (C, C)
    percentiles: Sequence[float] = PERCENTILES,
    *,
    importance: Tensor | None = None,  # (R,)
    damping: float = 0.01,
    block_size: int = 128,
    weigh_clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> QuantizedTensor:
    """Quantize one tensor on the device it is on; see `quantize_tensors`."""
    return quantize_tensors(
        [QuantizeTask(name, weight, grid, method, hessian, importance)],
        percentiles,
        damping=damping,
        block_size=block_size,
        weigh_clip=weigh_clip,
        dtype=dtype,
    )[0]


@torch.no_grad()
def quantize_tensors(
    tasks: Sequence[QuantizeTask],
    percentiles: Sequence[float] = PERCENTILES,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    weigh_clip: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    progress: Progress = silent,
) -> list[QuantizedTensor]:
    """Quantize many tensors; the results are on the CPU, in the order of `tasks`.

    Args:
        percentiles: row clips to try (see `Grid.search_clip`).
        damping, block_size, dtype: see `gptq.gptq_batched`.
        weigh_clip: weigh the clip search by the Hessian's diagonal where there is one.
        device: where to work; None = where each weight is.
        progress: called with weights done of weights in all.
    Raises:
        ConfigError: a task that cannot be done, with the tensor's name.
    """
    for task in tasks:
        if task.method not in METHODS:
            raise ConfigError(f"{task.name}: method {task.method!r} is not one of {', '.join(METHODS)}")
        if task.method == "gptq" and task.hessian is None and task.factor is None:
            raise ConfigError(
                f"{task.name}: GPTQ needs a Hessian of this tensor and calibration has none; "
                "calibrate it, or use method rtn"
            )
    total = sum(task.weight.numel() for task in tasks)
    done = 0
    results: list[QuantizedTensor | None] = [None] * len(tasks)
    for batch in _batches(tasks, device):
        chosen = [tasks[i] for i in batch]
        done_batch = _quantize_batch(chosen, percentiles, damping, block_size, weigh_clip, dtype, device)
        for i, result in zip(batch, done_batch, strict=True):
            results[i] = result
        done += sum(task.weight.numel() for task in chosen)
        progress("quantize", done, total, chosen[-1].name)
    return [result for result in results if result is not None]


def _batches(tasks: Sequence[QuantizeTask], device: torch.device | str | None) -> list[list[int]]:
    """Indices of tasks that can be rounded in one go: same shape, grid and device, within the memory bound."""
    batches: list[list[int]] = []
    open_batch: dict[object, list[int]] = {}
    for i, task in enumerate(tasks):
        target = torch.device(device) if device is not None else task.weight.device
        rows, columns = task.weight.shape if task.weight.ndim == 2 else (1, 1)
        each = 4 * (3 * columns * columns + 6 * rows * columns)
        # On a CPU one matrix keeps the cores busy and the caches warm; only the steps of a trellis gain by company.
        memory = _BATCH_BYTES if target.type == "cuda" else 0
        if isinstance(task.grid, Steps) and task.grid.trellis:
            memory = max(memory, _TRELLIS_BATCH_BYTES)
        absent = task.hessian is None, task.importance is None
        key = (tuple(task.weight.shape), _kind(task.grid), task.method, absent, target)
        batch = open_batch.get(key)
        if batch is None or len(batch) >= max(1, memory // each):
            batch = open_batch[key] = []
            batches.append(batch)
        batch.append(i)
    return batches


def _kind(grid: Grid | Steps) -> object:
    """What the grids of one batch have in common: everything, but for base steps."""
    return grid if isinstance(grid, Grid) else replace(grid, step=1.0)


@dataclass(frozen=True)
class _Ready:
    """A task with all that rounding needs, on the device that does it."""

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
    weigh_clip: bool,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> list[QuantizedTensor]:
    ready = []
    for task in tasks:
        try:
            ready.append(_prepare(task, percentiles, damping, weigh_clip, dtype, device))
        except ConfigError as error:
            raise ConfigError(f"{task.name}: {error}") from error
    codes, levels, dequantized = _round(ready, block_size, dtype)
    return [_measure(*parts) for parts in zip(ready, codes, levels, dequantized, strict=True)]


def _prepare(
    task: QuantizeTask,
    percentiles: Sequence[float],
    damping: float,
    weigh_clip: bool,
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
        squares = hessian.diagonal() if weigh_clip and hessian is not None else None
        scales = task.grid.scales(weight, task.grid.search_clip(weight, percentiles, squares))
        factor = _factor(task, weight, hessian, damping, dtype) if task.method == "gptq" else None
        return _Ready(task, weight, hessian, factor, scales, None, importance)
    scales = task.grid.row_scales(weight)
    known = hessian is not None or task.factor is not None
    wanted = known and (task.method == "gptq" or task.grid.columns == "pivot")
    factor = _factor(task, weight, hessian, damping, dtype) if wanted else None
    column_scales = task.grid.column_scales(factor)
    reach = float(_in_steps(weight, scales, column_scales, torch.float32).abs().max())
    _require_codes(reach / task.grid.levels_a_step, task)
    return _Ready(task, weight, hessian, factor, scales, column_scales, importance)


def _factor(
    task: QuantizeTask, weight: Tensor, hessian: Tensor | None, damping: float, dtype: torch.dtype
) -> InverseFactor:
    if task.factor is None:
        assert hessian is not None, "quantize_tensors refuses GPTQ without a Hessian"
        return factorize(weight.unsqueeze(0), [hessian], damping, dtype)[0]
    known = task.factor
    return InverseFactor(
        known.upper.to(weight.device, dtype), known.order.to(weight.device), known.dead.to(weight.device)
    )


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
    """Codes of a batch, their levels and the fp32 weights that they stand for; (N, R, C) each."""
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
    known = [r.column_scales for r in ready if r.column_scales is not None]
    column_scales = torch.stack(known) if known else None
    given = [r.importance for r in ready if r.importance is not None]
    rounder = StepRounder(grid, scales, torch.stack(given) if given else None)
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
        # Cheap beside the search, and the one guard against a kernel that a new compiler breaks.
        side_by_side = codes.transpose(0, 1).flatten(1)  # (R, N * C)
        decoded = trellis_levels(side_by_side, grid.trellis).reshape(codes.shape[1], codes.shape[0], -1)
        assert torch.equal(decoded.transpose(0, 1), levels), "the trellis search and its decoder disagree"
    return codes.to(torch.int16), levels, scale_levels(levels, scales, column_scales)


def _measure(ready: _Ready, codes: Tensor, levels: Tensor, dequantized: Tensor) -> QuantizedTensor:
    task, hessian = ready.task, ready.hessian
    wide = ready.weight.float()
    error = wide - dequantized
    # Rows that matter g times as much count like rows sqrt(g) times as large.
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
        uniform_waste_bits=None if ready.factor is None else wasted_bits(ready.factor),
    )


def _code_bits(codes: Tensor, levels: Tensor, grid: Grid | Steps) -> float:
    """Order-0 entropy in bits a weight; given the quantizer where a trellis alternates between two.

    Counted where the codes are: on a GPU that is quicker than moving the levels.
    """
    symbols = codes.reshape(-1).long()
    symbols -= symbols.min()
    given = 1
    if isinstance(grid, Steps) and grid.trellis:
        given = 2
        symbols.mul_(2).add_(levels.reshape(-1) & 1)
    counts = torch.bincount(symbols)
    counts = torch.nn.functional.pad(counts, (0, -len(counts) % given)).reshape(-1, given).double()
    bits = torch.special.xlogy(counts.sum(dim=0), counts.sum(dim=0)).sum() - torch.special.xlogy(counts, counts).sum()
    return max(0.0, float(bits)) / (math.log(2) * codes.numel())


def _ratio(error: float, signal: float) -> float:
    """Relative error; zero for an all-zero signal, which every grid represents exactly."""
    return error / signal if signal > 0 else 0.0
