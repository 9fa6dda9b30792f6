"""Two scorings of the same targets: every loss agrees on one device, single losses and the mean on two."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_evidence import judged

from bitgolf.audit.reproduction import compare_losses


@pytest.mark.parametrize("same_kernels", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0])
def test_a_loss_that_is_no_number_or_far_off_fails(value: float, same_kernels: bool) -> None:
    gap = np.zeros(1000)
    gap[7] = value
    judged(compare_losses(gap, same_kernels), "a loss differs by")


@pytest.mark.parametrize(("gap", "problem"), [(0.99e-4, ""), (-0.99e-4, ""), (1.01e-4, "a loss differs by 0.000101")])
def test_on_one_device_every_loss_agrees_to_a_ten_thousandth(gap: float, problem: str) -> None:
    judged(compare_losses(np.array([0.0, gap]), True), problem)


@pytest.mark.parametrize(("gap", "problem"), [(0.99, ""), (-0.99, ""), (1.01, "more than kernels scatter")])
def test_on_another_device_single_losses_agree_to_a_nat(gap: float, problem: str) -> None:
    judged(compare_losses(np.array([gap] + [-gap] + [0.0] * 98), False), problem)


@pytest.mark.parametrize("count", [100, 10_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_on_another_device_the_mean_agrees_to_four_standard_errors(count: int, sign: int) -> None:
    tolerance = 0.0001 + 0.02 / math.sqrt(count)  # docs/auditing.md
    judged(compare_losses(np.full(count, sign * 0.99 * tolerance), False), "")
    judged(compare_losses(np.full(count, sign * 1.01 * tolerance), False), "on average")
