"""Method rate: steps chosen by measured curvature, so that the file fills the byte cap.

One pass gives every tensor its step for a theta (see `allocate`), rounds all tensors with GPTQ to unbounded steps,
along a trellis if asked for (see `tensors`), and encodes the file. Passes are repeated with other thetas (see
`find_theta`) until the file is at most SLACK bytes below the cap. If it comes close to that, single tensors are
rounded again a little finer or coarser. Encoding takes most of the time: several seconds per file.

Legend: R rows (outputs), C columns (inputs).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bitgolf.config import PackConfig
from bitgolf.errors import BudgetError, ConfigError
from bitgolf.grids.grid import require_finite
from bitgolf.grids.roles import grid_of
from bitgolf.measure.calibration import hessian_key
from bitgolf.measure.inverse_factor import InverseFactor
from bitgolf.measure.statistics import Statistics
from bitgolf.quantize.allocate import MeasuredTensor, curvatures, equal_slope_steps, predicted_increase
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.find_theta import ThetaSearch, find_theta
from bitgolf.quantize.forecast import Forecast, spread
from bitgolf.quantize.gptq import factorize
from bitgolf.quantize.packed import Encode, Packed
from bitgolf.quantize.tensors import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.run.clock import PartSeconds
from bitgolf.run.progress import Progress, silent

SLACK = 500  # bytes that may stay unused below the cap
_MAX_PASSES = 8  # quantizations of the whole model
_REACH = 2_000  # a file within cap / _REACH of the cap is corrected by single tensors
_MAX_CORRECTIONS = 8  # single tensors that are rounded again
_CORRECTION_BITS = 0.25  # per weight, that a correction may move a tensor from its best step
_LARGEST_CODE_AIMED_AT = 12_000  # GPTQ's feedback goes beyond; 32,767 is the largest that can be stored
_LEAST_WEIGHT = 1e-6  # stands for the largest weight of a tensor that is all zero
_KEPT_FILES = 4  # of the last passes


def measured_tensors(
    weights: dict[str, Tensor], statistics: Statistics, settings: PackConfig, device: torch.device
) -> dict[str, MeasuredTensor]:
    """The tensors that are quantized, each on the device and with its statistics."""
    tensors = {}
    for name, weight in weights.items():
        if grid_of(name, tuple(weight.shape), settings) is None:
            continue
        fisher = statistics.fisher.get(name)
        tensors[name] = MeasuredTensor(
            weight.to(device),
            statistics.hessians.get(hessian_key(name) or "") if fisher is None else fisher.inputs.to(device),
            None if fisher is None else fisher.rows.to(device),
            statistics.curvature.get(name),
        )
    return tensors


def fill_cap(
    tensors: dict[str, MeasuredTensor],
    encode: Encode,
    cap: int,
    settings: PackConfig,
    progress: Progress = silent,
    seconds: PartSeconds | None = None,  # gets the time of each part
) -> Packed:
    """Quantize all tensors so that `encode` of them is as large as `cap` bytes allow.

    Returns:
        The largest file within the cap, with its allocation: log2(theta), the passes, the predicted rise of the loss in
        nats per token, and for each tensor its curvature, the source of that, its step and its share of the rise.
    Raises:
        BudgetError: the file does not fit even with every quantized weight rounded to zero; says how large it is then.
        ConfigError: no curvature was measured, or a tensor cannot be quantized.
    """
    seconds = PartSeconds() if seconds is None else seconds
    with seconds.timed("factors of the Hessians, forecast"):
        model = _Model(tensors, encode, settings, progress, seconds)
    outcome = find_theta(
        lambda log2_theta: len(model.file(log2_theta).packed),
        cap,
        forecast=lambda log2_theta: model.forecast_bytes(model.steps(log2_theta)),
        slack=SLACK,
        reach=cap // _REACH,
        max_passes=_MAX_PASSES,
        lowest=model.finest,
        highest=model.coarsest,
    )
    if outcome is None:
        smallest = len(model.file(model.coarsest).packed)
        if smallest > cap:
            raise BudgetError(
                f"the artifact does not fit: with every quantized weight rounded to zero {smallest:,} bytes remain for "
                f"tokenizer, header and tensors kept in float, {smallest - cap:,} over the {cap:,} that are allowed; "
                f"raise the cap{', lower pack.small_tensor' if settings.small_tensor else ''}, or shrink the model"
            )
        outcome = ThetaSearch(model.coarsest, smallest, ((model.coarsest, smallest),))
    file = _fitting(model, _corrected(model, outcome.log2_theta, cap), outcome.log2_theta, cap)
    return replace(file.packed, allocation=_allocation(model, outcome, file.steps))


@dataclass(frozen=True)
class _File:
    """An encoded model, and the step of each of its tensors."""

    packed: Packed
    steps: dict[str, float]


@dataclass
class _Model:
    """One model that is quantized at several thetas. The factors of the Hessians are computed once.

    Attributes:
        curvature: of every tensor.
        finest, coarsest: log2(theta) at which the last tensor has its least step, and at which every weight is zero.
        files: the last files, by log2(theta).
    """

    tensors: dict[str, MeasuredTensor]
    encode: Encode
    settings: PackConfig
    progress: Progress
    seconds: PartSeconds
    factors: dict[int, InverseFactor] = field(default_factory=dict)  # by id of the Hessian: some tensors share one
    files: dict[float, _File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            try:
                require_finite(tensor.weight)
                self._factor(tensor)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        trellis = self.settings.rate.trellis
        self.curvature = curvatures(self.tensors, trellis)
        self.names = list(self.curvature)
        spreads, largest = [], {}
        for name, tensor in self.tensors.items():
            factor = self._factor(tensor)
            column_scales = self._levels(tensor, 1.0).column_scales(factor)
            spreads.append(spread(tensor.weight, column_scales, factor))
            scaled = tensor.weight if column_scales is None else tensor.weight / column_scales.to(tensor.weight)
            largest[name] = max(float(scaled.abs().max()), _LEAST_WEIGHT)
        self.least_steps = {name: size / _LARGEST_CODE_AIMED_AT for name, size in largest.items()}
        # theta = s^2 * a / n, see `allocate`. At a step of 8 times the largest weight all codes are 0.
        slope = {name: c.nats_per_squared_step / c.num_weights for name, c in self.curvature.items()}
        self.coarsest = max(2 * math.log2(8 * largest[name]) + math.log2(slope[name]) for name in slope)
        self.finest = min(2 * math.log2(self.least_steps[name]) + math.log2(slope[name]) for name in slope)
        self.forecast = Forecast(spreads, [c.num_weights for c in self.curvature.values()], trellis)

    def steps(self, log2_theta: float) -> dict[str, float]:
        """The steps at this theta, none below the least step of its tensor."""
        steps = equal_slope_steps(self.curvature, log2_theta)
        return {name: max(step, self.least_steps[name]) for name, step in steps.items()}

    def forecast_bytes(self, steps: dict[str, float]) -> float:
        """Bytes of all codes, expected."""
        return float(self.forecast.bits(np.array([steps[name] for name in self.names])).sum()) / 8

    def file(self, log2_theta: float) -> _File:
        """The file at this theta; the last few are remembered."""
        if log2_theta not in self.files:
            steps = self.steps(log2_theta)
            self.files = dict(list(self.files.items())[1 - _KEPT_FILES :])
            self.files[log2_theta] = _File(self._encoded("encoding of whole files", self._quantize(steps)), steps)
        return self.files[log2_theta]

    def changed(self, file: _File, name: str, step: float) -> _File:
        """`file` with one tensor rounded again."""
        tensors = file.packed.quantized | self._quantize({name: step})
        return _File(self._encoded("encoding of corrections", tensors), file.steps | {name: step})

    def _encoded(self, part: str, tensors: dict[str, QuantizedTensor]) -> Packed:
        with self.seconds.timed(part):
            return self.encode(tensors.values())

    def _quantize(self, steps: dict[str, float]) -> dict[str, QuantizedTensor]:
        tasks = []
        for name, step in steps.items():
            tensor = self.tensors[name]
            factor = self._factor(tensor)
            levels = self._levels(tensor, step)
            method: Literal["gptq", "rtn"] = "rtn" if factor is None else "gptq"
            tasks.append(QuantizeTask(name, tensor.weight, levels, method, tensor.hessian, tensor.importance, factor))
        quantized = quantize_tensors(
            tasks,
            damping=self.settings.gptq.damping,
            block_size=self.settings.gptq.block_size,
            progress=self.progress,
            seconds=self.seconds,
        )
        return {tensor.name: tensor for tensor in quantized}

    def _levels(self, tensor: MeasuredTensor, step: float) -> Steps:
        by_column = self.settings.rate.column_steps and tensor.hessian is not None
        return Steps(step, columns="pivot" if by_column else "one", trellis=self.settings.rate.trellis)

    def _factor(self, tensor: MeasuredTensor) -> InverseFactor | None:
        if tensor.hessian is None:
            return None
        key = id(tensor.hessian)
        if key not in self.factors:
            hessian = tensor.hessian.to(tensor.weight.device)
            self.factors[key] = factorize(tensor.weight, hessian, self.settings.gptq.damping, torch.float32)
        return self.factors[key]


def _corrected(model: _Model, log2_theta: float, cap: int) -> _File:
    """The file at this theta with single tensors rounded finer or coarser until it is within the slack of the cap.

    Returns the largest file that fits. If none fits, returns the one nearest to the cap.
    """
    file = model.file(log2_theta)
    fitting = [tried for tried in model.files.values() if len(tried.packed) <= cap]
    share = 1.0  # of the bytes to the target; halved after a correction that did not help
    for _ in range(_MAX_CORRECTIONS if model.finest < log2_theta < model.coarsest else 0):
        free = cap - len(file.packed)
        if 0 <= free <= SLACK:
            break
        tried = model.changed(file, *_correction(model, file.steps, 8 * share * (free - SLACK / 2)))
        if len(tried.packed) <= cap:
            fitting.append(tried)
        if abs(cap - SLACK / 2 - len(tried.packed)) < abs(free - SLACK / 2):
            file, share = tried, 1.0
        else:
            share /= 2
    return max(fitting, key=lambda tried: len(tried.packed)) if fitting else file


def _correction(
    model: _Model,
    steps: dict[str, float],
    bits: float,  # that the file should have more
) -> tuple[str, float]:
    """The smallest tensor whose step need not change much for that, and its new step."""
    sizes = {name: curvature.num_weights for name, curvature in model.curvature.items()}
    by_size = sorted(sizes, key=lambda name: sizes[name])
    name = next((name for name in by_size if abs(bits) / sizes[name] <= _CORRECTION_BITS), by_size[-1])
    which, step = model.names.index(name), steps[name]
    target = float(model.forecast.bits(np.array(step), which)) + bits
    finest, coarsest = step * 2 ** (-2 * _CORRECTION_BITS), step * 2 ** (2 * _CORRECTION_BITS)
    for _ in range(30):
        step = math.sqrt(finest * coarsest)
        if float(model.forecast.bits(np.array(step), which)) > target:
            finest = step
        else:
            coarsest = step
    return name, coarsest


def _fitting(model: _Model, file: _File, log2_theta: float, cap: int) -> _File:
    """`file`; if it is above the cap because sizes are irregular, the next coarser one that fits."""
    further = 0.01
    while len(file.packed) > cap and log2_theta < model.coarsest:
        log2_theta, further = min(log2_theta + further, model.coarsest), 2 * further
        file = model.file(log2_theta)
    return file


def _allocation(model: _Model, outcome: ThetaSearch, steps: dict[str, float]) -> dict[str, object]:
    """The entry `allocation` of pack.json."""
    return {
        "predicted_nats": predicted_increase(model.curvature, steps),
        "log2_theta": outcome.log2_theta,
        "passes": [{"log2_theta": theta, "model_bytes": size} for theta, size in outcome.passes],
        "tensors": {
            name: {
                "curvature": curvature.nats_per_squared_step,
                "curvature_from": curvature.source,
                "step": steps[name],
                "predicted_nats": curvature.nats_per_squared_step * steps[name] ** 2,
            }
            for name, curvature in model.curvature.items()
        },
    }
