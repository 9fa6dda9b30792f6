"""The score tape refuses reads and scores against the rules, and its event log is complete."""

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import CausalModel, UnigramCache, make_scorer, toy_tokens

from bitgolf.errors import DataError, RuleViolation
from bitgolf.evaluate import ScoreTape, evaluate


def losses(count: int) -> np.ndarray:
    return np.linspace(0.5, 2.0, count, dtype=np.float32)


@pytest.mark.parametrize("tokens", [np.zeros(1, np.int64), np.zeros((2, 2), np.int64), np.zeros(4)])
def test_tape_needs_a_row_of_integers(tokens: np.ndarray) -> None:
    with pytest.raises(DataError, match="score tape"):
        ScoreTape(tokens)


@pytest.mark.parametrize(
    "start, stop, nll, message",
    [
        (5, 7, losses(2), "leave a gap: the next target is 4"),
        (3, 6, losses(3), "already scored"),
        (0, 4, losses(4), "already scored"),
        (4, 4, losses(0), "not on the tape"),
        (4, 10, losses(6), "not on the tape, which has targets 0..8"),
        (4, 6, losses(3), "need 2 losses"),
        (4, 6, losses(2)[:, None], "need 2 losses"),
        (4, 6, np.array([1, 2]), "floats"),
        (4, 6, np.array([1.0, np.nan]), "loss of target 5 is nan"),
        (4, 6, np.array([np.inf, 1.0]), "loss of target 4 is inf"),
        (4, 6, np.array([1.0, -0.01]), "loss of target 5 is -0.01 nats, a probability above one"),
    ],
)
def test_commit_refuses(start: int, stop: int, nll: np.ndarray, message: str) -> None:
    tape = ScoreTape(np.arange(10))
    tape.commit(0, 4, losses(4))
    with pytest.raises(RuleViolation, match=message):
        tape.commit(start, stop, nll)
    assert tape.num_scored == 4, "a refused commit leaves the tape as it was"
    np.testing.assert_array_equal(tape.nll, losses(4))


def test_rounding_below_zero_is_accepted() -> None:
    tape = ScoreTape(np.arange(3))
    tape.commit(0, 2, np.array([-1e-6, 0.0]))
    assert tape.complete


def test_tokens_are_revealed_by_their_score() -> None:
    tape = ScoreTape(np.arange(10, 20))
    assert tape.revealed(0, 1).tolist() == [10], "the first token is given"
    with pytest.raises(RuleViolation, match=r"only tokens 0\.\.0 may be read"):
        tape.revealed(0, 2)
    tape.commit(0, 4, losses(4))
    assert tape.revealed(2, 5).tolist() == [12, 13, 14]
    for start, stop in ((4, 6), (-1, 2), (3, 2)):
        with pytest.raises(RuleViolation):
            tape.revealed(start, stop)


def test_chunk_reader_ends_with_the_chunk_and_hands_out_copies() -> None:
    tokens = np.arange(10, 20)
    tape = ScoreTape(tokens)
    read = tape.chunk(4)
    assert read(0, 5).tolist() == [10, 11, 12, 13, 14]
    with pytest.raises(RuleViolation, match=r"ends at target 4 asked for tokens 0\.\.5"):
        read(0, 6)
    read(0, 5)[:] = 0
    assert read(0, 5).base is None and tokens[0] == 10
    with pytest.raises(RuleViolation, match="cannot be opened"):
        tape.chunk(10)


def test_updates_need_scored_tokens() -> None:
    tape = ScoreTape(np.arange(10))
    tape.commit(0, 4, losses(4))
    with pytest.raises(RuleViolation, match=r"only tokens 0\.\.4 are scored"):
        tape.record_update(0, 6)
    tape.record_update(1, 5)
    assert tape.state == 1


def test_an_update_is_logged_with_all_that_the_adapter_read() -> None:
    class ReadsTwice:
        def update(self, revealed, start: int, stop: int) -> None:
            for first, last in ((4, 7), (2, 5), (stop, stop + 1)):
                revealed(first, last)

    tape = ScoreTape(np.arange(21))
    scorer = make_scorer("chunked", CausalModel(21), window=5, stride=5, batch_tokens=5)
    evaluate(tape, scorer, ReadsTwice(), chunk_targets=10)
    assert [e["tokens"] for e in tape.event_log["events"] if e["event"] == "update"] == [[2, 11]]


