"""Flip and distribution checks: honest evaluations pass bit-exactly, each cheat is caught by its own test."""

import numpy as np
import pytest
import torch
from fake_evidence import evidence
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import (
    BOS,
    VOCAB,
    CausalModel,
    ChunkBias,
    EagerCache,
    LeakyModel,
    SecretBonus,
    SmugglingCache,
    TargetPeek,
    UnigramCache,
    Wrapped,
    make_scorer,
    toy_tokens,
)

from bitgolf.audit.distribution import losses_of, normalized
from bitgolf.audit.flips import all_after, flip_test, only_target
from bitgolf.audit.registry import attempt
from bitgolf.audit.tape_log import score_first
from bitgolf.audit.traces import Passage, Trace, deterministic_kernels, flip_tokens, trace
from bitgolf.audit.verdict import Finding
from bitgolf.errors import RuleViolation
from bitgolf.evaluate import ScoreTape, evaluate

TOKENS = toy_tokens(70, seed=3)


def evaluation_of(make_model, method: str = "sliding", wrap=None, scorer_class=None):
    """An `Evaluation`: fresh model, scorer and, when `wrap` makes one, adapter for every run."""

    def evaluation(tokens: np.ndarray):
        model = make_model()
        adapter = wrap(model, tokens) if wrap is not None else None
        scorer = make_scorer(method, adapter if adapter is not None else model, window=16, stride=6, batch_tokens=48)
        return (scorer_class(scorer) if scorer_class is not None else scorer), adapter

    return evaluation


def future_flip(evaluation, tokens: np.ndarray = TOKENS, chunk_targets: int = 0) -> Finding:
    return flips(evaluation, tokens, all_after, chunk_targets)


def target_flip(evaluation, tokens: np.ndarray = TOKENS, chunk_targets: int = 0) -> Finding:
    return flips(evaluation, tokens, only_target, chunk_targets)


def flips(evaluation, tokens: np.ndarray, span, chunk_targets: int) -> Finding:
    return flip_test(Passage(evaluation, tokens, VOCAB, BOS, chunk_targets), span, 8, np.random.default_rng(0))


