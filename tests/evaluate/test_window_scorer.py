"""Window scorers against the definition: a loop over windows with one forward pass per target."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import CausalModel, make_scorer, toy_tokens

from bitgolf.errors import ConfigError, RuleViolation
from bitgolf.evaluate import ScoreTape, evaluate, window_plan
from bitgolf.evaluate.window_scorer import document_plan


def windows_by_definition(num_targets: int, window: int, stride: int) -> dict[int, int]:
    """Target -> first input of its window, by the loop of the published definition."""
    begin_of: dict[int, int] = {}
    begin = 0
    while begin == 0 or begin + window - stride < num_targets:
        first = 0 if begin == 0 else begin + window - stride
        for target in range(first, min(begin + window, num_targets)):
            assert target not in begin_of, "the definition itself scores each target once"
            begin_of[target] = begin
        begin += stride
    assert sorted(begin_of) == list(range(num_targets))
    return begin_of


def nll_by_definition(model: CausalModel, tokens: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Losses by one unpadded forward pass per target and a softmax in float64."""
    out = []
    for target, begin in sorted(windows_by_definition(len(tokens) - 1, window, stride).items()):
        with torch.no_grad():
            prefix = torch.from_numpy(tokens[None, begin : target + 1].astype(np.int64))
            logits = model(prefix)[0, -1].double().numpy()
        log_sum = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        out.append(log_sum - logits[int(tokens[target + 1])])
    return np.array(out)


sizes = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), sizes, st.data())
def test_plan_is_the_definition_for_any_chunk(num_targets: int, size: tuple[int, int], data) -> None:
    window, stride = size
    expected = windows_by_definition(num_targets, window, stride)
    start = data.draw(st.integers(0, num_targets - 1))
    stop = data.draw(st.integers(start + 1, num_targets))
    scored = {}
    for begin, low, high in window_plan(start, stop, window, stride).tolist():
        assert begin <= low < high <= min(begin + window, stop)
        for target in range(low, high):
            assert target not in scored
            scored[target] = begin
    assert scored == {target: expected[target] for target in range(start, stop)}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), sizes, st.integers(1, 5), st.integers(1, 40))
def test_scores_equal_one_pass_a_target(num_tokens: int, size: tuple[int, int], rows: int, chunk: int) -> None:
    window, stride = size
    model, tokens = CausalModel(), toy_tokens(num_tokens, seed=num_tokens)
    for method, step in (("sliding", stride), ("chunked", window)):
        model.shapes.clear()
        scorer = make_scorer(method, model, window=window, stride=stride, batch_tokens=rows * window)
        nll = evaluate(ScoreTape(tokens), scorer, chunk_targets=chunk)
        assert model.shapes == {(rows, window)}, "one shape, whatever the text's length"
        np.testing.assert_allclose(nll, nll_by_definition(model, tokens, window, step), rtol=0, atol=2e-5)


def test_score_does_not_depend_on_batches_or_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = CausalModel(), toy_tokens(300)
    results = []
    for rows, slab in ((1, 16_384), (3, 1), (64, 20), (7, 16_384)):
        monkeypatch.setattr("bitgolf.evaluate.window_scorer._SLAB_POSITIONS", slab)
        scorer = make_scorer("sliding", model, window=16, stride=3, batch_tokens=rows * 16)
        results.append(evaluate(ScoreTape(tokens), scorer))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=0, atol=2e-6)


def test_scorer_reads_only_its_chunk() -> None:
    scorer = make_scorer("sliding", CausalModel(), window=12, stride=4, batch_tokens=48)
    tape = ScoreTape(toy_tokens(50))
    assert scorer.score(tape.chunk(30), 0, 30).shape == (30,)
    with pytest.raises(RuleViolation):
        scorer.score(tape.chunk(29), 0, 30)


def test_progress_is_reported_within_a_chunk() -> None:
    ticks: list[float] = []
    scorer = make_scorer("chunked", CausalModel(), window=8, stride=8, batch_tokens=16)
    evaluate(ScoreTape(toy_tokens(50)), scorer, progress=lambda stage, done, total, note="": ticks.append(done))
    assert ticks == [0, 16, 32, 48, 49, 49]


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown scoring method 'best-of'"):
        make_scorer("best-of", CausalModel(), window=8, stride=4, batch_tokens=16)


def test_model_of_the_wrong_shape_is_named() -> None:
    scorer = make_scorer("chunked", lambda tokens: torch.zeros(tokens.shape), window=8, stride=8, batch_tokens=8)
    with pytest.raises(ValueError, match="model must map tokens"):
        evaluate(ScoreTape(toy_tokens(9)), scorer)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), sizes, st.data())
def test_windows_of_documents_begin_where_the_sliding_window_or_the_document_does(
    num_targets: int, size: tuple[int, int], data: st.DataObject
) -> None:
    window, stride = size
    expected = windows_by_definition(num_targets, window, stride)
    starts = sorted({0, *data.draw(st.lists(st.integers(1, num_targets), max_size=8))})
    start = data.draw(st.integers(0, num_targets - 1))
    stop = data.draw(st.integers(start + 1, num_targets))
    visible = np.array([at for at in starts if expected[start] <= at < stop], dtype=np.int64)
    plan = document_plan(visible, start, stop, window, stride).tolist()
    targets = [(target, begin) for begin, low, high in plan for target in range(low, high)]
    document = {target: max(at for at in starts if at <= target) for target in range(num_targets)}
    assert targets == [(target, max(expected[target], document[target])) for target in range(start, stop)]
    assert all(begin <= low < high <= begin + window for begin, low, high in plan)