def test_the_event_log_merges_scores_in_a_row() -> None:
    tape = ScoreTape(np.arange(10, dtype=np.uint16))
    for start in range(0, 4, 2):
        tape.commit(start, start + 2, losses(2))
    tape.record_update(1, 5)
    for start in range(4, 9):
        tape.commit(start, start + 1, losses(1))
    log = tape.event_log
    assert log["events"] == [
        {"event": "score", "targets": [0, 4], "state": 0},
        {"event": "update", "tokens": [1, 5], "state": 1},
        {"event": "score", "targets": [4, 9], "state": 1},
    ]
    assert (log["num_tokens"], log["num_targets"], log["num_scored"]) == (10, 9, 9)
    assert log["tokens_sha256"] == hashlib.sha256(struct.pack("<10I", *range(10))).hexdigest()
    assert json.loads(json.dumps(log)) == log
    log["events"][0]["targets"][1] = 99
    assert tape.event_log["events"][0]["targets"] == [0, 4], "the property is a copy"


class Recorder:
    """A scorer that records its calls; the loss of every target is the index of its chunk."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def score(self, read, start, stop, tick=None):
        self.asked.append((start, stop))
        return np.full(stop - start, float(len(self.asked)), dtype=np.float32)

    def distributions(self, read, start, stop):
        raise AssertionError("not part of scoring")


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[int, int, list[int]]] = []

    def update(self, revealed, start, stop):
        self.heard.append((start, stop, revealed(start + 1, stop + 1).tolist()))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 45))
def test_evaluate_scores_then_adapts(num_tokens: int, chunk: int) -> None:
    tokens = np.arange(100, 100 + num_tokens)
    tape, scorer, adapter, reports = ScoreTape(tokens), Recorder(), Listener(), []
    nll = evaluate(tape, scorer, adapter, lambda *event: reports.append(event), chunk_targets=chunk)
    expected = [(a, min(a + chunk, num_tokens - 1)) for a in range(0, num_tokens - 1, chunk)]
    assert scorer.asked == expected
    assert adapter.heard == [(a, b, list(range(101 + a, 101 + b))) for a, b in expected[:-1]]
    assert nll.tolist() == [i // chunk + 1 for i in range(num_tokens - 1)]
    assert tape.state == len(expected) - 1
    assert reports[0][1:3] == (0, num_tokens - 1) and reports[-1][1:3] == (num_tokens - 1, num_tokens - 1)


def test_evaluate_without_adapter_is_one_chunk_and_continues_a_tape() -> None:
    tape, scorer = ScoreTape(np.arange(10)), Recorder()
    tape.commit(0, 3, losses(3))
    nll = evaluate(tape, scorer)
    assert scorer.asked == [(3, 9)] and len(nll) == 9
    np.testing.assert_array_equal(nll[:3], losses(3))
    with pytest.raises(ValueError, match="chunk_targets"):
        evaluate(ScoreTape(np.arange(3)), scorer, chunk_targets=-1)


def test_an_adapter_learns_chunk_by_chunk() -> None:
    """Compared with a loop that scores target by target, with a state computed from the scored tokens alone."""
    tokens, window, chunk = toy_tokens(60), 8, 16
    model = CausalModel()
    adapter = UnigramCache(model)
    options = {"window": window, "stride": 4, "batch_tokens": 24}
    tape = ScoreTape(tokens)
    nll = evaluate(tape, make_scorer("sliding", adapter, **options), adapter, chunk_targets=chunk)

    for t in range(59):
        fresh = UnigramCache(model)
        for start in range(0, t - t % chunk, chunk):
            prefix = tokens[: start + chunk + 1]
            fresh.update(lambda a, b, text=prefix: text[a:b], start, start + chunk)
        begin = 0 if t < window else ((t - window) // 4 + 1) * 4
        with torch.no_grad():
            logits = fresh(torch.from_numpy(tokens[None, begin : t + 1].astype(np.int64)))[0, -1]
        assert nll[t] == pytest.approx(-torch.log_softmax(logits, -1)[int(tokens[t + 1])].item(), abs=1e-5)
    frozen = evaluate(ScoreTape(tokens), make_scorer("sliding", UnigramCache(model), **options))
    assert np.array_equal(nll[:chunk], frozen[:chunk]) and not np.allclose(nll[chunk:], frozen[chunk:])
    updates = [event for event in tape.event_log["events"] if event["event"] == "update"]
    assert [event["tokens"][1] for event in updates] == [17, 33, 49]
