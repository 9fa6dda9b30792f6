"""Packing to the byte: steps by measured curvature, real quantizations until the file fills the cap, a last trim.

Takes what `train` left (weights, Hessians, curvature, Fisher statistics) and a function that encodes; decides the
step of every tensor (`allocate`), rounds with GPTQ to unbounded steps, along a trellis if asked for (`quantize`), and
repeats with another theta until the file is at most `SLACK` bytes below the cap. No text is read.

Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bitgolf.compress.allocate import Landing, Rated, equal_slope_steps, land, predicted_increase
from bitgolf.compress.gptq import factorize
from bitgolf.compress.quantize import QuantizedTensor, QuantizeTask, quantize_tensors
from bitgolf.compress.steps import Steps
from bitgolf.compress.trellis import MEAN_SQUARED_ERROR
from bitgolf.errors import BudgetError, ConfigError
from bitgolf.hessian import InverseFactor
from bitgolf.progress import Progress, silent

SLACK = 500  # bytes that may stay unused below the cap
_PASSES = 8  # quantizations of the whole model at most
_TRIMS = 8  # single tensors rounded again at most
_TRIM_BITS = 0.25  # by which the last correction may move a tensor off its best step
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
        column_steps: steps by column (pivots of the factor); tables always have one step.
        rate: weight of the bits in rounding, see `Steps`.
        damping, block_size: of GPTQ.
        device: where it runs.
    """

    trellis: int
    column_steps: bool
    rate: float
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
            "no tensor's curvature was measured, so the bytes cannot be divided; set train.curvature_tokens and train "
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
    start = search.guess(cap)
    if settings.trellis:
        # A trellis takes many times as long and as many bits at the same steps: look for them without it.
        plain = _Search(tensors, encode, replace(settings, trellis=0), progress, search.factors)
        rough = plain.land(cap, plain.guess(cap), slack=max(SLACK, cap // 500))
        start = math.inf  # where nothing fitted, nothing will
        if rough is not None:
            start = rough.log2_theta + math.log2(12 * MEAN_SQUARED_ERROR[settings.trellis])
    landing = search.land(cap, start, slack=SLACK) if start < math.inf else None
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


@dataclass
class _Search:
    """Quantizations of one model at several thetas; factors are computed once."""

    tensors: dict[str, Priced]
    encode: Encode
    settings: Settings
    progress: Progress
    factors: dict[int, InverseFactor] = field(default_factory=dict)  # by id of the Hessian: some tensors share one
    made: dict[float, tuple[dict[str, QuantizedTensor], bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rated, self.sources = prices(self.tensors, self.settings)
        self.num_weights = sum(price.num_weights for price in self.rated.values())
        reach = {name: max(float(tensor.weight.abs().max()), 1e-6) for name, tensor in self.tensors.items()}
        slope = {name: price.nats_per_squared_step / price.num_weights for name, price in self.rated.items()}
        # The thetas at which every weight is zero, and at which the first tensor runs out of codes.
        self.coarsest = max(2 * math.log2(8 * reach[name]) + math.log2(slope[name]) for name in slope)
        self.finest = max(2 * math.log2(reach[name] / _CODE_REACH) + math.log2(slope[name]) for name in slope)

    def land(self, cap: int, start: float, slack: int) -> Landing | None:
        """See `allocate.land`."""
        return land(
            lambda log2_theta: len(self.round_all(log2_theta)),
            cap,
            start=start,
            num_weights=self.num_weights,
            slack=slack,
            max_passes=_PASSES,
            lowest=self.finest,
            highest=self.coarsest,
        )

    def guess(self, cap: int) -> float:
        """log2_theta at which Gaussian tensors of these variances would fill `cap`."""
        bits = 0.0
        for name, price in self.rated.items():
            deviation = math.sqrt(max(_mean_square(self.tensors[name].weight), 1e-24))
            slope = price.nats_per_squared_step / price.num_weights
            bits += price.num_weights * (2.047 + math.log2(deviation) + math.log2(slope) / 2)
        return 2 * (bits - 8 * cap) / self.num_weights

    def round_all(self, log2_theta: float) -> bytes:
        """The file at this theta."""
        if log2_theta not in self.made:
            steps = equal_slope_steps(self.rated, log2_theta)
            tensors = self._quantize(steps)
            self.made = dict(list(self.made.items())[-3:])  # earlier passes are not needed any more
            self.made[log2_theta] = tensors, self.encode(tensors)
        return self.made[log2_theta][1]

    def trim(self, landing: Landing, cap: int) -> Filled:
        """Round single tensors a little finer until the file is within the slack of the cap."""
        self.round_all(landing.log2_theta)
        tensors, data = self.made[landing.log2_theta]
        steps = equal_slope_steps(self.rated, landing.log2_theta)
        share = 1.0
        for _ in range(_TRIMS if landing.log2_theta > self.finest else 0):
            free = cap - len(data)
            if free <= SLACK:
                break
            bits = 8 * share * (free - SLACK / 2)
            large = [name for name, price in self.rated.items() if bits / price.num_weights <= _TRIM_BITS]
            by_size = sorted(large or self.rated, key=lambda n: self.rated[n].num_weights)
            name = by_size[0 if large else -1]
            finer = steps[name] * 2 ** -min(bits / self.rated[name].num_weights, _TRIM_BITS)
            tried = tensors | self._quantize({name: finer})
            larger = self.encode(tried)
            if len(data) < len(larger) <= cap:
                tensors, data, share = tried, larger, 1.0
                steps[name] = finer
            else:
                share /= 2
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

    def _quantize(self, steps: dict[str, float]) -> dict[str, QuantizedTensor]:
        settings = self.settings
        tasks = []
        for name, step in steps.items():
            tensor = self.tensors[name]
            factor = self._factor(tensor)
            columns: Literal["one", "pivot"] = "pivot" if settings.column_steps and factor is not None else "one"
            levels = Steps(step, columns=columns, trellis=settings.trellis, rate=settings.rate)
            method = "rtn" if factor is None else "gptq"
            tasks.append(QuantizeTask(name, tensor.weight, levels, method, tensor.hessian, tensor.importance, factor))
        done = quantize_tensors(
            tasks, damping=settings.damping, block_size=settings.block_size, device=settings.device,
            progress=self.progress,
        )  # fmt: skip
        return {tensor.name: tensor for tensor in done}

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