HONEST = {
    "chunked": evaluation_of(CausalModel, "chunked"),
    "sliding": evaluation_of(CausalModel),
    "unigram cache": evaluation_of(CausalModel, wrap=lambda model, _: UnigramCache(model)),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_evaluations_pass(name: str) -> None:
    for check in (future_flip, target_flip):
        finding = check(HONEST[name], chunk_targets=20)
        assert finding.verdict == "PASS", finding
        assert finding.evidence["noise_nats"] == 0 and finding.evidence["moved_later"] > 0
        borders = [t for t in (19, 20, 39) if TOKENS[t + 1] != BOS]
        assert borders and set(borders) <= set(finding.evidence["flipped_targets"])
    shown = trace(HONEST[name], TOKENS, chunk_targets=20, with_losses=True)
    assert normalized(shown.log_p, VOCAB).verdict == "PASS"
    assert losses_of(shown, TOKENS).verdict == "PASS"


def test_model_that_looks_one_token_ahead_is_caught() -> None:
    """A tiny leak: a millinat-sized whiff of the next token through a bidirectional convolution."""
    for check in (future_flip, target_flip):
        finding = check(evaluation_of(LeakyModel), TOKENS)
        assert finding.verdict == "FAIL" and "moved the prediction of target" in finding.reason
        assert all(leak["moved_target"] <= leak["flipped_target"] for leak in finding.evidence["leaks"])
    assert normalized(trace(evaluation_of(LeakyModel), TOKENS).log_p, VOCAB).verdict == "PASS"


@pytest.mark.parametrize("strength", [2e-6, 5e-7])
def test_leaks_of_a_millionth_of_a_nat_are_caught(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeakyModel, "strength", strength)
    for check in (future_flip, target_flip):
        finding = check(evaluation_of(LeakyModel), TOKENS)
        assert finding.verdict == "FAIL" and max(leak["difference_nats"] for leak in finding.evidence["leaks"]) < 1e-4


def shown_trace() -> Trace:
    return trace(evaluation_of(CausalModel), TOKENS, with_losses=True)


@pytest.mark.parametrize(("error", "verdict"), [(2e-5, "FAIL"), (-2e-5, "FAIL"), (4e-6, "PASS"), (np.nan, "FAIL")])
def test_a_distribution_that_sums_to_nearly_one(error: float, verdict: str) -> None:
    log_p = shown_trace().log_p.astype(np.float64)
    log_p[7] += error  # the sum is 1 + error
    finding = normalized(log_p, VOCAB)
    assert finding.verdict == verdict and (verdict == "PASS" or "position 7" in finding.reason)


@pytest.mark.parametrize(("error", "verdict"), [(1e-4, "FAIL"), (-1e-4, "FAIL"), (2e-5, "PASS"), (np.nan, "FAIL")])
def test_a_loss_that_nearly_matches_its_distribution(error: float, verdict: str) -> None:
    shown = shown_trace()
    shown.nll[7] += error
    finding = losses_of(shown, TOKENS)
    assert finding.verdict == verdict and (verdict == "PASS" or "target 7" in finding.reason)


def test_adapter_that_trains_on_the_next_chunk_is_caught() -> None:
    """Its ledger is clean and each model state causal: only flips through the whole evaluation show it."""
    smuggling = evaluation_of(CausalModel, wrap=SmugglingCache)
    for check in (future_flip, target_flip):
        finding = check(smuggling, chunk_targets=20)
        assert finding.verdict == "FAIL"
        assert all(leak["moved_target"] >= 20 for leak in finding.evidence["leaks"]), "the first chunk is honest"
    tape = ScoreTape(TOKENS)
    evaluate(tape, *smuggling(TOKENS), chunk_targets=20)
    assert score_first(evidence(event_log=tape.event_log)).verdict == "PASS"


def test_adapter_that_reads_ahead_fails_its_check() -> None:
    eager = evaluation_of(CausalModel, wrap=lambda model, _: EagerCache(model))
    finding = attempt(lambda evaluation: future_flip(evaluation, chunk_targets=20), eager)
    assert finding.verdict == "FAIL" and "an adapter asked for tokens" in finding.reason
    assert finding.evidence["error"] == "RuleViolation"


class RealizedOnly(Wrapped):
    """A cache that lifts some tokens without paying for it elsewhere: sums exceed one."""

    def distributions(self, read, start, stop):
        log_p = super().distributions(read, start, stop)
        log_p[:, 2:5] += 0.05
        return log_p


def soft_model(tokens: torch.Tensor) -> torch.Tensor:
    """No probability near one, so that a distribution that sums to more than one still passes the tape."""
    return CausalModel()(tokens) / 10


@pytest.mark.parametrize(
    "cheat, caught_by",
    [
        (TargetPeek, {"future-flip", "target-flip"}),
        (ChunkBias, {"future-flip", "target-flip"}),
        (SecretBonus, {"losses-match"}),
        (RealizedOnly, {"normalization"}),
    ],
)
def test_each_cheating_scorer_is_caught_by_name(cheat, caught_by: set[str]) -> None:
    evaluation = evaluation_of(lambda: soft_model, scorer_class=cheat)
    shown = trace(evaluation, TOKENS, with_losses=True)
    verdicts = {
        "future-flip": future_flip(evaluation).verdict,
        "target-flip": target_flip(evaluation).verdict,
        "normalization": normalized(shown.log_p, VOCAB).verdict,
        "losses-match": losses_of(shown, TOKENS).verdict,
    }
    assert verdicts == {name: "FAIL" if name in caught_by else "PASS" for name in verdicts}


def test_probability_above_one_stops_at_the_tape() -> None:
    class TooLikely(Wrapped):
        def distributions(self, read, start, stop):
            return super().distributions(read, start, stop) + np.float32(np.log(VOCAB))

    with pytest.raises(RuleViolation, match="a probability above one"):
        trace(evaluation_of(CausalModel, scorer_class=TooLikely), TOKENS)


def test_noise_is_neither_pass_nor_leak() -> None:
    """A model that is not deterministic cannot be proven; its noise does not hide a leak ten times as large."""
    generator = torch.Generator().manual_seed(0)

    class Noisy(CausalModel):
        def forward(self, tokens):
            logits = super().forward(tokens)
            return logits + 1e-6 * torch.randn(logits.shape, generator=generator)

    class NoisyLeak(LeakyModel):
        def forward(self, tokens):
            logits = super().forward(tokens)
            return logits + 1e-6 * torch.randn(logits.shape, generator=generator)

    finding = future_flip(evaluation_of(Noisy), TOKENS)
    assert finding.verdict == "NOT RUN" and "two identical runs differ" in finding.reason
    assert future_flip(evaluation_of(NoisyLeak), TOKENS).verdict == "FAIL"


def test_flips_without_effect_prove_nothing() -> None:
    constant = evaluation_of(lambda: lambda tokens: torch.zeros(*tokens.shape, VOCAB))
    finding = target_flip(constant, TOKENS)
    assert finding.verdict == "NOT RUN" and "prove nothing" in finding.reason


def test_nan_predictions_do_not_pass() -> None:
    class Broken(Wrapped):
        def distributions(self, read, start, stop):
            log_p = super().distributions(read, start, stop)
            log_p[3, 4] = np.nan
            return log_p

    evaluation = evaluation_of(CausalModel, scorer_class=Broken)
    assert future_flip(evaluation).verdict != "PASS"


def test_wrong_vocabulary_is_not_normalized_over_it() -> None:
    log_p = trace(HONEST["sliding"], TOKENS).log_p
    finding = normalized(log_p, VOCAB + 1)
    assert finding.verdict == "FAIL" and f"have {VOCAB} entries" in finding.reason


@pytest.mark.parametrize("tokens", [np.array([BOS, 4]), np.array([BOS, BOS, BOS, BOS])])
def test_nothing_to_flip(tokens: np.ndarray) -> None:
    assert target_flip(HONEST["sliding"], tokens).verdict == "NOT RUN"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=40),
    st.integers(0, 39),
    st.integers(0, 10),
    st.integers(0, VOCAB - 1),
    st.integers(0, 99),
)
def test_flips_change_exactly_the_tokens_that_are_not_bos(ids, start, length, bos, seed) -> None:
    tokens = np.array(ids, dtype=np.uint16)
    flipped = flip_tokens(tokens, slice(start, start + length), VOCAB, bos, np.random.default_rng(seed))
    for i, (before, after) in enumerate(zip(ids, flipped.tolist(), strict=True)):
        if start <= i < start + length and before != bos:
            assert after != before and after != bos and 0 <= after < VOCAB
        else:
            assert after == before


def test_each_flip_is_drawn_by_itself() -> None:
    flipped = flip_tokens(np.full(400, 3), slice(0, 400), VOCAB, 0, np.random.default_rng(1))
    assert set(flipped.tolist()) == set(range(1, VOCAB)) - {3}


def test_deterministic_kernels_leave_the_setting_as_it_was() -> None:
    setting = lambda: (  # noqa: E731
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    )  # fmt: skip
    first = setting()
    try:
        for before in ((False, False), (True, False), (True, True)):
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            with deterministic_kernels(torch.device("cuda")):
                assert setting() == (True, True)
            assert setting() == before
            with deterministic_kernels(torch.device("cpu")):
                assert setting() == before
    finally:
        torch.use_deterministic_algorithms(first[0], warn_only=first[1])
