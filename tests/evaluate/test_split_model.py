"""Scoring in two parts: the head runs on scored positions only, with one shape, and the losses stay equal."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import VOCAB, text, tiny_gpt
from torch import Tensor
from toy_models import make_scorer

from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.split_model import CompiledModel, Tempered, split
from bitgolf.evaluate.window_scorer import METHODS
from bitgolf.model.gpt import GPT

MODEL = tiny_gpt()


class Watched:
    """The two parts of a model; it records the shapes of all calls."""

    def __init__(self, model: GPT = MODEL) -> None:
        self.model = model
        self.windows: list[tuple[int, ...]] = []
        self.positions: list[tuple[int, ...]] = []

    def __call__(self, tokens: Tensor) -> Tensor:
        raise AssertionError("all logits were asked for")

    def hidden(self, tokens: Tensor) -> Tensor:
        self.windows.append(tuple(tokens.shape))
        return self.model.hidden(tokens)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        self.positions.append(tuple(hidden.shape))
        return self.model.logits(hidden, tokens)


def scorer_of(method: str, model: Any, window: int, stride: int, rows: int):
    return make_scorer(method, model, window=window, stride=stride, batch_tokens=rows * window)


sizes = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), sizes, st.integers(1, 5), st.integers(1, 40), st.sampled_from(METHODS))
def test_halves_score_as_the_whole(num_tokens: int, size: tuple[int, int], rows: int, chunk: int, method: str) -> None:
    window, stride = size
    watched, tokens = Watched(), text(num_tokens, seed=num_tokens)
    nll, whole = (
        evaluate(ScoreTape(tokens), scorer_of(method, model, window, stride, rows), chunk_targets=chunk)
        for model in (watched, lambda tokens: MODEL(tokens))
    )
    np.testing.assert_allclose(nll, whole, rtol=0, atol=1e-5)
    step = stride if method == "sliding" else window
    assert set(watched.windows) == {(rows, window)}, "one shape of windows"
    assert set(watched.positions) == {(rows * step, 32)}, "one shape of positions"


def test_the_head_runs_on_what_is_scored() -> None:
    """120 targets in windows of 16 with stride 4, three rows per batch: the padding is below one slab per batch."""
    watched = Watched()
    evaluate(ScoreTape(text(121)), scorer_of("sliding", watched, 16, 4, 3))
    assert len(watched.windows) == 9  # of 27 windows
    # the batch of window 0 scores 16 + 2 * 4 positions in two slabs of 12, the others 12 in one
    assert [p for p, _ in watched.positions] == [12] * (2 + 8)


def test_slabs_of_a_batch_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.evaluate.window_scorer._SLAB_POSITIONS", 20)
    watched = Watched()
    evaluate(ScoreTape(text(97)), scorer_of("chunked", watched, 16, 16, 3))
    assert [p for p, _ in watched.positions] == [16] * 6, "48 positions in three slabs, not 20 + 20 + 8"


@pytest.mark.parametrize("method", METHODS)
def test_distributions_are_those_of_the_losses(method: str) -> None:
    tokens = text(70, seed=2)
    scorer = scorer_of(method, Tempered(MODEL, 0.7), 12, 5, 2)
    nll = scorer.score(lambda a, b: tokens[a:b], 7, 69)

    def read(start: int, stop: int) -> np.ndarray:
        assert stop <= 69, "target 68 is token 69"
        return tokens[start:stop]

    log_p = scorer.distributions(read, 7, 69)
    assert log_p.shape == (62, VOCAB) and log_p.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_p.astype(np.float64)).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(-log_p[np.arange(62), tokens[8:70]], nll, rtol=0, atol=2e-6)


def test_temperature_divides_the_logits_of_either_half() -> None:
    tokens = torch.from_numpy(text(24).astype(np.int64))[None]
    for model in (MODEL, lambda tokens: MODEL(tokens)):
        tempered = Tempered(model, 1.6)
        assert split(tempered) is tempered  # type: ignore[comparison-overlap]
        for temperature in (1.6, 0.9):
            tempered.temperature = temperature
            logits = tempered.logits(tempered.hidden(tokens).flatten(0, 1), tokens.flatten()).view(1, 24, VOCAB)
            torch.testing.assert_close(logits, MODEL(tokens) / temperature, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(tempered(tokens), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_compiled_halves_are_one_graph_each() -> None:
    tokens = text(75, seed=3)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = CompiledModel(tiny_gpt(), backend="aot_eager")
    nll = evaluate(ScoreTape(tokens), scorer_of("sliding", compiled, 16, 4, 3), chunk_targets=30)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    eager = evaluate(ScoreTape(tokens), scorer_of("sliding", MODEL, 16, 4, 3), chunk_targets=30)
    np.testing.assert_allclose(nll, eager, rtol=0, atol=1e-5)


def test_a_model_compiled_as_a_whole_is_run_as_a_whole() -> None:
    """The result of `torch.compile` shows the two parts of the model inside, which would run uncompiled."""
    whole = torch.compile(MODEL, backend="aot_eager")
    assert callable(whole.hidden) and split(whole) is not whole
    assert split(MODEL) is MODEL
