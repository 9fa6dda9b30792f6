"""Codes of +1 and -1 are zeroed, the cheapest first, and no more of them than the cap needs."""

import math

import numpy as np
import pytest
import torch
from grid_gptq import quantize_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.grids.grid import Grid
from bitgolf.quantize.prune import Candidates, fit, measure_again
from bitgolf.quantize.tensors import QuantizedTensor

SHAPES = {"blocks.0.mlp.up.weight": (12, 10), "blocks.0.attention.key.weight": (6, 10), "embedding": (20, 10)}


def system(
    seed: int = 0, bits: int = 3
) -> tuple[list[QuantizedTensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Small GPTQ matrices, a table among them, one matrix rounded to nearest; with weights and Hessians."""
    rng = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    weights["blocks.1.mlp.up.weight"] = torch.randn(5, 10, generator=rng)
    hessians = {}
    for name in weights:
        inputs = torch.randn(40, 10, generator=rng) * torch.rand(10, generator=rng)
        hessians[name] = inputs.T @ inputs / 40
    methods = dict.fromkeys(weights, "gptq") | {"blocks.1.mlp.up.weight": "rtn"}
    tensors = [quantize_tensor(n, w, Grid(bits), methods[n], hessians[n]) for n, w in weights.items()]
    return tensors, weights, hessians


def by_hand(tensors: list[QuantizedTensor], hessians: dict[str, torch.Tensor]) -> list[tuple[float, str, int, int]]:
    """Every candidate as (cost, tensor, row, column), cheapest first, by loops in float64."""
    entries = []
    for tensor in tensors:
        if tensor.method != "gptq" or tensor.name == "embedding":
            continue
        for row in range(tensor.codes.shape[0]):
            for column in range(tensor.codes.shape[1]):
                if abs(int(tensor.codes[row, column])) == 1:
                    step, curvature = float(tensor.scales[row]), float(hessians[tensor.name][column, column])
                    entries.append((step * step * curvature, tensor.name, row, column))
    return sorted(entries, key=lambda entry: entry[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_codes_of_one_in_gptq_matrices_go_first(seed: int) -> None:
    tensors, _, hessians = system(seed)
    candidates, expected = Candidates(tensors, hessians), by_hand(tensors, hessians)
    assert candidates.total == len(expected) > 50
    by_name = {tensor.name: tensor for tensor in tensors}
    for count in (0, 1, 7, len(expected) // 2, len(expected)):
        assert candidates.cost(count) == pytest.approx(sum(entry[0] for entry in expected[:count]), rel=1e-9)
        expected_codes = {name: tensor.codes.clone() for name, tensor in by_name.items()}
        for _, name, row, column in expected[:count]:
            expected_codes[name][row, column] = 0
        changed = candidates.codes(count)
        assert {name for _, name, _, _ in expected[:count]} == set(changed)
        for name, codes in expected_codes.items():
            assert torch.equal(changed.get(name, by_name[name].codes), codes), name
            assert changed.get(name, codes).dtype == by_name[name].codes.dtype
    assert all(torch.equal(t.codes, s.codes) for t, s in zip(tensors, system(seed)[0], strict=True))  # untouched


def order0_bits(codes: torch.Tensor) -> float:
    total = 0.0
    for value in codes.unique().tolist():
        share = int((codes == value).sum()) / codes.numel()
        total -= share * math.log2(share)
    return total * codes.numel()


def test_the_entropy_curve_is_the_entropy_of_the_pruned_codes() -> None:
    tensors, _, hessians = system()
    candidates = Candidates(tensors, hessians)
    counts, bits = candidates.entropy_curve()
    assert counts[0] == 0
    assert counts[-1] == candidates.total
    for count, total in zip(counts[::7].tolist(), bits[::7].tolist(), strict=True):
        changed = candidates.codes(count)
        pruned = [t for t in tensors if t.method == "gptq" and t.name != "embedding"]
        assert total == pytest.approx(sum(order0_bits(changed.get(t.name, t.codes)) for t in pruned), rel=1e-9)


class Many(Candidates):
    """`total` candidates with an arbitrary entropy curve and without codes."""

    def __init__(self, total: int, bits: np.ndarray) -> None:
        self.total, self._bits = total, bits

    def entropy_curve(self) -> tuple[np.ndarray, np.ndarray]:
        counts = np.unique(np.linspace(0, self.total, len(self._bits)).astype(np.int64))
        return counts, self._bits[: len(counts)]


@settings(deadline=None)
@given(
    total=st.integers(0, 5000),
    first=st.integers(1000, 100_000),
    share=st.floats(0, 1.2),
    power=st.floats(0.3, 3),
    claims=st.floats(0.05, 20),
    noise=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_the_search_ends_within_tolerance_for_any_curve(
    total: int, first: int, share: float, power: float, claims: float, noise: int, seed: int
) -> None:
    """Sizes fall from `first` by up to a half, as count^power, with noise; the curve claims `claims` times as much."""
    wobble = np.random.default_rng(seed).integers(-noise, noise + 1, size=total + 1)
    wobble[0] = 0

    def size_of(count: int) -> int:
        return int(first - first / 2 * (count / max(1, total)) ** power) + int(wobble[count])

    bits = 8 * claims * first * (1 - 0.5 * np.linspace(0, 1, 33))  # a straight line, unlike the sizes
    limit = int(first * (0.5 + share / 2))
    counts: list[int] = []

    def encode(count: int) -> range:
        """A file of that many bytes, as far as `len` tells."""
        counts.append(count)
        return range(size_of(count))

    count, file, encodes = fit(encode, Many(total, bits), limit)
    size = len(file)
    assert size == size_of(count)
    assert encodes == len(counts) == len(set(counts))
    sizes = np.array([size_of(n) for n in range(total + 1)])
    if first <= limit:
        assert (count, encodes) == (0, 1)
    elif size > limit:
        assert count == total
        assert size_of(total) > limit
    else:
        slack, resolution = max(64, limit // 4096), max(1, total // 4096)
        # All that were tried below are too large, and the last of those is next to it, or little room is left.
        largest_failed = max(n for n in counts if sizes[n] > limit)
        assert largest_failed < count
        assert limit - size <= slack or count - largest_failed <= resolution
    assert encodes <= 3 * math.log2(max(2, total)) + 6


def test_a_curve_that_tells_the_truth_needs_few_encodes() -> None:
    total = 1_000_000
    counts = np.linspace(0, total, 257)
    bits = 8 * (16_000_000 - 3e6 * (counts / total) ** 0.8)

    def real(count: int) -> range:
        return range(int(17_100_000 - 1.07 * 3e6 * (count / total) ** 0.8))

    for limit in (17_000_000, 16_000_000, 15_950_000, 14_000_000):
        count, file, encodes = fit(real, Many(total, bits), limit)
        assert limit - limit // 4096 - 1 <= len(file) <= limit
        assert encodes <= 4
        assert count > 0


@pytest.mark.parametrize(
    ("claims", "limit", "counts"),
    [(4, 85_020, [0, 75, 303, 301, 300]), (2, 65_020, [0, 350, 701, 700]), (0.5, 65_020, [0, 1000, 700])],
)
def test_a_curve_that_claims_too_much_is_corrected_at_once(claims: float, limit: int, counts: list[int]) -> None:
    """1,000 candidates save 50 bytes each. The first guess trusts the curve, and the next is right within a percent."""
    tried: list[int] = []

    def encode(count: int) -> range:
        tried.append(count)
        return range(100_000 - 50 * count)

    bits = 8 * claims * 100_000 * (1 - 0.5 * np.linspace(0, 1, 33))
    assert fit(encode, Many(1000, bits), limit)[0] == counts[-1] and tried == counts


def test_without_candidates_the_artifact_stays_as_it_is() -> None:
    assert fit(lambda count: range(500 + count), Many(0, np.zeros(2)), 100) == (0, range(500), 1)


def test_errors_and_entropy_of_pruned_codes_are_measured_again() -> None:
    tensors, weights, hessians = system()
    tensor = tensors[0]
    codes = Candidates(tensors, hessians).codes(40)[tensor.name]
    again = measure_again(tensor, codes, weights[tensor.name], hessians[tensor.name])
    weight, hessian = weights[tensor.name].double().numpy(), hessians[tensor.name].double().numpy()
    error = weight - codes.double().numpy() * tensor.scales.double().numpy()[:, None]
    assert again.weight_error == pytest.approx((error**2).sum() / (weight**2).sum(), rel=1e-5)
    assert again.hessian_error == pytest.approx(
        np.trace(error @ hessian @ error.T) / np.trace(weight @ hessian @ weight.T), rel=1e-4
    )
    assert again.code_bits == pytest.approx(order0_bits(codes) / codes.numel())
    assert again.hessian_error > tensor.hessian_error
    assert again.code_bits < tensor.code_bits
    assert torch.equal(again.codes, codes)
    assert again.scales is tensor.scales
    assert again.rtn_hessian_error == tensor.rtn_hessian_error


@pytest.mark.parametrize(
    ("sizes", "limit", "counts", "count"),
    [
        ([1000, 700, 400], 740, [0, 1], 1),  # the curve is right, and one fits with little room left
        ([1000, 999, 500], 600, [0, 2, 1], 2),  # with room left, the only number between is tried, which is too few
        ([1000, 990, 980, 300], 310, [0, 3], 3),
    ],
)
def test_small_searches_by_hand(sizes: list[int], limit: int, counts: list[int], count: int) -> None:
    tried: list[int] = []

    def encode(number: int) -> range:
        tried.append(number)
        return range(sizes[number])

    line = 8.0 * np.linspace(sizes[0], sizes[-1], len(sizes))
    assert fit(encode, Many(len(sizes) - 1, line), limit) == (count, range(sizes[count]), len(counts))
    assert tried == counts
