"""Checks of records: a clean record passes, each doctored one fails and says what is wrong."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from toy_models import CausalModel, UnigramCache, toy_tokens

from bitgolf.audit import checks
from bitgolf.audit.verdict import Check, MissingEvidence, Verdict
from bitgolf.errors import DataError
from bitgolf.evaluate import ScoreTape, bits_per_byte, evaluate, make_scorer

PACK = {"model_bytes": 900, "code_bytes": 80, "total_bytes": 980}


@pytest.mark.parametrize(
    "model, code, limit, pack, charged, problem",
    [
        (900, 80, 980, {}, 980, ""),
        (900, 70, 980, {}, 980, ""),  # other code than at packing time: noted, not failed
        (900, 80, 979, {}, 980, "1 over the cap of 979"),
        (900, 90, 985, {}, 980, "5 over the cap"),
        (901, 80, 1000, {}, 980, "claims 900 bytes of model, the file has 901"),
        (900, 80, 1000, {"total_bytes": 970}, 970, "is not its model 900 + code 80"),
        (900, 10, 970, {}, 980, "itself claims 980"),
        (900, 80, 1000, {}, 900, "charged 900 bytes"),
    ],
)
def test_artifact_bytes(model, code, limit, pack, charged, problem) -> None:
    judged(checks.artifact_bytes(model, code, limit, {**PACK, **pack}, charged), problem)


@pytest.mark.parametrize("pack", [{}, {**PACK, "code_bytes": "80"}, {**PACK, "model_bytes": True}])
def test_artifact_bytes_of_a_damaged_record(pack: dict) -> None:
    with pytest.raises(DataError, match="has no number"):
        checks.artifact_bytes(900, 80, 1000, pack, 980)


def log(*events: tuple[str, float]) -> list[dict]:
    return [{"event": name, "elapsed_seconds": seconds} for name, seconds in events]


CLEAN_LOG = log(("start", 0), ("step", 50), ("step", 92), ("calibration", 99), ("end", 99.5))


@pytest.mark.parametrize(
    "charged, events, problem",
    [
        (99.5, CLEAN_LOG, ""),
        (99.4, CLEAN_LOG, ""),
        (99.5, [*CLEAN_LOG[:-1], {"event": "note"}, CLEAN_LOG[-1]], ""),
        (99.5, log(("start", 0), ("step", 50), ("resume", 40), ("step", 60), ("calibration", 99), ("end", 99.5)), ""),
        (100.2, CLEAN_LOG, "0.20 over the budget of 100 s"),
        (92.0, CLEAN_LOG, "92.00 s were charged, the log runs to 99.50 s"),
        (99.5, log(("start", 0), ("step", 99), ("calibration", 104), ("end", 104)), "4.00 over the budget"),
        (99.5, log(("start", 0), ("step", 50), ("step", 40), ("end", 99.5)), "runs back from 50.00 s to 40.00 s"),
        (99.5, [*CLEAN_LOG, *log(("calibration", 99.8))], "goes on after `end`"),
    ],
)
def test_train_clock(charged: float, events: list[dict], problem: str) -> None:
    judged(checks.train_clock(charged, 100, events), problem)


def test_train_clock_needs_the_end() -> None:
    with pytest.raises(MissingEvidence, match="no `end` event"):
        checks.train_clock(99, 100, CLEAN_LOG[:-1])
    with pytest.raises(DataError, match="elapsed_seconds"):
        checks.train_clock(99, 100, [{"event": "end", "elapsed_seconds": "99"}])


@pytest.mark.parametrize(
    "charged, methods, claimed, problem",
    [
        (90, {"chunked": 20, "sliding": 69}, 91, ""),
        (101, {"sliding": 69}, 0, "1.00 over the budget of 100 s"),
        (90, {"sliding": 69}, 112, "12.00 over"),
        (60, {"sliding": 69}, 61, "60.00 s were charged, scoring alone took 69.00 s"),
    ],
)
def test_eval_clock(charged, methods, claimed, problem) -> None:
    judged(checks.eval_clock(charged, 100, methods, claimed), problem)


def test_eval_clock_needs_a_charge() -> None:
    with pytest.raises(MissingEvidence, match="eval_seconds"):
        checks.eval_clock(0, 100, {})


def test_sealed_and_disjoint() -> None:
    judged(checks.artifact_sealed("ab" * 32, "ab" * 32), "")
    judged(checks.artifact_sealed("ab" * 32, "cd" * 32), "changed after scoring")
    judged(checks.disjoint_splits(50, 5, 0), "")
    judged(checks.disjoint_splits(50, 5, 2), "2 training documents are validation documents too")
    for train, val in ((0, 5), (50, 0)):
        with pytest.raises(MissingEvidence):
            checks.disjoint_splits(train, val, 0)


TOKENS = toy_tokens(61)


@pytest.fixture(scope="module")
def scored() -> tuple[dict, np.ndarray]:
    """Ledger and losses of a real adaptive evaluation in four chunks of 15 targets."""
    tape, adapter = ScoreTape(TOKENS), UnigramCache(CausalModel())
    scorer = make_scorer("sliding", adapter, window=8, stride=4, batch_tokens=16, device="cpu")
    nll = evaluate(tape, scorer, adapter, chunk_targets=15)
    return json.loads(json.dumps(tape.event_log)), nll


def check_ledger(ledger: dict, num_losses: int = 60, tokens: int = 61) -> set[str]:
    """Names of the ledger checks that fail."""
    digest = ScoreTape(TOKENS).event_log["tokens_sha256"]
    found = [checks.scored_once(ledger, tokens, digest, num_losses), checks.score_first(ledger)]
    return {check.name for check in found if check.verdict == "FAIL"}


def test_real_ledger_passes(scored) -> None:
    assert [event["event"] for event in scored[0]["events"]] == ["score", "update"] * 3 + ["score"]
    assert check_ledger(scored[0]) == set()


def second_score(events: list) -> None:
    events.insert(2, {"event": "score", "targets": [0, 15], "state": 1})


def skipped_targets(events: list) -> None:
    events[2]["targets"][0] = 16


def missing_tail(events: list) -> None:
    events[-1]["targets"][1] = 59


def other_order(events: list) -> None:
    events[0]["targets"], events[2]["targets"] = events[2]["targets"], events[0]["targets"]


def update_on_unscored(events: list) -> None:
    events[1]["tokens"][1] = 17


def update_before_score(events: list) -> None:
    events[0], events[1] = events[1], events[0]


def hidden_update(events: list) -> None:
    del events[1]


def forged_state(events: list) -> None:
    events[2]["state"] = 0


@pytest.mark.parametrize(
    "doctor, caught_by",
    [
        (second_score, {"scored-once"}),
        (skipped_targets, {"scored-once"}),
        (missing_tail, {"scored-once"}),
        (other_order, {"scored-once"}),
        (update_on_unscored, {"score-first"}),
        (update_before_score, {"score-first"}),
        (hidden_update, {"score-first"}),
        (forged_state, {"score-first"}),
    ],
)
def test_doctored_ledgers(scored, doctor, caught_by: set[str]) -> None:
    ledger = copy.deepcopy(scored[0])
    doctor(ledger["events"])
    assert caught_by <= check_ledger(ledger)
    if caught_by == {"score-first"}:
        assert check_ledger(ledger) == caught_by


def test_ledger_of_other_tokens_or_losses(scored) -> None:
    assert check_ledger(scored[0], num_losses=59) == {"scored-once"}
    assert check_ledger(scored[0], tokens=62) == {"scored-once"}
    assert check_ledger({**scored[0], "tokens_sha256": "0" * 64}) == {"scored-once"}


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
def test_damaged_ledgers_are_named(events) -> None:
    for check in (lambda ledger: checks.scored_once(ledger, 61, "", 60), checks.score_first):
        with pytest.raises(DataError, match="not an event log"):
            check({"events": events})


SCORE = {"val_tokens": 61, "val_bytes": 200}
HEADLINE = {"tokens": 60, "bytes": 200}
MANIFEST = {"tokens": 61, "documents": 3, "bytes": 200}


@pytest.mark.parametrize(
    "manifest, score, headline, problem",
    [
        ({}, {}, {}, ""),
        ({"bytes": 201}, {}, {}, "manifest bytes: 201 claimed, 200 counted"),
        ({"documents": 4}, {}, {}, "manifest documents: 4 claimed, 3 counted"),
        ({"tokens": 60}, {}, {}, "manifest tokens"),
        ({}, {"val_bytes": 210}, {}, "score.json val_bytes: 210 claimed"),
        ({}, {"val_tokens": 60}, {}, "score.json val_tokens"),
        ({}, {}, {"tokens": 56}, "scored tokens: 56 claimed, 60 counted"),
        ({}, {}, {"bytes": 208}, "scored bytes: 208 claimed"),
    ],
)
def test_counts(manifest, score, headline, problem) -> None:
    judged(checks.counts(61, 3, 200, {**MANIFEST, **manifest}, {**SCORE, **score}, {**HEADLINE, **headline}), problem)


def test_counts_need_the_bytes_of_the_documents() -> None:
    with pytest.raises(MissingEvidence, match="bytes of the validation documents"):
        checks.counts(61, 3, 200, {**MANIFEST, "bytes": None}, SCORE, HEADLINE)


def score_entry(nll: np.ndarray) -> dict:
    costs = np.full(len(nll), 3)
    costs[0] = 20
    return bits_per_byte(nll, costs).to_json()


@pytest.mark.parametrize(
    "change, problem",
    [
        ({}, ""),
        ({"bpb": "round"}, ""),
        ({"bpb": 0.999}, "sliding bpb is"),
        ({"loss_nats": 0.999}, "sliding loss_nats is"),
    ],
)
def test_identity(scored, change: dict, problem: str) -> None:
    nll, entry = scored[1], score_entry(scored[1])
    for key, factor in change.items():
        entry[key] = round(entry[key], 8) if factor == "round" else entry[key] * factor
    methods = {"chunked": score_entry(nll + 1), "sliding": entry}
    judged(checks.identity(nll, entry["bytes"], methods, "sliding"), problem)


def test_identity_holds_for_every_method(scored) -> None:
    nll, entry = scored[1], score_entry(scored[1])
    other = {**score_entry(nll + 1), "bpb": score_entry(nll)["bpb"]}
    judged(checks.identity(nll, entry["bytes"], {"chunked": other, "sliding": entry}, "sliding"), "chunked: bpb / loss")
    judged(checks.identity(nll, entry["bytes"] + 3, {"sliding": entry}, "sliding"), "sliding bpb is")
    judged(checks.identity(nll, entry["bytes"], {"sliding": {**entry, "loss_nats": 0.0}}, "sliding"), "loss_nats is 0")


def test_identity_refuses_losses_that_are_not_losses(scored) -> None:
    entry = score_entry(scored[1])
    for bad in (math.nan, math.inf, -3.0):
        nll = scored[1].copy()
        nll[5] = bad
        found = checks.identity(nll, entry["bytes"], {"sliding": entry}, "sliding")
        assert found.verdict == "FAIL" and "negative or not finite" in found.reason
        json.dumps(Verdict((found,)).to_json(), allow_nan=False)


def judged(check: Check, problem: str) -> None:
    """`problem` empty: the check passed; else it failed and names the problem."""
    assert check.verdict == ("FAIL" if problem else "PASS"), check
    assert problem in check.reason
    json.dumps(check.evidence, allow_nan=False)
