"""Two scorings of the same targets: every loss agrees on one device, single losses and the mean on two."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_evidence import evidence, judged

from bitgolf.audit.reproduction import compare_losses, judge_isolation, reproduction
from bitgolf.errors import RunError


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


@pytest.mark.parametrize(
    ("adapted", "device", "recorded", "world_size", "same"),
    [
        (False, "cpu", "here", 1, True), (False, "cpu", "here", 2, True), (False, "cpu", "there", 1, False),
        (False, "cuda", "here", 1, True), (True, "cpu", "here", 1, True), (True, "cpu", "here", 2, False),
        (True, "cuda", "here", 1, False), (True, "cpu", "there", 1, False),
    ],
)  # fmt: skip
def test_losses_agree_one_by_one_where_the_arithmetic_is_the_same(
    adapted: bool, device: str, recorded: str, world_size: int, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitgolf.audit.reproduction.device_name", lambda device: "here")
    nll = np.arange(8, dtype=np.float32)
    again = SimpleNamespace(losses=lambda: [(0, nll[:3].astype(np.float64)), (5, nll[5:] + 0.5e-4)], reaches_end=True)
    looked_at = evidence(
        nll=nll, tokens=np.zeros(9), again=again, entropy=7, score={"device": recorded, "world_size": world_size},
        headline=SimpleNamespace(adapted=adapted, device=torch.device(device)),
    )  # fmt: skip
    made = reproduction(looked_at)
    judged(made, "")
    assert made.evidence["same_kernels"] is same
    assert (made.evidence["blocks"], made.evidence["targets"], made.evidence["whole"]) == (2, 6, False)
    again.reaches_end = False
    made = reproduction(looked_at)
    assert made.verdict == "NOT RUN" and "the first 6 of 8 losses agree" in made.reason
    again.losses = lambda: [(0, nll + np.arange(8) * 1e-4)]
    assert reproduction(looked_at).verdict == ("FAIL" if same else "NOT RUN")
    looked_at.nll = nll[:7]
    with pytest.raises(RunError, match="7 losses for 8 validation targets"):
        reproduction(looked_at)


@pytest.mark.parametrize(("files", "how"), [("namespaces", "namespaces of its own"), ("landlock", "Landlock")])
def test_an_isolation_that_held_says_how_and_what_could_be_read(files: str, how: str) -> None:
    held: dict[str, Any] = {"files": files, "network": True, "closed": True, "user": 65534}
    held |= {"reachable": [], "writable": [], "still_open": [], "refused": []}
    own_library = "; the text is the interpreter's own library, readable until then"
    for in_libraries, end in ((False, "token"), (True, own_library)):
        made = judge_isolation(held, [], 7, text_in_libraries=in_libraries)
        assert made.verdict == "PASS" and made.evidence["text_in_libraries"] is in_libraries
        assert made.reason.startswith(f"7 targets scored in {how}, no network") and made.reason.endswith(end)
