"""Trellis-coded quantization against loops and brute force over all paths, and its gain on Gaussians."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.artifact.trellis import RESTART_ROWS, trellis_levels, trellis_of
from bitgolf.errors import ConfigError
from bitgolf.quantize import viterbi
from bitgolf.quantize.viterbi import trellis_quantize

H0, H1 = 11, 4  # the parity checks of 8 states, octal 13 and 04


def gaussian(*shape: int, seed: int = 0, std: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * std


def slow_levels(codes: list[int], restart: int = RESTART_ROWS) -> list[int]:
    """One column, decoded by the definition."""
    levels, state = [], 0
    for t, k in enumerate(codes):
        state = 0 if t % restart == 0 else state
        z = state & 1
        levels.append(2 * k + z)
        state >>= 1
        if z:
            state ^= H0 >> 1
        if k & 1:
            state ^= H1 >> 1
    return levels


def slow_viterbi(x: list[float], weight: list[float]) -> float:
    """Least cost of a path, by dynamic programming over a dictionary of states and every near code."""
    best = {0: 0.0}
    for value, w in zip(x, weight, strict=True):
        after: dict[int, float] = {}
        for state, cost in best.items():
            z = state & 1
            center = round((value - z) / 2)
            for k in range(center - 2, center + 3):
                following = (state >> 1) ^ (z * (H0 >> 1)) ^ ((k & 1) * (H1 >> 1))
                total = cost + w * (value - 2 * k - z) ** 2
                after[following] = min(total, after.get(following, math.inf))
        best = after
    return min(best.values())


def cost(x: torch.Tensor, levels: torch.Tensor, weight: torch.Tensor | None = None) -> float:
    squared = (x - levels).double().square()
    return float((squared if weight is None else squared * weight).sum())


def test_every_state_has_one_quantizer_two_exits_and_two_entries() -> None:
    machine = trellis_of(8)
    entries = sorted(int(s) for s in machine.following.flatten())
    assert entries == sorted([*range(8), *range(8)])
    for state, parity in itertools.product(range(8), (0, 1)):
        after = machine.following[state, parity]
        assert machine.coset[state, after] == 2 * parity + (state & 1)
        assert after != machine.following[state, 1 - parity]
    # Branches into one state carry cosets two apart: confusing them costs at least a squared distance of 4.
    for after in range(8):
        into = [branch % 8 for branch in machine.incoming[:, after]]
        assert abs(int(machine.coset[into[0], after]) - int(machine.coset[into[1], after])) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.sampled_from([1, 3, 7, 512]),
    st.integers(0, 1000),
)
def test_decoding_equals_a_loop(rows: int, columns: int, restart: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-40, 40, (rows, columns), generator=generator, dtype=torch.int16)
    levels = trellis_levels(codes, 8, restart)
    assert levels.dtype == torch.int32
    for c in range(columns):
        assert levels[:, c].tolist() == slow_levels(codes[:, c].tolist(), restart)
    assert torch.equal(levels >> 1, codes.int())


def test_no_trellis_is_the_identity_and_a_copy() -> None:
    codes = torch.tensor([[3, -4], [0, 32767]], dtype=torch.int32)
    levels = trellis_levels(codes, 0)
    assert torch.equal(levels, codes)
    levels[0, 0] = 9
    assert codes[0, 0] == 3


def test_the_format_restarts_every_512_rows() -> None:
    codes = torch.ones(1030, 2, dtype=torch.int16)
    levels = trellis_levels(codes, 8)
    assert levels[:, 0].tolist() == slow_levels([1] * 1030, 512)
    assert torch.equal(levels[512:1024], levels[:512]) and torch.equal(levels[1024:], levels[:6])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.booleans(), st.integers(0, 1000))
def test_no_sequence_of_codes_is_better(rows: int, weighted: bool, seed: int) -> None:
    x = gaussian(rows, seed=seed, std=2.0)
    weight = gaussian(rows, seed=seed + 1).abs() if weighted else None
    near = [[round(float(v) / 2) + d for d in (-2, -1, 0, 1)] for v in x]
    every = [slow_levels(list(codes)) for codes in itertools.product(*near)]
    squared = (x.numpy() - np.array(every)) ** 2 * (weight.numpy() if weight is not None else 1.0)
    levels = trellis_quantize(x, 8, weight)
    assert cost(x, levels, weight) == pytest.approx(squared.sum(axis=1).min(), rel=1e-12, abs=1e-15)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 3),
    st.booleans(),
    st.floats(0.1, 30),
    st.integers(0, 99),
)
def test_paths_are_the_best_and_decode_to_themselves(
    rows: int, lanes: int, weighted: bool, std: float, seed: int
) -> None:
    x = gaussian(lanes, rows, seed=seed, std=std)
    weight = gaussian(lanes, rows, seed=seed + 1).abs() if weighted else None
    levels = trellis_quantize(x, 8, weight)
    codes = levels.to(torch.int32) >> 1
    assert torch.equal(trellis_levels(codes.T, 8).T, levels.to(torch.int32))
    for lane in range(lanes):
        factors = [1.0] * rows if weight is None else weight[lane].tolist()
        expected = slow_viterbi(x[lane].tolist(), factors)
        own = cost(x[lane], levels[lane], None if weight is None else weight[lane])
        assert own == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_segments_are_searched_independently() -> None:
    x = gaussian(3, 25)
    whole = trellis_quantize(x, 8, restart=10)
    for start in (0, 10, 20):
        assert torch.equal(whole[:, start : start + 10], trellis_quantize(x[:, start : start + 10], 8))
    assert torch.equal(trellis_levels((whole.int() >> 1).T, 8, 10).T, whole.int())
    free = trellis_quantize(x, 8)
    assert cost(x, free) < cost(x, whole)


def test_many_lanes_equal_single_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(7, 19)
    together = trellis_quantize(x, 8)
    monkeypatch.setattr(viterbi, "_LANES_AT_ONCE", 2)
    assert torch.equal(trellis_quantize(x, 8), together)
    assert torch.equal(torch.stack([trellis_quantize(row, 8) for row in x]), together)


def test_shape_layout_and_precision_of_the_input() -> None:
    x = gaussian(2, 3, 20, dtype=torch.float32)
    levels = trellis_quantize(x, 8)
    assert levels.shape == x.shape and levels.dtype == torch.float32
    assert torch.equal(trellis_quantize(x.transpose(1, 2).contiguous().transpose(1, 2), 8), levels)
    half = x.half()
    assert torch.equal(trellis_quantize(half, 8), trellis_quantize(half.float(), 8))
    assert trellis_quantize(half, 8).dtype == torch.float32
    assert torch.equal(trellis_quantize(x, 8, torch.ones(20)), levels)
    assert trellis_quantize(torch.empty(0, 5), 8).shape == (0, 5)
    before = x.clone()
    trellis_quantize(x, 8)
    assert torch.equal(before, x)


def test_zeros_stay_zero_and_elements_of_weight_zero_do_not_matter() -> None:
    assert not trellis_quantize(torch.zeros(2, 40), 8).any()
    x = gaussian(30)
    weight = torch.ones(30, dtype=torch.float64)
    weight[7] = 0
    moved = x.clone()
    moved[7] += 1.3
    keep = weight.bool()
    assert cost(x[keep], trellis_quantize(x, 8, weight)[keep]) == pytest.approx(
        cost(moved[keep], trellis_quantize(moved, 8, weight)[keep]), rel=1e-12
    )


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 states"):
        trellis_quantize(torch.ones(4), 4)
    with pytest.raises(ConfigError, match="2 states"):
        trellis_levels(torch.ones(4, 4, dtype=torch.int16), 2)
    with pytest.raises(ConfigError, match="float sequences"):
        trellis_quantize(torch.ones(4, dtype=torch.int32), 8)
    with pytest.raises(ConfigError, match="restart 0"):
        trellis_quantize(torch.ones(4), 8, restart=0)
    for bad in (torch.ones(4, 4), torch.ones(4, dtype=torch.int16)):
        with pytest.raises(ConfigError, match="integer matrices"):
            trellis_levels(bad, 8)


def entropy(codes: np.ndarray) -> float:
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("step", [0.25, 0.4145, 0.5])  # 4.05, 3.33 and 3.06 bits
def test_error_at_equal_entropy_beats_the_scalar_quantizer(step: float) -> None:
    x = gaussian(256, 512, std=1.0, dtype=torch.float32)
    levels = trellis_quantize(x / (step / 2), 8)
    squared = float((x - levels * (step / 2)).square().mean())
    assert squared / step**2 == pytest.approx(0.0652, rel=0.01)
    integers = levels.int().numpy()
    odd = (integers & 1).astype(bool)
    bits = np.average([entropy(integers[odd]), entropy(integers[~odd])], weights=[odd.mean(), 1 - odd.mean()])
    codes = torch.round(x / step)
    scalar_squared = float((x - codes * step).square().mean())
    # The squared error of the scalar quantizer at the same entropy: 6.02 dB less per bit.
    at_equal_bits = scalar_squared * 4 ** (entropy(codes.numpy()) - bits)
    assert bits >= 3.0 and squared <= 0.80 * at_equal_bits
    assert squared >= 0.75 * at_equal_bits  # the granular gain of these codes is a limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kernel_agrees_with_the_cpu(weighted: bool) -> None:
    for shape in ((3, 1), (5, 700), (2, 1536)):
        x = gaussian(*shape)
        weight = gaussian(*shape, seed=1).abs() if weighted else None
        expected = trellis_quantize(x, 8, weight)
        levels = trellis_quantize(x.cuda(), 8, None if weight is None else weight.cuda()).cpu()
        assert cost(x, levels, weight) == pytest.approx(cost(x, expected, weight), rel=1e-9)
        assert torch.equal(trellis_levels((levels.int() >> 1).T, 8).T, levels.int())
        single = trellis_quantize(x.float().cuda(), 8).cpu()
        assert cost(x, single) == pytest.approx(cost(x, trellis_quantize(x, 8)), rel=1e-4)
