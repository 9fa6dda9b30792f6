"""Packing to the byte: steps by measured curvature, real quantizations until the file fills the cap, a last trim.

Takes what `train` left (weights, Hessians, curvature, Fisher statistics) and a function that encodes; decides the
step of every tensor (`allocate`), rounds with GPTQ to unbounded steps, along a trellis if asked for (`quantize`), and
repeats with another theta until the file is at most `SLACK` bytes below the cap. No text is read. What takes the time
is encoding, several seconds a file; a forecast of the bits (`forecast`) makes do with two to four files.

Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact.trellis import MEAN_SQUARED_ERROR
from bitgolf.errors import BudgetError, ConfigError
from bitgolf.grids.grid import require_finite
from bitgolf.measure.inverse_factor import InverseFactor
from bitgolf.quantize.allocate import Landing, Rated, equal_slope_steps, land, predicted_increase
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.forecast import Forecast, spread
from bitgolf.quantize.gptq import factorize
from bitgolf.quantize.tensors import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.run.progress import Progress, silent

SLACK = 500  # bytes that may stay unused below the cap
_PASSES = 8  # quantizations of the whole model at most
_REACH = 2_000  # a file within this share of the cap is brought there by single tensors
_TRIMS = 8  # single tensors rounded again at most
_TRIM_BITS = 0.25  # a weight that the last correction may move a tensor off its best step
_CODE_REACH = 12_000  # largest code aimed at; GPTQ's feedback goes beyond, 32,767 is what can be stored


@dataclass(frozen=True)
class Priced:
    """A tensor that shares in the bytes.

    Attributes:
        weight: (R, C) float.
        hessian: (C, C) moments that GPTQ feeds back with; None for tables, which multiply no activations.
        importance: (R,) curvature of the loss in each output, or None.
        increase_nats, error_nats, step: what `train` measured (see `train.curvature`); None when it did not.
    """

    weight: Tensor
    hessian: Tensor | None
    importance: Tensor | None
    increase_nats: float | None
    error_nats: float
    step: float


@dataclass(frozen=True)
class Settings:
    """How tensors are rounded.

    Attributes:
        trellis: states of the trellis, 0 = none.
        column_steps: steps by column; tables always have one step.
        damping, block_size: of GPTQ.
        device: where it runs.
    """

    trellis: int
    column_steps: bool
    damping: float
    block_size: int
    device: torch.device


@dataclass(frozen=True)
class Filled:
    """The outcome: the largest file found within the cap.

    Attributes:
        tensors: quantized, by name.
        data: the encoded artifact.
        landing: the passes over the whole model.
        choices: by tensor name: curvature, where it came from, step, predicted increase in nats.
        predicted_nats: loss increase a token if the tensors' increases add up.
    """

    tensors: dict[str, QuantizedTensor]
    data: bytes
    landing: Landing
    choices: dict[str, dict[str, Any]]
    predicted_nats: float


Encode = Callable[[dict[str, QuantizedTensor]], bytes]


def prices(tensors: dict[str, Priced], settings: Settings) -> tuple[dict[str, Rated], dict[str, str]]:
    """Curvature of every tensor under the rounding of `settings`, and where it came from.

    A rise that is lost in its own noise is priced at two standard errors; a tensor that was not measured at the
    median of the others, a weight and squared weight.

    Raises ConfigError when nothing was measured.
    """
    scale = 12 * MEAN_SQUARED_ERROR[settings.trellis]  # measured with uniform noise, whose error is step^2 / 12
    rated, sources = {}, {}
    for name, tensor in tensors.items():
        if tensor.increase_nats is None or tensor.step == 0:
            continue
        clear = tensor.increase_nats > 2 * tensor.error_nats
        rise = tensor.increase_nats if clear else max(2 * tensor.error_nats, 1e-12)
        rated[name] = Rated(tensor.weight.numel(), scale * rise / tensor.step**2)
        sources[name] = "measured" if clear else "two standard errors"
    if not rated:
        raise ConfigError(
            "no tensor's curvature was measured, so the bytes cannot be divided; set train.measure.curvature_tokens "
            "and train "
            "again, or pack with pack.method 'gptq'"
        )
    typical = sorted(
        price.nats_per_squared_step * _mean_square(tensors[name].weight) / price.num_weights
        for name, price in rated.items()
    )[len(rated) // 2]
    for name, tensor in tensors.items():
        if name not in rated:
            size = tensor.weight.numel()
            rated[name] = Rated(size, typical * size / max(_mean_square(tensor.weight), 1e-12))
            sources[name] = "median of the others"
    return {name: rated[name] for name in tensors}, sources


def fill(
    tensors: dict[str, Priced], encode: Encode, cap: int, settings: Settings, progress: Progress = silent
) -> Filled:
    """Quantize all tensors so that `encode` of them is as large as `cap` bytes allow.

    Raises:
        BudgetError: even rounded to nothing the file does not fit; says how many bytes it has then.
        ConfigError: no curvature, or a tensor that cannot be quantized.
    """
    search = _Search(tensors, encode, settings, progress)
    landing = search.land(cap)
    if landing is None:
        smallest = search.round_all(search.coarsest)
        if len(smallest) > cap:
            raise BudgetError(
                f"the artifact does not fit: with every quantized weight rounded to zero {len(smallest):,} bytes "
                f"remain for tokenizer, header and tensors kept in float, {len(smallest) - cap:,} over the {cap:,} "
                "that are allowed; raise the cap, lower pack.small_tensor, or shrink the model"
            )
        landing = Landing(search.coarsest, len(smallest), ((search.coarsest, len(smallest)),))
    return search.trim(landing, cap)


@dataclass(frozen=True)
class _File:
    """Tensors as they were quantized, the file that they make, and the step of each."""

    tensors: dict[str, QuantizedTensor]
    data: bytes
    steps: dict[str, float]


@dataclass
class _Search:
    """Quantizations of one model at several thetas; factors are computed once."""

    tensors: dict[str, Priced]
    encode: Encode
    settings: Settings
    progress: Progress
    factors: dict[int, InverseFactor] = field(default_factory=dict)  # by id of the Hessian: some tensors share one
    made: dict[float, _File] = field(default_factory=dict)  # by log2_theta

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            try:
                require_finite(tensor.weight)
                self._factor(tensor)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        self.rated, self.sources = prices(self.tensors, self.settings)
        self.names = list(self.rated)
        spreads, reach = [], {}
        for name, tensor in self.tensors.items():
            factor = self._factor(tensor)
            column_scales = self._steps(tensor, 1.0).column_scales(factor)
            spreads.append(spread(tensor.weight, column_scales, factor))
            in_steps = tensor.weight if column_scales is None else tensor.weight / column_scales.to(tensor.weight)
            reach[name] = max(float(in_steps.abs().max()), 1e-6)
        slope = {name: price.nats_per_squared_step / price.num_weights for name, price in self.rated.items()}
        self.least = {name: reach[name] / _CODE_REACH for name in reach}  # steps below which codes run out
        # The thetas at which every weight is zero, and at which the last tensor has its least step.
        self.coarsest = max(2 * math.log2(8 * reach[name]) + math.log2(slope[name]) for name in slope)
        self.finest = min(2 * math.log2(self.least[name]) + math.log2(slope[name]) for name in slope)
        sizes = [price.num_weights for price in self.rated.values()]
        self.forecast = Forecast(spreads, sizes, self.settings.trellis)

    def land(self, cap: int) -> Landing | None:
        """See `allocate.land`."""
        return land(
            lambda log2_theta: len(self.round_all(log2_theta)),
            cap,
            forecast=lambda log2_theta: self._forecast(self._steps_at(log2_theta)),
            slack=SLACK,
            reach=cap // _REACH,
            max_passes=_PASSES,
            lowest=self.finest,
            highest=self.coarsest,
        )

    def _steps_at(self, log2_theta: float) -> dict[str, float]:
        """Of equal slope, but none below its least."""
        steps = equal_slope_steps(self.rated, log2_theta)
        return {name: max(step, self.least[name]) for name, step in steps.items()}

    def _forecast(self, steps: dict[str, float]) -> float:
        """Bytes of all codes."""
        return float(self.forecast.bits(np.array([steps[name] for name in self.names])).sum()) / 8

    def round_all(self, log2_theta: float) -> bytes:
        """The file at this theta."""
        if log2_theta not in self.made:
            steps = self._steps_at(log2_theta)
            tensors = self._quantize(steps)
            self.made = dict(list(self.made.items())[-3:])  # earlier passes are not needed any more
            self.made[log2_theta] = _File(tensors, self.encode(tensors), steps)
        return self.made[log2_theta].data

    def trim(self, landing: Landing, cap: int) -> Filled:
        """Round single tensors a little finer or coarser until the file is within the slack of the cap."""
        self.round_all(landing.log2_theta)
        file = self.made[landing.log2_theta]
        fitting = [made for made in self.made.values() if len(made.data) <= cap]
        share = 1.0
        for _ in range(_TRIMS if self.finest < landing.log2_theta < self.coarsest else 0):
            free = cap - len(file.data)
            if 0 <= free <= SLACK:
                break
            name, step = self._corrected(file.steps, 8 * share * (free - SLACK / 2))
            tensors = file.tensors | self._quantize({name: step})
            tried = _File(tensors, self.encode(tensors), file.steps | {name: step})
            if len(tried.data) <= cap:
                fitting.append(tried)
            if abs(cap - SLACK / 2 - len(tried.data)) < abs(free - SLACK / 2):
                file, share = tried, 1.0
            else:
                share /= 2
        if fitting:
            file = max(fitting, key=lambda made: len(made.data))
        log2_theta, further = landing.log2_theta, 0.01
        while len(file.data) > cap and log2_theta < self.coarsest:  # so rough that nothing near the cap fits
            log2_theta, further = min(log2_theta + further, self.coarsest), 2 * further
            self.round_all(log2_theta)
            file = self.made[log2_theta]
        tensors, data, steps = file.tensors, file.data, file.steps
        choices = {
            name: {
                "curvature": price.nats_per_squared_step,
                "curvature_from": self.sources[name],
                "step": steps[name],
                "predicted_nats": price.nats_per_squared_step * steps[name] ** 2,
            }
            for name, price in self.rated.items()
        }
        return Filled(tensors, data, landing, choices, predicted_increase(self.rated, steps))

    def _corrected(
        self,
        steps: dict[str, float],
        bits: float,  # that the file should have more
    ) -> tuple[str, float]:
        """The smallest tensor that need not leave its best step far for that, and its new step."""
        by_size = sorted(self.rated, key=lambda name: self.rated[name].num_weights)
        large = [name for name in by_size if abs(bits) / self.rated[name].num_weights <= _TRIM_BITS]
        name = large[0] if large else by_size[-1]
        which, step = self.names.index(name), steps[name]
        wanted = float(self.forecast.bits(np.array(step), which)) + bits
        finest, coarsest = step * 2 ** (-2 * _TRIM_BITS), step * 2 ** (2 * _TRIM_BITS)
        for _ in range(30):
            step = math.sqrt(finest * coarsest)
            if float(self.forecast.bits(np.array(step), which)) > wanted:
                finest = step
            else:
                coarsest = step
        return name, coarsest

    def _quantize(self, steps: dict[str, float]) -> dict[str, QuantizedTensor]:
        settings = self.settings
        tasks = []
        for name, step in steps.items():
            tensor = self.tensors[name]
            factor = self._factor(tensor)
            method = "rtn" if factor is None else "gptq"
            levels = self._steps(tensor, step)
            tasks.append(QuantizeTask(name, tensor.weight, levels, method, tensor.hessian, tensor.importance, factor))
        done = quantize_tensors(
            tasks, damping=settings.damping, block_size=settings.block_size, device=settings.device,
            progress=self.progress,
        )  # fmt: skip
        return {tensor.name: tensor for tensor in done}

    def _steps(self, tensor: Priced, step: float) -> Steps:
        pivots = self.settings.column_steps and tensor.hessian is not None
        return Steps(step, columns="pivot" if pivots else "one", trellis=self.settings.trellis)

    def _factor(self, tensor: Priced) -> InverseFactor | None:
        if tensor.hessian is None:
            return None
        key = id(tensor.hessian)
        if key not in self.factors:
            weight, hessian = tensor.weight.unsqueeze(0), tensor.hessian.to(tensor.weight.device)
            self.factors[key] = factorize(weight, [hessian], self.settings.damping, torch.float32)[0]
        return self.factors[key]


def _mean_square(weight: Tensor) -> float:
    return float(weight.double().square().mean())
