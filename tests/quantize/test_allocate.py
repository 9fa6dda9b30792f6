"""Allocation against brute force over steps, and the search for theta on artificial sizes."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.quantize.allocate import TensorCurvature, equal_slope_steps, predicted_increase
from bitgolf.quantize.find_theta import find_theta

TENSORS = {"a": TensorCurvature(1000, 3e-4), "b": TensorCurvature(4000, 2e-5), "c": TensorCurvature(500, 8e-3)}


def bits(tensors: dict[str, TensorCurvature], steps: dict[str, float]) -> float:
    return sum(tensors[name].num_weights * (2.05 - math.log2(step)) for name, step in steps.items())


def test_no_other_steps_of_the_same_size_cost_less() -> None:
    best = equal_slope_steps(TENSORS, -3.0)
    total_bits, cost = bits(TENSORS, best), predicted_increase(TENSORS, best)
    assert cost == pytest.approx(sum(t.nats_per_squared_step * best[n] ** 2 for n, t in TENSORS.items()))
    tried = 0
    for x, y in itertools.product([k / 20 for k in range(-20, 21)], repeat=2):
        other = {"a": best["a"] * 2**x, "b": best["b"] * 2**y}
        left = total_bits - bits(TENSORS, other)
        other["c"] = 2 ** (2.05 - left / TENSORS["c"].num_weights)
        assert bits(TENSORS, other) == pytest.approx(total_bits)
        assert predicted_increase(TENSORS, other) >= cost * (1 - 1e-9)
        tried += 1
    assert tried == 41**2
    slopes = [TENSORS[n].nats_per_squared_step * s**2 / TENSORS[n].num_weights for n, s in best.items()]
    assert slopes == pytest.approx([2**-3.0] * 3)  # loss per bit, up to 2 ln 2


@settings(max_examples=200, deadline=None)
@given(
    cap=st.integers(60_000, 900_000), start=st.floats(-30, 10), bend=st.floats(0, 0.4), rough=st.integers(0, 60),
    fixed=st.integers(0, 15_000),
)  # fmt: skip
def test_the_search_ends_within_the_slack(cap: int, start: float, bend: float, rough: int, fixed: int) -> None:
    """Sizes that fall as real ones do: linear at fine steps, flatter at coarse ones, a little rough."""
    num_weights = 1_000_000

    def size(x: float) -> int:
        bits = math.log1p(math.exp(-(x - 1) * math.log(2) / 2)) / math.log(2)  # per weight
        return fixed + int(num_weights / 8 * bits * (1 + bend * math.exp(-bits))) + hash(round(x * 1e6)) % (rough + 1)

    def straight(x: float) -> float:  # a forecast of the wrong level and without the bend
        return cap - 200 + (start - x) * num_weights / 16

    outcome = find_theta(size, cap, forecast=straight, slack=400, reach=0, max_passes=40, lowest=-40, highest=30)
    assert outcome is not None and cap - 400 <= outcome.size <= cap
    assert size(outcome.log2_theta) == outcome.size and (outcome.log2_theta, outcome.size) in outcome.passes
    assert len(outcome.passes) <= 14


@settings(max_examples=100, deadline=None)
@given(cap=st.integers(8_000_000, 20_000_000), level=st.floats(-0.03, 0.03), slope=st.floats(0.94, 1.06))
def test_a_good_forecast_needs_three_files(cap: int, level: float, slope: float) -> None:
    """Level off by 3 %, slope by 6 %: within reach of single tensors after three whole files at most."""

    def size(x: float) -> int:
        return int(60_000 + 36e6 / 8 * math.log2(1 + 2 ** (-x / 2)) + hash(round(x * 1e6)) % 200)

    def forecast(x: float) -> float:
        return level * cap + slope * 36e6 / 8 * math.log2(1 + 2 ** (-x / 2))

    outcome = find_theta(size, cap, forecast=forecast, slack=500, reach=4000, max_passes=3, lowest=-40, highest=30)
    assert outcome is not None and abs(outcome.size - (cap - 250)) <= 4000
    assert (outcome.log2_theta, outcome.size) == outcome.passes[-1]


def test_what_is_in_reach_ends_the_search_above_the_cap_or_below() -> None:
    for off in (-3_000, 3_000):
        outcome = find_theta(
            lambda x, off=off: int(2_000_000 - 62_500 * x) + off, 1_654_321, forecast=lambda x: 2_000_000 - 62_500 * x,
            slack=500, reach=3_500, max_passes=9, lowest=-20, highest=20,
        )  # fmt: skip
        assert (
            outcome is not None and len(outcome.passes) == 1 and outcome.size == pytest.approx(1_654_071 + off, abs=2)
        )


def test_no_files_are_wasted_on_a_jump() -> None:
    outcome = find_theta(
        lambda x: int(2_000_000 - 62_500 * x) + 9_000 * (x < 5.57), 1_655_000,
        forecast=lambda x: 2_000_000 - 62_500 * x, slack=500, reach=0, max_passes=30, lowest=-20, highest=20,
    )  # fmt: skip
    assert outcome is not None and 1_655_000 - 4_000 < outcome.size < 1_655_000 - 500 and len(outcome.passes) <= 14


def test_a_linear_size_needs_three_passes() -> None:
    outcome = find_theta(
        lambda x: int(2_000_000 - 62_500 * x), 1_654_321, forecast=lambda x: -62_500 * x, slack=500, reach=0,
        max_passes=9, lowest=-20, highest=20,
    )  # fmt: skip
    assert outcome is not None and 0 <= 1_654_321 - outcome.size <= 500 and len(outcome.passes) == 2


def test_bounds_end_the_search() -> None:
    def search_between(cap: int) -> object:
        return find_theta(
            lambda x: int(1000 - 100 * x), cap, forecast=lambda x: -100 * x, slack=5, reach=0, max_passes=30,
            lowest=-3, highest=3,
        )  # fmt: skip

    assert search_between(699) is None  # even the coarsest has 700 bytes
    finest = search_between(5000)
    assert finest is not None and finest.log2_theta == -3 and finest.size == 1300  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "reach", "ends"),
    [(1000, 0, True), (900, 0, True), (899, 0, False), (1001, 0, False), (1030, 80, True), (1031, 80, False),
     (870, 80, True), (869, 80, False)],
)  # fmt: skip
def test_a_file_at_the_border_of_slack_or_reach_ends_the_search(size: int, reach: int, ends: bool) -> None:
    """The cap is 1000 and the slack 100, so the middle is 950."""
    sizes = iter([size, 950])
    outcome = find_theta(
        lambda _: next(sizes), 1000, forecast=lambda x: 950 - 100 * x, slack=100, reach=reach, max_passes=2,
        lowest=-20, highest=20,
    )  # fmt: skip
    assert outcome is not None and [made for _, made in outcome.passes] == ([size] if ends else [size, 950])
    assert outcome.size == outcome.passes[-1][1]
