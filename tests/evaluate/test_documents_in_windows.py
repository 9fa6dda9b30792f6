"""Attention within documents in windows, test-time training, adapters, an artifact and the audit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import ALONE, BOS, VOCAB, WINDOW, adapted, config, text, tiny_gpt
from tiny_run import done, events, read_json
from torch import Tensor
from toy_models import make_scorer

import bitgolf
from bitgolf.audit.flips import all_after, flip_test, only_target
from bitgolf.audit.run import audit_run
from bitgolf.audit.traces import Passage
from bitgolf.config import Config
from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.document_scorer import DocumentScorer, evaluate_documents
from bitgolf.model.backends import AttentionCase, choose_backend
from bitgolf.model.gpt import GPT
from bitgolf.run.directory import RunDirectory

TOKENS = text(171, seed=6)


def aware(value: bool = True, **ttt: Any) -> Config:
    return config(**ttt).updated({"model.attention.within_documents": value, "model.smear.document_mask": True})


def document_in(window: np.ndarray, position: int) -> slice:
    """The tokens of a window up to `position` that belong to the same document, by a loop."""
    start = position
    while start and window[start] != BOS:
        start -= 1
    return slice(start, position + 1)


def piecewise(model: GPT) -> Callable[[Tensor], Tensor]:
    """The model with one pass per document of every row."""

    def forward(tokens: Tensor) -> Tensor:
        rows = []
        for row in tokens:
            starts = sorted({0, *(i for i in range(len(row)) if row[i] == BOS)})
            rows.append(
                torch.cat([model(row[None, a:b])[0] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)])
            )
        return torch.stack(rows)

    return forward


@pytest.mark.parametrize("method, stride", [("sliding", 4), ("sliding", 16), ("chunked", 16)])
def test_a_target_is_scored_from_its_own_document_within_its_window(method: str, stride: int) -> None:
    model = tiny_gpt(aware().model)
    scorer = make_scorer(method, model, window=WINDOW, stride=stride, batch_tokens=48, documents=True)
    every_window = make_scorer(method, model, window=WINDOW, stride=stride, batch_tokens=48)
    nll = evaluate(ScoreTape(TOKENS), scorer)
    expected = []
    for target in range(170):
        begin = 0 if target < WINDOW else ((target - WINDOW) // stride + 1) * stride
        window = TOKENS[begin : target + 1].astype(np.int64)
        context = torch.from_numpy(window[document_in(window, target - begin)])[None]
        with torch.no_grad():
            expected.append(F.cross_entropy(model(context)[0, -1], torch.tensor(int(TOKENS[target + 1]))).item())
    np.testing.assert_allclose(nll, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(nll, evaluate(ScoreTape(TOKENS), every_window), rtol=0, atol=2e-5)
    unaware = make_scorer(method, tiny_gpt(aware(False).model), window=WINDOW, stride=stride, batch_tokens=48)
    assert np.abs(evaluate(ScoreTape(TOKENS), unaware) - nll).max() > 0.01


def test_test_time_training_learns_from_documents_one_by_one() -> None:
    settings = aware(method="full", weights={"lr": 0.05, "batch_rows": 1})
    tapes, weights = [], []
    for forward in (lambda model: model, piecewise):
        model, tape = tiny_gpt(settings.model), ScoreTape(TOKENS)
        adapted(settings, model, 170, forward=forward(model)).run(tape)
        tapes.append(tape)
        weights.append(model.blocks[1].mlp.up.weight.detach())
    np.testing.assert_allclose(tapes[0].nll, tapes[1].nll, rtol=0, atol=3e-5)
    torch.testing.assert_close(*weights, rtol=0, atol=2e-5)
    assert tapes[0].state == 4 and (weights[0] - tiny_gpt().blocks[1].mlp.up.weight).abs().max() > 1e-3


def test_adapters_a_document_see_one_document_in_any_case() -> None:
    nll = []
    for value in (True, False):
        settings = aware(value, method="lora", lora={"targets": ["q", "v", "o", "mlp", "head"]})
        model = tiny_gpt(settings.model)
        scorer = DocumentScorer(model, settings.ttt.lora, window=WINDOW, bos_id=BOS, seed=5, world=ALONE)
        nll.append(evaluate_documents(ScoreTape(TOKENS), scorer))
    np.testing.assert_allclose(nll[0], nll[1], rtol=0, atol=2e-5)


def test_flips_prove_it_causal() -> None:
    settings = aware(method="full", weights={"lr": 0.05})

    def evaluation(tokens: np.ndarray):
        model = tiny_gpt(settings.model)
        chunks = adapted(settings, model, len(tokens) - 1)
        return chunks.scorer, chunks.adapter

    for span in (all_after, only_target):
        passage = Passage(evaluation, TOKENS[:91], VOCAB, BOS, chunk_targets=40)
        finding = flip_test(passage, span, 4, np.random.default_rng(0))
        assert finding.verdict == "PASS" and finding.evidence["noise_nats"] == 0, finding


def test_a_run_trains_packs_scores_and_generates_with_it(untrained: Callable[..., Path]) -> None:
    path = untrained(model__attention__within_documents=True, model__smear__document_mask=True, train__max_steps=12)
    for stage in ("train", "pack", "score"):
        done(stage, path)
    backend = choose_backend("auto", AttentionCase(ALONE.device, torch.float32, 16, documents=True))
    assert read_json(path / "score.json")["attention"] == events(path, "start")[0]["attention"] == backend
    verdict = audit_run(RunDirectory.open(path), quick=True)
    assert [(c.name, c.reason) for c in verdict.checks if c.verdict == "FAIL"] == []
    for name in ("reproduction", "future-flip", "target-flip", "losses-match"):
        assert verdict[name].verdict == "PASS"
    lm = bitgolf.load(path / "model.bitgolf", device="cpu")
    assert lm.model.config.attention.within_documents
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode("The quiet river")]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 30:
            ids.append(int(lm.model(torch.tensor([ids]))[0, -1].argmax()))
    assert BOS not in ids[start:]
    assert lm.generate("The quiet river", max_tokens=30, temperature=0) == lm.tokenizer.decode(ids[start:])
