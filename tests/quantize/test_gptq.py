"""GPTQ against optimal-brain quantization with explicit inverse updates, in numpy float64 loops."""

import logging
import math

import numpy as np
import pytest
import torch
from grid_gptq import gptq, gptq_batched
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.errors import ConfigError
from bitgolf.grids.grid import Grid, scale_levels
from bitgolf.quantize.column_steps import StepRounder, Steps
from bitgolf.quantize.gptq import GridRounder, factorize, output_error, round_with_feedback
from bitgolf.quantize.viterbi import trellis_quantize


def problem(rows: int, columns: int, seed: int = 0, correlation: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (R, C) and a Hessian (C, C) of inputs that are an AR(1) process with uneven variances; fp64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 0.05
    distance = torch.arange(columns, dtype=torch.float64)
    covariance = correlation ** (distance[:, None] - distance[None]).abs()
    spread = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.5
    covariance = covariance * spread[:, None] * spread[None]
    inputs = torch.randn(8 * columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.linalg.cholesky(covariance).T
    return weight, inputs.T @ inputs


def optimal_brain_codes(
    weight: np.ndarray, hessian: np.ndarray, qmax: int, scales: np.ndarray, damping: float = 0.01
) -> np.ndarray:
    """Round one weight at a time; after each, remove its column from the inverse Hessian by elimination."""
    rows, columns = weight.shape
    live = np.diag(hessian) > 0
    damped = hessian + damping * np.diag(hessian)[live].mean() * np.eye(columns)
    order = sorted(range(columns), key=lambda j: (-hessian[j, j], j))
    codes = np.zeros((rows, columns), dtype=np.int64)
    for r in range(rows):
        w = np.where(live, weight[r], 0.0)[order]
        inverse = np.linalg.inv(damped[np.ix_(order, order)])
        for j in range(columns):
            code = min(max(round(w[j] / scales[r]), -qmax), qmax)
            codes[r, order[j]] = code
            w = w - (w[j] - code * scales[r]) / inverse[j, j] * inverse[j]
            inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
            inverse[j, j] = 1.0  # column j is gone; keep the later divisions defined
    return codes


def optimal_brain_levels(
    weight: np.ndarray, hessian: np.ndarray, scales: np.ndarray, column_scales: np.ndarray, trellis: int
) -> np.ndarray:
    """The same column by column for all rows, with column steps, and unbounded or along a trellis down the rows."""
    rows, columns = weight.shape
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(columns)
    order = sorted(range(columns), key=lambda j: (-hessian[j, j], j))
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    w = weight[:, order].copy()
    levels = np.zeros((rows, columns), dtype=np.int64)
    for j in range(columns):
        unit = scales * column_scales[order[j]]
        x = w[:, j] / unit
        level = trellis_quantize(torch.from_numpy(x), trellis).numpy() if trellis else np.round(x)
        levels[:, order[j]] = level
        w = w - np.outer((w[:, j] - level * unit) / inverse[j, j], inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1.0
    return levels


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.sampled_from([0, 8]), st.integers(1, 25), st.integers(0, 1000))
def test_column_steps_and_trellises_equal_optimal_brain_quantization(
    rows: int, columns: int, trellis: int, block: int, seed: int
) -> None:
    weight, hessian = problem(rows, columns, seed)
    steps = Steps(0.03, columns="pivot", trellis=trellis)
    scales = steps.row_scales(weight)
    factors = [factorize(weight, hessian, 0.01, torch.float64)]
    column_scales = steps.column_scales(factors[0])
    expected = optimal_brain_levels(
        weight.numpy(), hessian.numpy(), scales.double().numpy(), column_scales.double().numpy(), trellis
    )
    rounder = StepRounder(steps, scales.unsqueeze(0), None)
    levels = round_with_feedback(
        weight.unsqueeze(0), factors, scales.unsqueeze(0), column_scales.unsqueeze(0), rounder, block
    )
    assert levels.dtype == torch.int32 and np.array_equal(levels[0].numpy(), expected)


def test_column_steps_of_one_are_no_column_steps() -> None:
    weight, hessian = problem(5, 12)
    steps = Steps(0.02)
    scales = steps.row_scales(weight).unsqueeze(0)
    factors = [factorize(weight, hessian, 0.01, torch.float64)]
    rounder = StepRounder(steps, scales, None)
    plain = round_with_feedback(weight.unsqueeze(0), factors, scales, None, rounder)
    assert torch.equal(plain, round_with_feedback(weight.unsqueeze(0), factors, scales, torch.ones(1, 12), rounder))
    # Unbounded steps and a wide grid of the same step are the same quantizer.
    codes, dequantized = gptq_batched(weight.unsqueeze(0), hessian.unsqueeze(0), Grid(12), scales, dtype=torch.float64)
    assert torch.equal(plain, codes.int()) and torch.equal(scale_levels(plain, scales), dequantized)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 24), st.integers(2, 8), st.integers(1, 30), st.integers(0, 1000))
