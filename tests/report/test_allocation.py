"""The report's account of packing to the byte, against numbers made by hand."""

from typing import Any

import pytest

from bitgolf.report.allocation import outcome, rate_distortion, shares


def packed() -> dict[str, Any]:
    """Two query matrices and a table: 6,000 weights."""
    return {
        "total_bytes": 10_000,
        "code_bytes": 4_000,
        "cap_bytes": 10_100,
        "allocation": {
            "predicted_nats": 0.008,
            "passes": [{"log2_theta": -1.0, "model_bytes": 6_100}, {"log2_theta": -0.9, "model_bytes": 6_000}],
            "tensors": {
                "blocks.0.attention.query.weight": {"predicted_nats": 0.002},
                "embedding": {"predicted_nats": 0.002},
                "blocks.1.attention.query.weight": {"predicted_nats": 0.004},
            },
        },
        "tensors": {
            "blocks.0.attention.query.weight": {"shape": [20, 100], "bytes": 500, "code_bits": 1.5},
            "embedding": {"shape": [10, 100], "bytes": 1_000, "code_bits": 7.5},
            "blocks.1.attention.query.weight": {"shape": [30, 100], "bytes": 1_500, "code_bits": 3.5},
            "q_gain": {"shape": [8], "bytes": 16},
        },
    }


def test_shares_add_up_by_role() -> None:
    query, table = shares(packed())
    assert (query.role, query.weights, query.bits) == ("attention.query", 5_000, 8 * 2_000 / 5_000)
    assert query.entropy_bits == pytest.approx((2_000 * 1.5 + 3_000 * 3.5) / 5_000) and query.percent == 75
    assert (table.role, table.weights, table.bits, table.entropy_bits, table.percent) == (
        "embedding",
        1_000,
        8,
        7.5,
        25,
    )


def test_shares_of_no_increase_are_zero() -> None:
    pack = packed()
    pack["allocation"]["predicted_nats"] = 0.0
    assert [share.percent for share in shares(pack)] == [0.0, 0.0]


def test_the_curve_passes_through_the_run_and_quadruples_a_bit_below() -> None:
    chart = rate_distortion(packed())
    assert chart is not None and chart.marks == ((10_100.0, "cap"),)
    points = dict(zip(chart.x, chart.y, strict=True))
    assert points[10_000] == pytest.approx(0.008)
    assert points[10_000 - 6_000 / 8] == pytest.approx(0.032)  # one bit per weight less
    assert points[10_000 + 6_000 / 8] == pytest.approx(0.002)
    assert list(chart.x) == sorted(chart.x) and list(chart.y) == sorted(chart.y, reverse=True)
    assert min(rate_distortion(packed() | {"code_bytes": 9_900}).x) > 9_900  # type: ignore[union-attr]


def test_measured_beside_predicted() -> None:
    score = {
        "methods": {"chunked": {"loss_nats": 1.25}, "sliding": {"loss_nats": 1.1}},
        "float": {"chunked": {"loss_nats": 1.24}},
    }
    scored = outcome(packed(), score)
    assert (
        scored is not None
        and scored.predicted == 0.008
        and scored.measured == pytest.approx(0.01)
        and scored.passes == 2
    )
    unscored = outcome(packed(), None)
    assert unscored is not None and unscored.measured is None


def test_other_methods_have_no_allocation() -> None:
    plain = packed() | {"allocation": None}
    assert outcome(plain, None) is None and shares(plain) == [] and rate_distortion(plain) is None


def test_the_curve_ends_above_the_size_of_the_code() -> None:
    chart = rate_distortion(packed())
    assert chart is not None and len(chart.x) > 3
    fewer = rate_distortion(packed() | {"code_bytes": chart.x[1]})
    assert fewer is not None and fewer.x == chart.x[2:]
