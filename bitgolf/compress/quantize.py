"""One tensor, or a whole model's, from float weights to codes and scales, with the error that it costs.

Scales come first (clip search), then codes: by GPTQ against the calibration Hessian, or round-to-nearest
("rtn"). Matrices of one shape go through GPTQ together where that is faster (GPUs). Stands between `pack`,
which decides the grid of each tensor, and the container, which takes `QuantizedTensor.stored(group)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitgolf.compress.gptq import gptq_batched, output_error
from bitgolf.compress.sizes import entropy_bits
from bitgolf.compress.stored import StoredTensor
from bitgolf.errors import ConfigError
from bitgolf.grid import PERCENTILES, Grid
from bitgolf.progress import Progress, silent

METHODS = ("gptq", "rtn")
_BATCH_BYTES = 2 << 30  # working memory of one batch of matrices on a GPU


@dataclass(frozen=True)
class QuantizeTask:
    """What to do with one tensor.

    Attributes:
        weight: (R, C) any float dtype, any device, contiguous or not.
        method: "gptq" (needs `hessian`) or "rtn" (uses it only to report the error).
        hessian: (C, C) sum or mean of x x^T over the inputs x of this matrix.
    """

    name: str
    weight: Tensor
    grid: Grid
    method: str = "gptq"
    hessian: Tensor | None = None


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes and scales of one tensor (on the CPU), and what the rounding cost.

    Attributes:
        codes: (R, C) int8, int16 on grids above 8 bits.
        scales: (R,) fp32, each an fp16 number.
        weight_error: |W - Q|^2 / |W|^2.
        hessian_error: tr(E H E^T) / tr(W H W^T), the same of the layer's output; None without a Hessian.
        rtn_hessian_error: the same if every weight had been rounded to nearest with these scales.
        code_bits: order-0 entropy of the codes, in bits a weight.
    """

    name: str
    codes: Tensor
    scales: Tensor
    grid: Grid
    method: str
    weight_error: float
    hessian_error: float | None
    rtn_hessian_error: float | None
    code_bits: float

    def dequantized(self) -> Tensor:
        """(R, C) fp32: the weights that the artifact will give back."""
        return self.grid.dequantize(self.codes, self.scales)

    def stored(self, group: str | None = None) -> StoredTensor:
        """The form that the container takes; `group` is the tensor's role."""
        return StoredTensor.quantized(self.codes, self.scales, self.grid.bits, group)


