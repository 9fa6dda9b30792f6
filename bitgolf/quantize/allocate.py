"""The step of each tensor under method rate: bytes go to the tensors in which they lower the loss most.

Symbols, for a tensor t:

    s_t    step: distance of two neighboring levels
    n_t    number of weights
    a_t    curvature: rounding with step s_t raises the loss by a_t * s_t^2 nats per token
    h_t    bits per weight at step 1; at fine steps a weight costs h_t - log2(s_t) bits

The sum of a_t * s_t^2 is to be least at a given sum of n_t * (h_t - log2(s_t)). Setting the derivative by log2(s_t) of
the one in proportion to that of the other gives

    s_t^2 = theta * n_t / a_t        with the same theta for all tensors.

Then one more bit lowers the loss by the same amount, whichever tensor gets it. Doubling theta takes sum(n_t) / 2 bits
off the file at fine steps, and fewer at coarse ones. `find_theta` finds the theta whose file fills the cap.
Source: reverse water-filling at fine steps (Cover and Thomas, Elements of Information Theory, section 10.3).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bitgolf.artifact.trellis import MEAN_SQUARED_ERROR
from bitgolf.errors import ConfigError
from bitgolf.measure.curvature import Curvature

_LEAST_INCREASE = 1e-12  # nats per token
_LEAST_MEAN_SQUARE = 1e-12  # of a tensor's weights
_NOISE_VARIANCES = 12  # curvature is the cost of uniform noise, whose mean square is step^2 / 12


@dataclass(frozen=True)
class MeasuredTensor:
    """A tensor that takes part in the allocation, with what `train` measured."""

    weight: Tensor  # (R, C) float, on the device where it is quantized
    hessian: Tensor | None  # (C, C) moments of the inputs for GPTQ; None for tables, which multiply no activations
    importance: Tensor | None  # (R,) curvature of the loss in each output; None = all outputs count alike
    curvature: Curvature | None  # None if it was not measured


@dataclass(frozen=True)
class TensorCurvature:
    """n_t and a_t of a tensor, see the top of the file; `source` says where a_t comes from."""

    num_weights: int
    nats_per_squared_step: float
    source: str = "measured"


def curvatures(tensors: Mapping[str, MeasuredTensor], trellis: int) -> dict[str, TensorCurvature]:
    """The curvature of every tensor when it is rounded along a trellis of so many states (0 = to the nearest level).

    A tensor that was not measured gets the median of the others, per weight and squared weight.

    Raises ConfigError if no tensor was measured, or a curvature is not positive and finite.
    """
    scale = _NOISE_VARIANCES * MEAN_SQUARED_ERROR[trellis]
    measured: dict[str, TensorCurvature] = {}
    for name, tensor in tensors.items():
        if tensor.curvature is not None and tensor.curvature.step:
            increase = max(tensor.curvature.increase_nats, _LEAST_INCREASE)
            measured[name] = TensorCurvature(tensor.weight.numel(), scale * increase / tensor.curvature.step**2)
    if not measured:
        raise ConfigError(
            "no tensor's curvature was measured, so the bytes cannot be divided; set train.measure.fisher_tokens "
            "and train again, or pack with pack.method 'gptq'"
        )
    per_weight = sorted(
        value.nats_per_squared_step * _mean_square(tensors[name].weight) / value.num_weights
        for name, value in measured.items()
    )
    median = per_weight[len(per_weight) // 2]
    for name, tensor in tensors.items():
        if name not in measured:
            size, mean_square = tensor.weight.numel(), max(_mean_square(tensor.weight), _LEAST_MEAN_SQUARE)
            measured[name] = TensorCurvature(size, median * size / mean_square, "median of the others")
        if not 0 < measured[name].nats_per_squared_step < math.inf:
            raise ConfigError(f"{name}: curvature {measured[name].nats_per_squared_step:g} must be above 0 and finite")
    return {name: measured[name] for name in tensors}


def equal_slope_steps(tensors: Mapping[str, TensorCurvature], log2_theta: float) -> dict[str, float]:
    """s_t of every tensor at theta = 2^`log2_theta`."""
    return {
        name: math.sqrt(2.0**log2_theta * tensor.num_weights / tensor.nats_per_squared_step)
        for name, tensor in tensors.items()
    }


def predicted_increase(tensors: Mapping[str, TensorCurvature], steps: Mapping[str, float]) -> float:
    """Rise of the loss in nats per token, a_t * s_t^2 summed over all tensors."""
    return sum(tensors[name].nats_per_squared_step * step**2 for name, step in steps.items())


def _mean_square(weight: Tensor) -> float:
    return float(weight.double().square().mean())