def test_codes_equal_optimal_brain_quantization(rows: int, columns: int, bits: int, block: int, seed: int) -> None:
    weight, hessian = problem(rows, columns, seed)
    grid = Grid(bits)
    scales = grid.scales(weight)
    expected = optimal_brain_codes(weight.numpy(), hessian.numpy(), grid.qmax, scales.double().numpy())
    codes, dequantized = gptq(weight, hessian, grid, scales, block_size=block, dtype=torch.float64)
    assert np.array_equal(codes.numpy(), expected)
    assert codes.dtype == torch.int8 and torch.equal(dequantized, grid.dequantize(codes, scales))


def test_fp32_codes_agree_with_fp64_reference() -> None:
    weight, hessian = problem(24, 160, correlation=0.97)
    grid = Grid(6)
    scales = grid.scales(weight)
    expected = optimal_brain_codes(weight.numpy(), hessian.numpy(), grid.qmax, scales.double().numpy())
    codes, _ = gptq(weight.float(), hessian.float(), grid, scales, block_size=64)
    assert float(np.mean(codes.numpy() == expected)) > 0.999


def test_output_error_is_the_trace() -> None:
    weight, hessian = problem(3, 7)
    slow = sum(float(row @ hessian.numpy() @ row) for row in weight.numpy())
    assert float(output_error(weight, hessian)) == pytest.approx(slow, rel=1e-12)


def test_dead_columns_become_zero_and_leave_the_rest_alone() -> None:
    weight, hessian = problem(5, 14)
    dead = [0, 6, 13]
    keep = [j for j in range(14) if j not in dead]
    hessian[dead] = 0
    hessian[:, dead] = 0
    grid = Grid(4)
    scales = grid.scales(weight)
    codes, _ = gptq(weight, hessian, grid, scales, dtype=torch.float64)
    assert not codes[:, dead].any()
    alone, _ = gptq(weight[:, keep], hessian[keep][:, keep], grid, scales, dtype=torch.float64)
    assert torch.equal(codes[:, keep], alone)


def test_a_zero_hessian_zeroes_the_layer_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    weight, _ = problem(3, 5)
    with caplog.at_level(logging.WARNING):
        codes, _ = gptq(weight, torch.zeros(5, 5), Grid(4), Grid(4).scales(weight))
    assert not codes.any() and "only zeros" in caplog.text


def test_rank_deficient_hessian_needs_no_retry(caplog: pytest.LogCaptureFixture) -> None:
    weight, _ = problem(4, 64)
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    with caplog.at_level(logging.WARNING):
        codes, _ = gptq(weight, inputs.T @ inputs, Grid(6), Grid(6).scales(weight))
    assert not caplog.records and codes.any()


