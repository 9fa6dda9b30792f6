"""A model with forbidden pairs: every way to predict gives them almost nothing, and all agree."""

import numpy as np
import pytest
import torch
from tiny_gpt import ALONE, BOS, VOCAB, WINDOW, adapted, config, text, tiny_gpt
from toy_models import make_scorer

from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.document_scorer import DocumentScorer
from bitgolf.evaluate.split_model import CompiledModel, Tempered
from bitgolf.model.cached_steps import CachedSteps
from bitgolf.model.gpt import GPT
from bitgolf.model.small_step import SmallStep

TOKENS = text(120, seed=4)
PAIRS = np.random.default_rng(0).random((VOCAB, VOCAB)) < 0.3
PAIRS[TOKENS[:-1], TOKENS[1:]] = False
FORBIDDEN = np.packbits(PAIRS, axis=1, bitorder="little")


@pytest.fixture
def model() -> GPT:
    model = tiny_gpt()
    model.forbid_(FORBIDDEN)
    return model


def by_definition(tokens: np.ndarray, plain: GPT) -> np.ndarray:
    """Log-probabilities (T, V) in float64: those of the model without mask, with -60 at forbidden pairs."""
    logits = plain(torch.from_numpy(tokens.astype(np.int64))[None])[0].double().numpy()
    for position, token in enumerate(tokens):
        for other in range(VOCAB):
            if PAIRS[token, other]:
                logits[position, other] = -60
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_logits_of_forbidden_pairs_are_far_below_all_others(model: GPT) -> None:
    tokens = TOKENS[:WINDOW]
    expected = by_definition(tokens, tiny_gpt())
    whole = torch.from_numpy(tokens.astype(np.int64))[None]
    np.testing.assert_allclose(model(whole)[0].log_softmax(-1), expected, atol=1e-4)
    assert np.exp(expected)[PAIRS[tokens]].max() < 1e-12
    model.forbid_(None)
    assert torch.equal(model(whole), tiny_gpt()(whole))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: CompiledModel(m, "eager"), lambda m: Tempered(m, 1.0)])
def test_windows_score_with_the_mask(model: GPT, wrap) -> None:
    scorer = make_scorer("sliding", wrap(model), window=WINDOW, stride=5, batch_tokens=3 * WINDOW)
    log_p = scorer.distributions(lambda a, b: TOKENS[a:b], 0, WINDOW)
    np.testing.assert_allclose(log_p, by_definition(TOKENS[:WINDOW], tiny_gpt()), atol=1e-4)
    losses = evaluate(ScoreTape(TOKENS), scorer)
    without = make_scorer("sliding", tiny_gpt(), window=WINDOW, stride=5, batch_tokens=3 * WINDOW)
    assert (losses < evaluate(ScoreTape(TOKENS), without)).all(), "nothing that occurs is forbidden"


@pytest.mark.parametrize("targets", [("q",), ("head", "v")])
def test_documents_with_adapters_score_with_the_mask(model: GPT, targets: tuple[str, ...]) -> None:
    lora = config(method="lora", lora={"targets": list(targets)}).ttt.lora
    scorer = DocumentScorer(model, lora, window=WINDOW, bos_id=BOS, seed=5, world=ALONE)
    log_p = scorer.distributions(lambda a, b: TOKENS[a:b], 0, 100).astype(np.float64)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-5)
    assert np.exp(log_p)[PAIRS[TOKENS[:100]]].max() < 1e-12


def test_weights_that_learn_between_chunks_keep_the_mask(model: GPT) -> None:
    pass_ = adapted(config(method="full"), model, len(TOKENS) - 1)
    pass_.run(ScoreTape(TOKENS))
    log_p = pass_.scorer.distributions(lambda a, b: TOKENS[a:b], 0, 100)
    assert np.exp(log_p)[PAIRS[TOKENS[:100]]].max() < 1e-12


@pytest.mark.parametrize("small", [False, True])
def test_steps_with_a_cache_predict_with_the_mask(model: GPT, small: bool) -> None:
    tokens = torch.from_numpy(TOKENS[:WINDOW].astype(np.int64))[None]
    steps = CachedSteps(model, WINDOW, small=SmallStep(model, 1, WINDOW) if small else None)
    logits = [steps.begin(tokens[:, :3])] + [steps.step(tokens[:, i : i + 1]).clone() for i in range(3, WINDOW)]
    torch.testing.assert_close(torch.cat(logits), model(tokens)[0, 2:], atol=1e-4, rtol=1e-4)