def quantize_tensor(
    name: str,
    weight: Tensor,  # (R, C) any float dtype
    grid: Grid,
    method: str = "gptq",
    hessian: Tensor | None = None,  # (C, C)
    percentiles: Sequence[float] = PERCENTILES,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    weigh_clip: bool = False,
    dtype: torch.dtype = torch.float32,
) -> QuantizedTensor:
    """Quantize one tensor on the device it is on; see `quantize_tensors`."""
    return quantize_tensors(
        [QuantizeTask(name, weight, grid, method, hessian)],
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
        damping, block_size, dtype: see `gptq_batched`.
        weigh_clip: weigh the clip search by the Hessian's diagonal where there is one.
        device: where to work; None = where each weight is.
        progress: called with weights done of weights in all.
    Raises:
        ConfigError: a task that cannot be done, with the tensor's name.
    """
    for task in tasks:
        if task.method not in METHODS:
            raise ConfigError(f"{task.name}: method {task.method!r} is not one of {', '.join(METHODS)}")
        if task.method == "gptq" and task.hessian is None:
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
    """Indices of tasks that can share one GPTQ call: same shape, grid and device, within the memory bound."""
    batches: list[list[int]] = []
    open_batch: dict[object, list[int]] = {}
    for i, task in enumerate(tasks):
        target = torch.device(device) if device is not None else task.weight.device
        rows, columns = task.weight.shape if task.weight.ndim == 2 else (1, 1)
        each = 4 * (3 * columns * columns + 6 * rows * columns)
        # On a CPU one matrix keeps the cores busy and the caches warm; batches gain nothing there.
        limit = max(1, _BATCH_BYTES // each) if target.type == "cuda" else 1
        key = (tuple(task.weight.shape), task.grid, task.method, task.hessian is None, target)
        batch = open_batch.get(key)
        if batch is None or len(batch) >= limit:
            batch = open_batch[key] = []
            batches.append(batch)
        batch.append(i)
    return batches


def _quantize_batch(
    tasks: list[QuantizeTask],
    percentiles: Sequence[float],
    damping: float,
    block_size: int,
    weigh_clip: bool,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> list[QuantizedTensor]:
    grid, method = tasks[0].grid, tasks[0].method
    weights, hessians, scales = [], [], []
    for task in tasks:
        try:
            weight = task.weight.detach().to(device=device or task.weight.device)
            hessian = None if task.hessian is None else task.hessian.to(device=weight.device, dtype=dtype)
            if weight.ndim == 2 and hessian is not None and hessian.shape != (weight.shape[1],) * 2:
                raise ConfigError(
                    f"the Hessian has shape {tuple(hessian.shape)}; a weight of shape "
                    f"{tuple(weight.shape)} needs ({weight.shape[1]}, {weight.shape[1]})"
                )
            importance = hessian.diagonal() if weigh_clip and hessian is not None else None
            scales.append(grid.scales(weight, grid.search_clip(weight, percentiles, importance)))
            weights.append(weight)
            hessians.append(hessian)
        except ConfigError as error:
            raise ConfigError(f"{task.name}: {error}") from error
    stacked_scales = torch.stack(scales)
    if method == "gptq":
        stacked_hessians = torch.stack([h for h in hessians if h is not None])
        codes = _gptq_or_blame(
            tasks, torch.stack(weights), stacked_hessians, grid, stacked_scales, damping, block_size, dtype
        )
    else:
        codes = grid.quantize(torch.stack(weights), stacked_scales)
    return [_measure(*parts) for parts in zip(tasks, weights, hessians, codes, scales, strict=True)]


def _gptq_or_blame(
    tasks: list[QuantizeTask],
    weights: Tensor,
    hessians: Tensor,
    grid: Grid,
    scales: Tensor,
    damping: float,
    block_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """GPTQ on a batch; when it fails, find out which matrix it was."""
    try:
        return gptq_batched(weights, hessians, grid, scales, damping, block_size, dtype)[0]
    except ConfigError as error:
        if len(tasks) == 1:
            raise ConfigError(f"{tasks[0].name}: {error}") from error
    return torch.cat(
        [
            _gptq_or_blame(
                [task], weights[i : i + 1], hessians[i : i + 1], grid, scales[i : i + 1], damping, block_size, dtype
            )
            for i, task in enumerate(tasks)
        ]
    )


def _measure(
    task: QuantizeTask, weight: Tensor, hessian: Tensor | None, codes: Tensor, scales: Tensor
) -> QuantizedTensor:
    wide = weight.float()
    error = wide - task.grid.dequantize(codes, scales)
    hessian_error = rtn_hessian_error = None
    if hessian is not None:
        signal = float(output_error(wide, hessian))
        hessian_error = _ratio(float(output_error(error, hessian)), signal)
        rtn_hessian_error = hessian_error
        if task.method != "rtn":
            nearest = task.grid.dequantize(task.grid.quantize(wide, scales), scales)
            rtn_hessian_error = _ratio(float(output_error(wide - nearest, hessian)), signal)
    codes = codes.cpu()
    return QuantizedTensor(
        name=task.name,
        codes=codes,
        scales=scales.cpu(),
        grid=task.grid,
        method=task.method,
        weight_error=_ratio(float(error.square().sum()), float(wide.square().sum())),
        hessian_error=hessian_error,
        rtn_hessian_error=rtn_hessian_error,
        code_bits=entropy_bits(codes.numpy()) / codes.numel(),
    )


def _ratio(error: float, signal: float) -> float:
    """Relative error; zero for an all-zero signal, which every grid represents exactly."""
    return error / signal if signal > 0 else 0.0
