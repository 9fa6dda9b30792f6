"""Closed-form scales against numpy's least squares; they never lose, stay fp16 and leave the codes alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.compress.quantize import QuantizedTensor, quantize_tensor
from bitgolf.compress.rescale import rescale
from bitgolf.compress.steps import Steps
from bitgolf.errors import ConfigError
from bitgolf.grid import Grid


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    inputs = torch.randn(400, columns, generator=generator).cumsum(dim=1)
    return weight, inputs.T @ inputs / 400


def coarse(weight: torch.Tensor, hessian: torch.Tensor, trellis: int = 0) -> QuantizedTensor:
    """So coarse and so shrunken by the rate term that scales have something to repair."""
    return quantize_tensor("w", weight, Steps(0.1, columns="pivot", trellis=trellis, rate=1.0), "gptq", hessian)


def output_error(e: np.ndarray, h: np.ndarray) -> float:
    return float(np.trace(e @ h @ e.T))


@pytest.mark.parametrize("trellis", [0, 8])
def test_factors_are_those_of_least_squares(trellis: int) -> None:
    weight, hessian = problem(10, 14)
    tensor = coarse(weight, hessian, trellis)
    root = np.linalg.cholesky(hessian.double().numpy())  # rows times it: output errors as plain vectors
    w, q = weight.double().numpy() @ root, tensor.dequantized().double().numpy() @ root
    rows = np.array([np.linalg.lstsq(q[i][:, None], w[i], rcond=None)[0][0] for i in range(10)])
    found = rescale(tensor, weight, hessian, "row")
    np.testing.assert_allclose((found.scales / tensor.scales).numpy(), rows, rtol=2**-10)
    whole = np.linalg.lstsq(q.reshape(-1, 1), w.reshape(-1), rcond=None)[0][0]
    found = rescale(tensor, weight, hessian, "tensor")
    np.testing.assert_allclose((found.scales / tensor.scales).numpy(), whole, rtol=2**-10)
    # Column j contributes q_ij times row j of the root, for all output rows i at once.
    plain = tensor.dequantized().double().numpy()
    design = np.stack([np.outer(plain[:, j], root[j]).reshape(-1) for j in range(14)], axis=1)
    columns = np.linalg.lstsq(design, w.reshape(-1), rcond=None)[0]
    found = rescale(tensor, weight, hessian, "column")
    kept = (columns <= 0) | ~plain.any(axis=0)  # of the wrong sign, or all zeros: such a column stays as it was
    np.testing.assert_allclose(
        (found.column_scales / tensor.column_scales).numpy(), np.where(kept, 1.0, columns), rtol=2**-9
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 16),
    st.sampled_from(["tensor", "row", "column"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_error_never_grows_and_is_reported(rows: int, columns: int, share: str, weighted: bool, seed: int) -> None:
    weight, hessian = problem(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(rows, generator=generator) + 0.1 if weighted else None
    steps = Steps(0.06, columns="pivot", rate=0.8)
    tensor = quantize_tensor("w", weight, steps, "gptq", hessian, importance=importance)
    found = rescale(tensor, weight, hessian, share, importance)
    assert torch.equal(found.codes, tensor.codes)
    assert found.hessian_error <= tensor.hessian_error * (1 + 1e-5)
    for scales in (found.scales, found.column_scales):
        assert torch.equal(scales.half().float(), scales) and bool((scales > 0).all())
    counts = np.ones(rows) if importance is None else importance.double().numpy()
    w, q = weight.double().numpy(), found.dequantized().double().numpy()
    weigh = np.sqrt(counts)[:, None]
    h = hessian.double().numpy()
    expected = output_error(weigh * (w - q), h) / output_error(weigh * w, h)
    assert found.hessian_error == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found.weight_error == pytest.approx(((w - q) ** 2).sum() / (w**2).sum(), rel=1e-6)


@pytest.mark.parametrize("share", ["tensor", "row", "column"])
def test_scales_that_are_off_are_found_again(share: str) -> None:
    weight, hessian = problem(64, 32)
    tensor = quantize_tensor("w", weight, Steps(0.01, columns="pivot"), "gptq", hessian)
    off = replace(tensor, scales=(tensor.scales * 0.9).half().float())
    found = rescale(off, weight, hessian, share)
    assert found.hessian_error < 1.01 * tensor.hessian_error
    product = found.scales[:, None] * found.column_scales
    torch.testing.assert_close(product, tensor.scales[:, None] * tensor.column_scales, rtol=0.02, atol=0)


def test_grids_and_zeros() -> None:
    weight, hessian = problem(6, 8)
    weight[2] = 0
    tensor = quantize_tensor("w", weight, Grid(3), "gptq", hessian)
    for share in ("tensor", "row", "column"):
        found = rescale(tensor, weight, hessian, share)
        assert found.hessian_error <= tensor.hessian_error * (1 + 1e-6)
        assert not found.dequantized()[2].any()
    zero = quantize_tensor("w", torch.zeros(3, 4), Steps(0.1), "gptq", torch.eye(4))
    for share in ("tensor", "row", "column"):
        assert rescale(zero, torch.zeros(3, 4), torch.eye(4), share).hessian_error == 0


def test_what_does_not_fit_is_refused() -> None:
    weight, hessian = problem(6, 8)
    tensor = quantize_tensor("blocks.0.up", weight, Grid(3), "gptq", hessian)
    with pytest.raises(ConfigError, match=r"blocks\.0\.up: codes of shape \(6, 8\)"):
        rescale(tensor, weight[:3], hessian)
    with pytest.raises(ConfigError, match="not one of tensor, row, column"):
        rescale(tensor, weight, hessian, "all")