def test_damping_is_raised_tenfold_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    weight, hessian = problem(4, 10)
    grid = Grid(6)
    scales = grid.scales(weight)
    # Push the smallest eigenvalue to -5 % of the mean diagonal: 1 % of damping fails, 10 % does not.
    lowest = float(torch.linalg.eigvalsh(hessian)[0])
    mean = float(hessian.diagonal().mean())
    shift = (lowest + 0.05 * mean) / 1.05  # the shift moves the mean too
    indefinite = hessian - shift * torch.eye(10, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        codes, _ = gptq(weight, indefinite, grid, scales, dtype=torch.float64)
    assert "0.01; trying 0.1" in caplog.text and len(caplog.records) == 1
    direct, _ = gptq(weight, indefinite, grid, scales, damping=0.1, dtype=torch.float64)
    assert torch.equal(codes, direct)


def test_batched_equals_one_by_one() -> None:
    problems = [problem(7, 18, seed) for seed in range(4)]
    grid = Grid(5)
    weights, hessians = torch.stack([w for w, _ in problems]), torch.stack([h for _, h in problems])
    scales = torch.stack([grid.scales(w) for w in weights])
    codes, dequantized = gptq_batched(weights, hessians, grid, scales, dtype=torch.float64, block_size=5)
    for i, (weight, hessian) in enumerate(problems):
        alone, values = gptq(weight, hessian, grid, scales[i], dtype=torch.float64)
        assert torch.equal(codes[i], alone) and torch.equal(dequantized[i], values)


def test_inputs_are_left_as_they_were_and_may_be_half_or_strided() -> None:
    weight, hessian = problem(6, 8)
    half = weight.half().t().contiguous().t()
    grid = Grid(6)
    scales = grid.scales(half)
    before = half.clone(), hessian.clone(), scales.clone()
    codes, _ = gptq(half, hessian, grid, scales)
    assert all(torch.equal(a, b) for a, b in zip(before, (half, hessian, scales), strict=True))
    assert torch.equal(codes, gptq(half.float().contiguous(), hessian, grid, scales)[0])


def test_reduced_matmul_precision_is_suspended_and_restored() -> None:
    weight, hessian = problem(8, 64, correlation=0.97)
    grid = Grid(6)
    scales = grid.scales(weight)
    expected, _ = gptq(weight.float(), hessian.float(), grid, scales)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        seen: list[str] = []

        class Watching(GridRounder):
            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                seen.append(torch.backends.cuda.matmul.fp32_precision)
                return super().__call__(x)

        factors = [factorize(weight.float(), hessian.float(), 0.01, torch.float32)]
        round_with_feedback(weight.float().unsqueeze(0), factors, scales.unsqueeze(0), None, Watching(grid))
        assert set(seen) == {"ieee"}
        codes, _ = gptq(weight.float(), hessian.float(), grid, scales)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(codes, expected)


def broken(kind: str) -> torch.Tensor:
    hessian = problem(3, 6)[1]
    if kind == "asymmetric":
        hessian[0, 1] += hessian[0, 0]
    elif kind == "negative diagonal":
        hessian[2, 2] = -1.0
    elif kind == "indefinite":
        hessian[0, 5] = hessian[5, 0] = 50 * float(hessian.diagonal().max())
    else:
        hessian[1, 1] = float(kind)
    return hessian


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "NaN or infinite"),
        ("inf", "NaN or infinite"),
        ("asymmetric", "not symmetric"),
        ("negative diagonal", "diagonal element 2"),
        ("indefinite", "not positive semi-definite, even with 1 "),
    ],
)
def test_impossible_hessians_are_refused(kind: str, message: str) -> None:
    weight, _ = problem(3, 6)
    with pytest.raises(ConfigError, match=message):
        gptq(weight, broken(kind), Grid(6), Grid(6).scales(weight))


def test_impossible_matrices_are_refused() -> None:
    weight, hessian = problem(3, 6)
    grid = Grid(6)
    cases = [
        (weight, hessian[:5, :5], r"\(5, 5\); a weight of shape \(3, 6\) needs \(6, 6\)"),
        (weight[0], hessian, "matrices"),
        (weight[:, :0], hessian[:0, :0], "non-empty"),
        (weight * math.nan, hessian, "weight holds NaN"),
    ]
    for matrix, moments, message in cases:
        with pytest.raises(ConfigError, match=message):
            gptq(matrix, moments, grid, grid.scales(weight))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_agrees_with_the_cpu() -> None:
    weight, hessian = problem(96, 256, correlation=0.97)
    grid = Grid(6)
    clip = grid.search_clip(weight)
    assert torch.allclose(grid.search_clip(weight.cuda()).cpu(), clip)
    scales = grid.scales(weight, clip)
    assert torch.equal(grid.quantize(weight.cuda(), scales.cuda()).cpu(), grid.quantize(weight, scales))
    expected, _ = gptq(weight, hessian, grid, scales, dtype=torch.float64)
    codes, _ = gptq(weight.cuda(), hessian.cuda(), grid, scales.cuda())
    assert float((codes.cpu() == expected).double().mean()) > 0.999
