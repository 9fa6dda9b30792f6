"""Unbounded steps: column factors against their definitions, the bits that one step wastes, and rounding."""

import math

import numpy as np
import pytest
import torch
from code_length import gaussian_bits
from grid_gptq import quantize_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.errors import ConfigError
from bitgolf.grids.grid import SMALLEST_SCALE
from bitgolf.measure.inverse_factor import inverse_factor
from bitgolf.quantize.column_steps import StepRounder, Steps, check_importance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian_of(columns: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Moments of inputs whose axes are a random rotation, of variances spread over e^(+-spread) or so."""
    rotation = torch.linalg.qr(normal(columns, columns, seed=seed)).Q
    variances = (spread * normal(columns, seed=seed + 1)).exp()
    return rotation @ torch.diag(variances) @ rotation.T


def conditional_variances(hessian: np.ndarray, damping: float) -> np.ndarray:
    """D_j: variance of input j given the inputs rounded after it, by regression on them; in the matrix's order."""
    live = np.diag(hessian) > 0
    damped = hessian + damping * np.diag(hessian)[live].mean() * np.eye(len(hessian))
    order = sorted(np.flatnonzero(live), key=lambda j: (-hessian[j, j], j))
    variances = np.full(len(hessian), np.nan)
    for position, j in enumerate(order):
        later = order[position + 1 :]
        explained = 0.0
        if later:
            explained = damped[j, later] @ np.linalg.solve(damped[np.ix_(later, later)], damped[later, j])
        variances[j] = damped[j, j] - explained
    return variances


def is_half(values: torch.Tensor) -> bool:
    return torch.equal(values.half().float(), values) and bool((values > 0).all())


@pytest.mark.parametrize("dead", [(), (0, 5)])
def test_column_steps_follow_the_conditional_variances(dead: tuple[int, ...]) -> None:
    hessian = hessian_of(24, 1.0)
    for j in dead:
        hessian[j] = hessian[:, j] = 0
    variances = conditional_variances(hessian.numpy(), 0.01)
    factor = inverse_factor(hessian, 0.01, torch.float64)
    live = ~np.isnan(variances)
    exact = variances[live] ** -0.5
    exact = exact / np.exp(np.log(exact).mean())
    scales = Steps(0.1, columns="pivot").column_scales(factor)
    assert is_half(scales) and np.allclose(scales.numpy()[live], 2 ** (np.round(8 * np.log2(exact)) / 8), rtol=2**-11)
    assert bool((scales[list(dead)] == 1).all())


@pytest.mark.parametrize("trellis", [0, 8])
def test_all_rows_have_one_step_but_zero_rows(trellis: int) -> None:
    weight = normal(6, 40) * torch.logspace(-2, 0, 6, dtype=torch.float64).unsqueeze(1)
    weight[4] = 0
    scales = Steps(0.03, trellis=trellis).row_scales(weight)
    assert is_half(scales) and scales[4] == SMALLEST_SCALE
    assert scales[[0, 1, 2, 3, 5]].tolist() == [float(np.float16(0.03 / (2 if trellis else 1)))] * 5


def test_importance_must_fit() -> None:
    with pytest.raises(ConfigError, match="for 4 rows"):
        check_importance(torch.ones(3), normal(4, 5))
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ConfigError, match="finite and >= 0"):
            check_importance(torch.tensor([1.0, bad, 1.0, 1.0]), normal(4, 5))
    assert check_importance(torch.zeros(4), normal(4, 5)).tolist() == [1.0] * 4
    floored = check_importance(torch.tensor([0.0, 4.0, 2.0, 2.0]), normal(4, 5))
    assert floored.tolist() == pytest.approx([1e-3, 2.0, 1.0, 1.0])


@pytest.mark.parametrize("step", [0.0, math.nan, math.inf])
def test_impossible_steps_are_refused(step: float) -> None:
    with pytest.raises(ConfigError, match=f"step of {step}"):
        Steps(step)


def test_steps_have_the_bounds_of_fp16() -> None:
    with pytest.raises(ConfigError, match="does not fit fp16"):
        Steps(70_000.0).row_scales(normal(3, 4))
    assert bool((Steps(1e-12).row_scales(normal(3, 4)) == SMALLEST_SCALE).all())


# Column steps save the bits that one step for all columns wastes, whatever the Hessian.
@pytest.mark.parametrize(("spread", "waste"), [(0.0, 0.0), (0.5, 0.06), (1.0, 0.25)])
@pytest.mark.parametrize("trellis", [0, 8])
def test_column_steps_gain_the_wasted_bits(spread: float, waste: float, trellis: int) -> None:
    rows, columns = 256, 64
    weight = normal(rows, columns, seed=3)
    place = torch.arange(columns, dtype=torch.float64)
    hessian = 0.7 ** (place[:, None] - place[None]).abs()
    size = (spread * normal(columns, seed=6)).exp()
    hessian = hessian * size[:, None] * size[None]
    variances = conditional_variances(hessian.numpy(), 1e-6)
    wasted = 0.5 * (np.log2(variances.mean()) - np.log2(variances).mean())
    score = {}
    for kind in ("one", "pivot"):
        steps = Steps(0.4, columns=kind, trellis=trellis)
        result = quantize_tensor("w", weight, steps, "gptq", hessian, damping=1e-6, dtype=torch.float64)
        score[kind] = gaussian_bits(result.codes, trellis) + 0.5 * math.log2(result.hessian_error)
    assert wasted >= waste
    assert score["one"] - score["pivot"] == pytest.approx(wasted, abs=0.02)


def limit_gap(trellis: int, step: float) -> float:
    """Bits above the rate-distortion function of a Gaussian."""
    weight = normal(512, 128, seed=8)
    result = quantize_tensor("w", weight, Steps(step, trellis=trellis), "rtn")
    fitted = 0.5 * math.log2(math.e) * (1 / 512 + 1 / 128)  # gain of 640 fitted variances over the true one
    return gaussian_bits(result.codes, trellis) + 0.5 * math.log2(result.weight_error) + fitted


def test_distance_to_the_rate_distortion_function() -> None:
    assert limit_gap(0, 0.4145) == pytest.approx(0.265, abs=0.006)
    assert limit_gap(8, 0.4145) == pytest.approx(0.083, abs=0.006)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0, 8]), st.booleans(), st.integers(0, 1000))
def test_no_level_has_a_lower_error(trellis: int, weighted: bool, seed: int) -> None:
    steps = Steps(0.7, trellis=trellis)
    weight = normal(5, 6, seed=seed)
    scales = steps.row_scales(weight).unsqueeze(0)
    importance = normal(1, 5, seed=seed + 1).abs().float() + 0.1 if weighted else None
    columns = normal(1, 6, seed=seed + 2).exp().half().float()
    rounder = StepRounder(steps, scales, importance)
    x = weight.unsqueeze(0) / (scales.unsqueeze(2).double() * columns.unsqueeze(1).double())
    whole = rounder.without_feedback(x)
    counts = np.ones(5) if importance is None else importance[0].double().numpy() / importance.double().mean().item()
    for j in range(6):
        levels = rounder(x[:, :, j])
        assert torch.equal(levels, whole[:, :, j])

        def total(levels: np.ndarray, j: int = j) -> float:
            return float((counts * (x[0, :, j].numpy() - levels) ** 2).sum())

        own = total(levels[0].numpy())
        # Any allowed change of one level (with a trellis: by 4, which keeps the path) can only cost more.
        for i in range(5):
            for change in (-4, 4) if trellis else (-1, 1):
                other = levels[0].numpy().copy()
                other[i] += change
                assert own <= total(other) + 1e-4
