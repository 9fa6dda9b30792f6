"""Checks around document borders: honest evaluations pass, schedules by length and leaks over a border fail."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_gpt import ALONE, BOS, VOCAB, config, text, tiny_gpt
from tiny_gpt import adapted as adapted_pass

from bitgolf.audit.borders import document_isolation, move_borders, rewrite_before
from bitgolf.audit.traces import Passage
from bitgolf.audit.verdict import Finding, MissingEvidence
from bitgolf.evaluate.document_scorer import DocumentScorer

TOKENS = text(110, seed=3)


def adapted(model: Any = tiny_gpt, **ttt: Any) -> Any:
    def evaluation(tokens: np.ndarray) -> Any:
        gpt = model()
        finding = adapted_pass(config(**ttt), gpt, len(tokens) - 1)
        return finding.scorer, finding.adapter

    return evaluation


def passage(evaluation: Any, tokens: np.ndarray = TOKENS, chunk_targets: int = 0) -> Passage:
    return Passage(evaluation, tokens, VOCAB, BOS, chunk_targets)


def moved(text: Passage, num_moves: int = 4, exact_shapes: bool = True) -> Finding:
    return move_borders(text, num_moves, np.random.default_rng(0), exact_shapes=exact_shapes)


BY_DOCUMENTS = {"method": "lora", "lora_documents": 3}


@pytest.mark.parametrize("ttt", [{}, {"method": "full", "lr": 0.05}, BY_DOCUMENTS])
def test_honest_evaluations_do_not_know_where_documents_end(ttt: dict[str, Any]) -> None:
    finding = moved(passage(adapted(**ttt), chunk_targets=0 if "lora_documents" in ttt else 40), num_moves=2)
    assert finding.verdict == "PASS" and len(finding.evidence["moves"]) == 4, finding


class ShortDocumentsDifferently(DocumentScorer):
    """PR 2014: what is learned depends on how long the document will be."""

    def _begin(self, adapters: Any, row: Any) -> None:
        super()._begin(adapters, row)
        for a in adapters.a:
            a[row.place] *= 0.2 if len(row.line[0].tokens) < 20 else 1


class Leaks(DocumentScorer):
    """PR 1667: the last token of the document before reaches over the border."""

    def _score(self, tokens: np.ndarray, *rest: Any, **options: Any) -> Any:
        self.tokens = tokens
        return super()._score(tokens, *rest, **options)

    def _begin(self, adapters: Any, row: Any) -> None:
        super()._begin(adapters, row)
        if row.line[0].start:
            adapters.a[0][row.place] *= 1 + float(self.tokens[row.line[0].start - 1]) / 50


def cheating_documents(cheat: type[DocumentScorer]) -> Any:
    def evaluation(tokens: np.ndarray) -> Any:
        ttt = config(method="lora", lora_documents=8, lora_lr=0.1).ttt.lora
        return cheat(tiny_gpt(), ttt, window=16, bos_id=BOS, seed=0, world=ALONE), None

    return evaluation


def test_a_schedule_by_the_length_of_documents_is_caught() -> None:
    text = passage(cheating_documents(ShortDocumentsDifferently))
    finding = moved(text)
    assert finding.verdict == "FAIL" and "moving the document border at token" in finding.reason
    scattering = moved(text, exact_shapes=False)
    assert scattering.verdict == "NOT RUN", "a device whose other shapes scatter proves neither"


class CountsBorders:
    """Predicts everything alike, but the first target by the number of borders in the whole text."""

    def __init__(self, tokens: np.ndarray, nats: float) -> None:
        self.first = nats * int((tokens == BOS).sum())

    def distributions(self, read: Any, start: int, stop: int) -> np.ndarray:
        log_p = np.full((stop - start, VOCAB), -np.log(VOCAB), dtype=np.float64)
        log_p[0, 0] += self.first if start == 0 else 0.0
        return log_p


@pytest.mark.parametrize(("nats", "verdict"), [(0.0009, "PASS"), (0.0011, "FAIL")])
def test_predictions_may_move_by_a_thousandth_of_a_nat(nats: float, verdict: str) -> None:
    assert moved(passage(lambda tokens: (CountsBorders(tokens, nats), None))).verdict == verdict


def test_isolation_of_documents() -> None:
    rng = np.random.default_rng(0)
    assert rewrite_before(passage(cheating_documents(DocumentScorer)), rng).verdict == "PASS"
    finding = rewrite_before(passage(cheating_documents(Leaks)), rng)
    assert finding.verdict == "FAIL" and "moved predictions of the next" in finding.reason
    flat = rewrite_before(passage(adapted()), rng)
    assert flat.verdict == "FAIL", "a flat stream is not isolated, and does not claim to be"


def test_texts_without_borders_prove_nothing() -> None:
    one = np.where(TOKENS == BOS, 5, TOKENS).astype(TOKENS.dtype)
    one[0] = BOS
    with pytest.raises(MissingEvidence, match="no document border"):
        rewrite_before(passage(adapted(), one), np.random.default_rng(0))
    with pytest.raises(MissingEvidence, match="too few"):
        moved(passage(adapted(), one[:2]))


@pytest.mark.parametrize(
    ("moved_by", "noise", "verdict"), [(0.5, 0.04, "FAIL"), (0.5, 0.05, "NOT RUN"), (0, 0, "PASS")]
)
def test_a_border_is_crossed_by_more_than_ten_times_the_noise(moved_by: float, noise: float, verdict: str) -> None:
    """Two runs of one text differ by `noise`, and those of another first document by `moved_by` after the border."""
    tokens = np.array([BOS, 5, 6, BOS, 7, 8, 9, BOS, 4], dtype=np.uint16)
    runs: list[np.ndarray] = []

    def log_p(given: np.ndarray) -> np.ndarray:
        runs.append(given)
        values = np.zeros((8, VOCAB))
        values[:3] = 9.0 if len(runs) == 2 else 0.0  # before the border anything may change
        values[3, 2] = moved_by if len(runs) == 2 else noise if len(runs) == 3 else 0.0
        return values

    flipped = np.where(np.arange(9) < 3, 2, tokens)
    rewritten = lambda part, rng: flipped if part == slice(0, 3) else None  # noqa: E731
    text: Any = SimpleNamespace(tokens=tokens, bos_id=BOS, log_p=log_p, flipped=rewritten)
    made = rewrite_before(text, np.random.default_rng(0))
    assert (made.verdict, made.evidence["border"], made.evidence["targets"]) == (verdict, 3, 5)
    assert (float(made.evidence["largest_nats"]), float(made.evidence["noise_nats"])) == (moved_by, noise)
    assert all(run is given for run, given in zip(runs, (tokens, flipped, tokens), strict=True))


def test_a_single_document_and_a_pass_without_documents_prove_no_isolation() -> None:
    evidence: Any = SimpleNamespace(
        headline=SimpleNamespace(by_documents=False, bos_id=BOS, passage=SimpleNamespace(tokens=TOKENS[:9])),
        tokens=np.array([BOS, 5, 6, 7, BOS]),
        rng=lambda name: np.random.default_rng(0),
    )
    with pytest.raises(MissingEvidence, match="not the pass with adapters"):
        document_isolation(evidence)
    evidence.headline.by_documents = True
    with pytest.raises(MissingEvidence, match="the validation text is a single document"):
        document_isolation(evidence)
