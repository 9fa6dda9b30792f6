"""Checks of the tape's event log: a real one passes, each changed one fails."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_evidence import evidence
from toy_models import CausalModel, UnigramCache, make_scorer, toy_tokens

from bitgolf.audit.tape_log import score_first, scored_once
from bitgolf.errors import DataError
from bitgolf.evaluate import ScoreTape, evaluate

TOKENS = toy_tokens(61)


@pytest.fixture(scope="module")
def event_log() -> dict[str, Any]:
    """Of a real adaptive evaluation in four chunks of 15 targets."""
    tape, adapter = ScoreTape(TOKENS), UnigramCache(CausalModel())
    scorer = make_scorer("sliding", adapter, window=8, stride=4, batch_tokens=16)
    evaluate(tape, scorer, adapter, chunk_targets=15)
    return json.loads(json.dumps(tape.event_log))  # type: ignore[no-any-return]


def failing(log: dict[str, Any], num_losses: int = 60, tokens: np.ndarray = TOKENS) -> set[str]:
    """Names of the checks that fail."""
    looked_at = evidence(event_log=log, tokens=tokens, nll=np.zeros(num_losses))
    findings = {"scored-once": scored_once(looked_at), "score-first": score_first(looked_at)}
    return {name for name, finding in findings.items() if finding.verdict == "FAIL"}


def test_a_real_log_passes(event_log: dict[str, Any]) -> None:
    assert [event["event"] for event in event_log["events"]] == ["score", "update"] * 3 + ["score"]
    assert failing(event_log) == set()


def second_score(events: list[Any]) -> None:
    events.insert(2, {"event": "score", "targets": [0, 15], "state": 1})


def skipped_targets(events: list[Any]) -> None:
    events[2]["targets"][0] = 16


def missing_tail(events: list[Any]) -> None:
    events[-1]["targets"][1] = 59


def other_order(events: list[Any]) -> None:
    events[0]["targets"], events[2]["targets"] = events[2]["targets"], events[0]["targets"]


def update_on_unscored(events: list[Any]) -> None:
    events[1]["tokens"][1] = 17


def update_before_score(events: list[Any]) -> None:
    events[0], events[1] = events[1], events[0]


def hidden_update(events: list[Any]) -> None:
    del events[1]


def forged_state(events: list[Any]) -> None:
    events[2]["state"] = 0


def forged_update(events: list[Any]) -> None:
    next(event for event in events if event["event"] == "update")["state"] = 9


@pytest.mark.parametrize(
    ("change", "caught_by"),
    [
        (second_score, "scored-once"),
        (skipped_targets, "scored-once"),
        (missing_tail, "scored-once"),
        (other_order, "scored-once"),
        (update_on_unscored, "score-first"),
        (update_before_score, "score-first"),
        (hidden_update, "score-first"),
        (forged_state, "score-first"),
        (forged_update, "score-first"),
    ],
)
def test_changed_logs(event_log: dict[str, Any], change: Callable[[list[Any]], None], caught_by: str) -> None:
    log = copy.deepcopy(event_log)
    change(log["events"])
    assert caught_by in failing(log)
    if caught_by == "score-first":
        assert failing(log) == {caught_by}


def test_logs_of_other_tokens_or_losses(event_log: dict[str, Any]) -> None:
    assert failing(event_log, num_losses=59) == {"scored-once"}
    assert failing(event_log, tokens=toy_tokens(62)) == {"scored-once"}
    assert failing({**event_log, "tokens_sha256": "0" * 64}) == {"scored-once"}


@pytest.mark.parametrize(
    "events",
    [
        None,
        [{"event": "score"}],
        [{"event": "peek", "tokens": [0, 1], "state": 0}],
        [{"event": "score", "targets": [0, 1.5], "state": 0}],
        "score",
    ],
)
def test_damaged_logs_are_named(events: Any) -> None:
    looked_at = evidence(event_log={"events": events}, tokens=TOKENS, nll=np.zeros(60))
    for check in (scored_once, score_first):
        with pytest.raises(DataError, match="not an event log"):
            check(looked_at)
