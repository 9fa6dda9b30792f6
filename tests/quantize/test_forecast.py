"""Predicted bits against explicit sums, and against the codes that quantization then makes."""

import math

import numpy as np
import pytest
import torch
from code_length import gaussian_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitgolf.measure.inverse_factor import InverseFactor, inverse_factor
from bitgolf.quantize.column_steps import Steps
from bitgolf.quantize.forecast import Forecast, Spread, spread
from bitgolf.quantize.tensors import QuantizeTask, quantize_tensors


def layer(rows: int = 384, columns: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with variances by row and column, and a Hessian with strong correlations."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng) * torch.rand(rows, 1, generator=rng).add(0.3)
    mix = torch.randn(columns, columns, generator=rng) * torch.logspace(0, -1.5, columns)
    return 0.1 * weight * torch.rand(columns, generator=rng).add(0.3), mix @ mix.T / columns


def entropy_of_rounded_gaussian(variance: float) -> float:
    """Bits, by a sum over codes of differences of error functions."""

    def beyond(x: float) -> float:
        return math.erfc(x / math.sqrt(2 * variance)) / 2

    masses = [1 - 2 * beyond(0.5)]
    masses += 2 * [beyond(k - 0.5) - beyond(k + 0.5) for k in range(1, 3 + math.ceil(12 * math.sqrt(variance)))]
    return -sum(mass * math.log2(mass) for mass in masses if mass > 0)


@pytest.mark.parametrize("variance", [1e-3, 0.01, 0.1, 0.3, 1.0, 7.3, 63.0, 65.0, 900.0])
def test_bits_of_one_variance(variance: float) -> None:
    same = Spread(np.full(6, variance), np.zeros(6))
    for trellis in (0, 8):
        predicted = Forecast([same], [1000], trellis).bits(np.array([1.0]))
        assert predicted.shape == (1,)
        assert predicted[0] == pytest.approx(1000 * entropy_of_rounded_gaussian(variance), rel=1e-3, abs=0.02)


def test_what_feedback_adds_is_the_sum_over_columns_before() -> None:
    weight, hessian = layer(columns=40)
    hessian[7] = hessian[:, 7] = 0  # an input that was always zero
    factor = inverse_factor(hessian, 0.01, torch.float64)
    for columns in (Steps(1.0, columns="pivot").column_scales(factor), None):
        steps = torch.ones(40) if columns is None else columns
        added = [0.0] * 40
        for j in range(40):
            for k in range(j):
                push = factor.upper[k, j] / factor.upper[k, k] * steps[factor.order[k]] / steps[factor.order[j]]
                added[int(factor.order[j])] += float(push) ** 2
        cells = spread(weight, columns, factor)
        assert cells.variance.shape == cells.feedback.shape
        assert cells.feedback.mean() == pytest.approx(np.mean(added), rel=0.1)  # groups of one or two columns
        assert cells.feedback.max() <= max(added) * (1 + 1e-9) and cells.feedback.min() >= 0
        scaled = weight.double() / steps
        assert cells.variance.mean() == pytest.approx(float(scaled.square().mean()), rel=0.1)
    assert not spread(weight, None, None).feedback.any()


@pytest.mark.parametrize("trellis", [0, 8])
@pytest.mark.parametrize("columns", ["one", "pivot"])
def test_bits_agree_with_codes_that_are_made(trellis: int, columns: str) -> None:
    weight, hessian = layer()
    factor: InverseFactor = inverse_factor(hessian, 0.01, torch.float32)
    spacing = Steps(1.0, columns=columns).column_scales(factor)  # type: ignore[arg-type]
    forecast = Forecast([spread(weight, spacing, factor)], [weight.numel()], trellis)
    ratios = []
    for step in (0.08, 0.04, 0.02, 0.01):
        levels = Steps(step, columns=columns, trellis=trellis)  # type: ignore[arg-type]
        made = quantize_tensors([QuantizeTask("w", weight, levels, "gptq", hessian, None, factor)])[0]
        bits = gaussian_bits(made.codes, trellis) * weight.numel()
        ratios.append(float(forecast.bits(np.array([step]))[0]) / bits)
    assert ratios[0] == pytest.approx(1, abs=0.04)  # near 1 bit, where errors are not uniform any more
    assert ratios[1:] == pytest.approx([1.0] * 3, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(
    variances=st.lists(st.floats(1e-8, 1e4), min_size=1, max_size=5), feedback=st.floats(0, 30),
    step=st.floats(1e-4, 1e3), factor=st.floats(1.0, 100.0), trellis=st.sampled_from([0, 8]),
)  # fmt: skip
def test_bits_never_rise_with_the_step(
    variances: list[float], feedback: float, step: float, factor: float, trellis: int
) -> None:
    spreads = [Spread(np.full(4, variance), np.full(4, feedback)) for variance in variances]
    forecast = Forecast(spreads, [100] * len(spreads), trellis)
    fine, coarse = (forecast.bits(np.full(len(spreads), s)) for s in (step, step * factor))
    assert (coarse <= fine + 1e-9).all() and (coarse >= 0).all()
    for which in range(len(spreads)):
        assert float(forecast.bits(np.array(step), which)) == pytest.approx(fine[which])


def test_steps_count_as_they_are_stored() -> None:
    forecast = Forecast([Spread(np.ones(4), np.zeros(4))], [1000], 0)
    exact = float(np.float16(0.1))
    with_trellis = Forecast([Spread(np.ones(4), np.zeros(4))], [1000], 8)
    # A trellis stores half the step. Just above 2^-14, where fp16 gets coarse, that rounds to another number.
    step = 2.0**-14 * (1 + 2**-10)
    assert with_trellis.bits(np.array([step]))[0] != forecast.bits(np.array([step]))[0]
    close, stored, further = (forecast.bits(np.array([s]))[0] for s in (exact * (1 + 1e-4), exact, exact * 1.001))
    assert close == stored > further
