"""Checks of bytes and clocks: a clean record passes, each changed one fails and names the problem."""

from pathlib import Path
from typing import Any

import pytest
from fake_evidence import budget, evidence, file_of, judged, limits

from bitgolf.audit import budgets
from bitgolf.audit.budgets import artifact_bytes, eval_clock, train_clock
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.errors import DataError

PACK = {"model_bytes": 900, "code_bytes": 80, "total_bytes": 980}


@pytest.fixture
def weigh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def check(model: int, code: int, cap: float, pack: dict[str, Any], charged: float) -> Finding:
        monkeypatch.setattr(budgets, "code_bytes", lambda config: code)
        return artifact_bytes(
            evidence(
                config=limits(artifact_bytes=cap),
                require=file_of(model, tmp_path),
                pack=pack,
                budget=budget(artifact_bytes=charged),
            )
        )

    return check


@pytest.mark.parametrize(
    ("model", "code", "cap", "pack", "charged", "problem"),
    [
        (900, 80, 980, {}, 980, ""),
        (900, 70, 980, {}, 980, ""),  # other code than at packing time: reported, not failed
        (900, 80, 979, {}, 980, "1 over the cap of 979"),
        (900, 90, 985, {}, 980, "5 over the cap"),
        (901, 80, 1000, {}, 980, "claims 900 bytes of model, the file has 901"),
        (900, 80, 1000, {"total_bytes": 970}, 970, "is not its model 900 + code 80"),
        (900, 10, 970, {}, 980, "itself claims 980"),
        (900, 80, 1000, {}, 900, "charged 900 bytes"),
    ],
)
def test_artifact_bytes(
    weigh: Any, model: int, code: int, cap: float, pack: dict[str, int], charged: float, problem: str
) -> None:
    judged(weigh(model, code, cap, PACK | pack, charged), problem)


@pytest.mark.parametrize("pack", [{}, {**PACK, "code_bytes": "80"}, {**PACK, "model_bytes": True}])
def test_artifact_bytes_of_a_damaged_record(weigh: Any, pack: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="has no number"):
        weigh(900, 80, 1000, pack, 980)


def log(*events: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"event": name, "elapsed_seconds": seconds} for name, seconds in events]


def trained(charged: float, events: list[dict[str, Any]]) -> Finding:
    return train_clock(evidence(config=limits(train_seconds=100), budget=budget(train_seconds=charged), events=events))


CLEAN_LOG = log(("start", 0), ("step", 50), ("step", 92), ("calibration", 99), ("end", 99.5))


@pytest.mark.parametrize(
    ("charged", "events", "problem"),
    [
        (99.5, CLEAN_LOG, ""),
        (99.4, CLEAN_LOG, ""),
        (99.5, [*CLEAN_LOG[:-1], {"event": "note"}, CLEAN_LOG[-1]], ""),
        (99.5, log(("start", 0), ("step", 50), ("resume", 40), ("step", 60), ("calibration", 99), ("end", 99.5)), ""),
        (100.2, CLEAN_LOG, "0.20 over the budget of 100 s"),
        (92.0, CLEAN_LOG, "92.00 s were charged, the log runs to 99.50 s"),
        (99.5, log(("start", 0), ("step", 99), ("calibration", 104), ("end", 104)), "4.00 over the budget"),
        (99.5, log(("start", 0), ("step", 50), ("step", 40), ("end", 99.5)), "runs back from 50.00 s to 40.00 s"),
        (99.5, log(("start", 0), ("step", float("nan")), ("end", 99.5)), "runs back from 0.00 s to nan s"),
        (99.5, [*CLEAN_LOG, *log(("calibration", 99.8))], "goes on after `end`"),
    ],
)
def test_train_clock(charged: float, events: list[dict[str, Any]], problem: str) -> None:
    judged(trained(charged, events), problem)


def test_train_clock_needs_the_end() -> None:
    with pytest.raises(MissingEvidence, match="no `end` event"):
        trained(99, CLEAN_LOG[:-1])
    with pytest.raises(DataError, match="elapsed_seconds"):
        trained(99, [{"event": "end", "elapsed_seconds": "99"}])


def evaluated(charged: float, methods: dict[str, float], claimed: float = 0, untimed: float = 0) -> Finding:
    score = {"methods": {name: {"seconds": took} for name, took in methods.items()}, "evaluation_seconds": claimed}
    spent = budget(eval_seconds=charged, untimed=untimed)
    return eval_clock(evidence(config=limits(eval_seconds=100), budget=spent, score=score))


@pytest.mark.parametrize(
    ("charged", "methods", "claimed", "problem"),
    [
        (90, {"chunked": 20, "sliding": 69}, 91, ""),
        (
            90,
            {"chunked": 20, "sliding": 69},
            3,
            "score.json gives 3.00 s for the evaluation, and 89.00 s for its passes",
        ),
        (101, {"sliding": 69}, 69, "1.00 over the budget of 100 s"),
        (90, {"sliding": 69}, 112, "12.00 over"),
        (60, {"sliding": 69}, 61, "60.00 s were charged, scoring alone took 69.00 s"),
    ],
)
def test_eval_clock(charged: float, methods: dict[str, float], claimed: float, problem: str) -> None:
    judged(evaluated(charged, methods, claimed), problem)


def test_eval_clock_needs_a_charge_and_counts_all_of_it() -> None:
    with pytest.raises(MissingEvidence, match="eval_seconds"):
        evaluated(0, {})
    judged(evaluated(50, {"sliding": 49}, 50, untimed=3), "3.00 s of evaluation are booked as untimed")
