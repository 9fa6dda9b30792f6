"""The quantization grid against loops in numpy, and its behavior at the edges of fp16."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.errors import ConfigError
from bitgolf.grids.grid import LARGEST_SCALE, SMALLEST_SCALE, Grid, scale_levels


def matrix(rows: int, columns: int, seed: int = 0, std: float = 0.05) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * std


def slow_scale(clip: float, qmax: int, floor: float = 0.0) -> float:
    step = np.float32(clip) / np.float32(qmax)
    return float(np.float16(max(step, np.float32(max(floor, 2.0**-24)))))


def slow_code(value: float, scale: float, qmax: int) -> int:
    ratio = float(np.float32(value) / np.float32(scale))
    return int(min(max(round(ratio), -qmax), qmax))  # Python rounds half to even too


@pytest.mark.parametrize("bits", range(2, 13))
def test_codes_scales_and_values_equal_a_loop(bits: int) -> None:
    grid = Grid(bits)
    weight = matrix(5, 17, seed=bits)
    scales = grid.scales(weight)
    codes = grid.quantize(weight, scales)
    restored = grid.dequantize(codes, scales)
    assert codes.dtype == (torch.int8 if bits <= 8 else torch.int16) and restored.dtype == torch.float32
    for r in range(5):
        expected = slow_scale(float(weight[r].abs().max()), 2 ** (bits - 1) - 1)
        assert float(scales[r]) == expected
        for c in range(17):
            code = slow_code(float(weight[r, c]), expected, grid.qmax)
            assert int(codes[r, c]) == code
            assert float(restored[r, c]) == float(np.float32(code) * np.float32(expected))


def test_ties_round_to_even_and_both_ends_are_symmetric() -> None:
    grid = Grid(4)
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 9.0, -9.0]])
    assert grid.quantize(weight, torch.ones(1)).tolist() == [[0, 2, 2, 0, -2, -2, 7, -7]]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10_000), st.floats(-3, 4))
def test_unclipped_error_is_at_most_half_a_step(bits: int, seed: int, exponent: float) -> None:
    grid = Grid(bits)
    weight = matrix(4, 33, seed=seed, std=10.0**exponent)
    scales = grid.scales(weight)
    error = (weight - grid.dequantize(grid.quantize(weight, scales), scales)).abs()
    assert bool((error <= 0.5 * (1 + 1e-3) * scales[:, None]).all())
    # Rounding is idempotent: what the artifact gives back is already on the grid.
    again = grid.quantize(grid.dequantize(grid.quantize(weight, scales), scales), scales)
    assert torch.equal(again, grid.quantize(weight, scales))


def test_all_zero_and_vanishing_rows_are_representable() -> None:
    grid = Grid(8)
    weight = torch.zeros(3, 8)
    weight[1, 2] = 1e-30
    weight[2, 3] = 1e-6
    scales = grid.scales(weight)
    assert scales[0] == scales[1] == SMALLEST_SCALE
    restored = grid.dequantize(grid.quantize(weight, scales), scales)
    assert torch.equal(restored[:2], torch.zeros(2, 8))
    assert abs(float(restored[2, 3]) - 1e-6) <= SMALLEST_SCALE / 2
    assert grid.scales(weight, grid.search_clip(weight)).isfinite().all()


def test_rows_too_large_for_fp16_are_refused_by_row() -> None:
    weight = torch.ones(3, 4)
    weight[1, 0] = LARGEST_SCALE * 127 * 1.01
    with pytest.raises(ConfigError, match=r"row 1 .*fp16"):
        Grid(8).scales(weight)
    weight[1, 0] = LARGEST_SCALE * 127
    assert float(Grid(8).scales(weight)[1]) == LARGEST_SCALE


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_are_refused_with_their_place(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[2, 1] = bad
    for use in (Grid(6).scales, Grid(6).search_clip, lambda w: Grid(6).quantize(w, torch.ones(3))):
        with pytest.raises(ConfigError, match=r"1 weights are NaN or infinite, the first at index \(2, 1\)"):
            use(weight)


@pytest.mark.parametrize("bits", [1, 13, 0, -3, 4.0, True])
def test_impossible_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="2 to 12"):
        Grid(bits)


@pytest.mark.parametrize("floor", [-1.0, math.nan, math.inf, 1e6])
def test_impossible_floors_are_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match="floor"):
        Grid(5, floor)


def test_mismatched_shapes_are_refused() -> None:
    grid = Grid(6)
    with pytest.raises(ConfigError, match="scales"):
        grid.quantize(matrix(3, 4), torch.ones(4))
    with pytest.raises(ConfigError, match="clip"):
        grid.scales(matrix(3, 4), torch.ones(1))
    with pytest.raises(ConfigError, match="clip of row 1"):
        grid.scales(matrix(3, 4), torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ConfigError, match="matrices"):
        grid.scales(torch.ones(4))
    with pytest.raises(ConfigError, match="matrices"):
        grid.quantize(torch.ones(2, 2, dtype=torch.int32), torch.ones(2))


def test_codes_of_more_than_8_bits_take_two_bytes() -> None:
    assert [Grid(bits).code_dtype.itemsize for bits in range(2, 13)] == 7 * [1] + 4 * [2]
    for bits in (8, 9, 12):
        most = 2 ** (bits - 1) - 1
        weight = torch.tensor([[-most, 1.0, most]])  # steps of one
        assert Grid(bits).quantize(weight, Grid(bits).scales(weight)).tolist() == [[-most, 1, most]]


def test_floor_coarsens_small_rows_only() -> None:
    weight = torch.stack([torch.full((6,), 0.01), torch.full((6,), 3.0)])
    scales = Grid(5, floor=1 / 15).scales(weight)
    assert float(scales[0]) == float(np.float16(1 / 15))
    assert float(scales[1]) == float(np.float16(np.float32(3.0) / 15))


def test_layout_and_width_of_the_input_do_not_matter() -> None:
    grid = Grid(6)
    weight = matrix(16, 12).half()
    scales = grid.scales(weight)
    codes = grid.quantize(weight, scales)
    transposed = weight.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert torch.equal(grid.quantize(transposed, scales), codes)
    assert torch.equal(grid.quantize(weight.float(), scales), codes)
    assert torch.equal(grid.quantize(weight[::2], scales[::2]), codes[::2])
    assert torch.equal(grid.search_clip(transposed), grid.search_clip(weight.float()))
    stack = torch.stack([weight, weight * 2])
    assert torch.equal(grid.quantize(stack, grid.scales(stack))[0], codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fake_quantization_is_the_export_and_passes_gradients(dtype: torch.dtype) -> None:
    grid = Grid(4)
    weight = matrix(6, 10, std=1.0).to(dtype).requires_grad_()
    clip = weight.detach().float().abs().amax(dim=1) * 0.5  # half the range is clipped
    scales = grid.scales(weight, clip)
    fake = grid.fake_quantize(weight, scales)
    assert fake.dtype == dtype
    exported = grid.dequantize(grid.quantize(weight, scales), scales)
    assert torch.equal(fake.detach(), exported.to(dtype))
    assert not torch.equal(fake.detach(), weight.detach())
    upstream = torch.arange(60, dtype=dtype).reshape(6, 10)
    fake.backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_round_scales_is_what_scales_stores() -> None:
    weight = matrix(9, 40)
    clip = weight.abs().amax(dim=1)
    for grid in (Grid(6), Grid(5, floor=0.02)):
        stored = grid.round_scales(clip)
        assert torch.equal(stored, grid.scales(weight, clip))
        assert torch.equal(stored.half().float(), stored)


def test_clip_search_finds_the_best_percentile_of_every_row() -> None:
    grid, percentiles = Grid(4), (0.6, 0.8, 0.9, 0.97, 1.0)
    weight = matrix(12, 50) ** 3  # heavy tails: clipping pays
    clip = grid.search_clip(weight, percentiles)
    chosen = set()
    for r in range(12):
        row = weight[r].numpy()
        errors = {}
        for p in percentiles:
            candidate = float(np.quantile(np.abs(row), p, method="linear"))
            scale = slow_scale(candidate, grid.qmax)
            codes = np.clip(np.round(row / np.float32(scale)), -grid.qmax, grid.qmax)
            errors[candidate] = float(((row.astype(np.float64) - codes * scale) ** 2).sum())
        best = min(errors, key=errors.get)
        assert float(clip[r]) == pytest.approx(best, rel=1e-5)
        chosen.add(list(errors).index(best))
    assert len(chosen) > 1  # the search decides row by row


def test_clip_search_in_chunks_equals_clip_search_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(37, 20)
    whole = Grid(5).search_clip(weight)
    monkeypatch.setattr("bitgolf.grids.grid._CHUNK_ELEMENTS", 100)
    assert torch.equal(Grid(5).search_clip(weight), whole)


def test_clip_search_does_not_hide_a_row_that_fits_no_scale() -> None:
    weight = matrix(3, 8)
    weight[1, 4] = 1e30  # its squared error overflows fp32 at every percentile
    with pytest.raises(ConfigError, match=r"row 1 .*fp16"):
        Grid(6).scales(weight, Grid(6).search_clip(weight))


@pytest.mark.parametrize("columns", [1, 2])
def test_clip_search_on_narrow_matrices(columns: int) -> None:
    weight = matrix(3, columns)
    assert torch.equal(Grid(8).search_clip(weight, (1.0,)), weight.abs().amax(dim=1))


@pytest.mark.parametrize("percentiles", [(), (0.0,), (1.1,), (math.nan,)])
def test_impossible_percentiles_are_refused(percentiles: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="percentiles"):
        Grid(8).search_clip(matrix(2, 8), percentiles)
    with pytest.raises(ConfigError, match="matrix"):
        Grid(8).search_clip(torch.ones(2, 2, 2))


def test_clip_at_standard_deviations_replaces_the_search() -> None:
    weight = matrix(4, 200, seed=3)
    clip = Grid(6, clip_sigmas=12.85).search_clip(weight)
    np.testing.assert_allclose(clip.numpy(), 12.85 * weight.numpy().std(axis=1), rtol=1e-5)
    codes = Grid(6, clip_sigmas=12.85)
    entropy_step = codes.scales(weight, clip) / weight.std(dim=1, correction=0)
    np.testing.assert_allclose(entropy_step.numpy(), 12.85 / 31, rtol=2e-3)
    with pytest.raises(ConfigError, match="clip_sigmas -1"):
        Grid(6, clip_sigmas=-1.0)


def test_levels_are_scaled_by_row_then_by_column() -> None:
    generator = torch.Generator().manual_seed(6)
    levels = torch.randint(-300, 300, (2, 5, 7), generator=generator, dtype=torch.int16)
    rows, columns = (torch.rand(2, n, generator=generator).half().float() for n in (5, 7))
    plain, both = scale_levels(levels, rows), scale_levels(levels, rows, columns)
    for n in range(2):
        for r in range(5):
            for c in range(7):
                by_row = np.float32(int(levels[n, r, c])) * np.float32(float(rows[n, r]))
                assert float(plain[n, r, c]) == by_row
                assert float(both[n, r, c]) == by_row * np.float32(float(columns[n, c]))
