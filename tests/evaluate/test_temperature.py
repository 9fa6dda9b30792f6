"""Temperature: constant and learned online, against autograd and a plain loop; first pass only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gpt import ALONE, BOS, WINDOW, config, text, tiny_gpt

from bitgolf.evaluate import ScoreTape, make_scorer
from bitgolf.evaluate.adapters import adapted_evaluation
from bitgolf.evaluate.temperature import log_temperature_gradient

TOKENS = text(171, period=30)


def run(tokens: np.ndarray = TOKENS, **ttt: Any) -> tuple[ScoreTape, float]:
    model, tape = tiny_gpt(), ScoreTape(tokens)
    adapted = adapted_evaluation(config(**ttt), model, model, num_targets=tape.num_targets, bos_id=BOS, world=ALONE)
    adapted.run(tape)
    return tape, adapted.temperature()


def losses_at(temperature: float, start: int, stop: int) -> np.ndarray:
    model = tiny_gpt()
    scorer = make_scorer(
        "sliding", lambda tokens: model(tokens) / temperature, window=WINDOW, stride=4, batch_tokens=48, device="cpu"
    )
    return scorer.score(lambda a, b: TOKENS[a:b], start, stop)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(0.3, 3.0), st.integers(0, 99))
def test_gradient_is_that_of_autograd(length: int, vocab: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(length, vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (length,), generator=generator)
    log_temperature = torch.tensor(math.log(temperature), dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits / log_temperature.exp(), targets, reduction="sum").backward()
    found = log_temperature_gradient(logits / temperature, targets)
    assert found.shape == (length,)
    assert float(found.sum()) == pytest.approx(float(log_temperature.grad), abs=1e-9)


def test_constant_divides_the_logits_and_nothing_is_updated() -> None:
    tape, temperature = run(temperature=0.8)
    np.testing.assert_allclose(tape.nll, losses_at(0.8, 0, 170), rtol=0, atol=1e-6)
    assert np.abs(tape.nll - losses_at(1.0, 0, 170)).max() > 0.01
    assert (tape.state, temperature) == (0, 0.8)


def test_online_estimate_is_a_plain_loop_over_scored_chunks() -> None:
    model, temperature, expected = tiny_gpt(), 1.1, []
    for start in range(0, 170, 40):
        expected.append(losses_at(temperature, start, min(start + 40, 170)))
        if start + 40 < 170:
            rows = torch.from_numpy(np.stack([TOKENS[a : a + 17] for a in (start, start + 16)]).astype(np.int64))
            log_temperature = torch.tensor(math.log(temperature), requires_grad=True)
            logits = model(rows[:, :-1]) / log_temperature.exp()
            F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
            temperature = math.exp(math.log(temperature) - 0.3 * float(log_temperature.grad))
    tape, found = run(temperature=1.1, temperature_lr=0.3)
    np.testing.assert_allclose(tape.nll, np.concatenate(expected), rtol=0, atol=2e-5)
    assert found == pytest.approx(temperature, rel=1e-5) and abs(found - 1.1) > 1e-3
    assert tape.state == 4


def test_online_estimate_finds_the_scale_of_an_overconfident_model() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.softmax(torch.randn(260, generator=generator), 0)
    tokens = torch.multinomial(p, 4001, replacement=True, generator=generator).numpy().astype(np.uint16)
    tape = ScoreTape(tokens)
    adapted = adapted_evaluation(
        config(temperature_lr=0.5),
        tiny_gpt(),
        lambda ids: (2.5 * p.log()).expand(*ids.shape, 260),
        num_targets=4000,
        bos_id=BOS,
        world=ALONE,
    )
    adapted.run(tape)
    assert adapted.temperature() == pytest.approx(2.5, rel=0.2)
    assert tape.nll[2000:].mean() < tape.nll[:40].mean() - 0.3


def test_temperature_is_measured_before_the_weights_learn_the_same_tokens() -> None:
    """Its first step is the same with and without test-time training."""
    short = TOKENS[:82]  # two chunks and a target: one update each before the second chunk ends, two in all
    alone = run(short[:42], temperature_lr=0.3)[1]
    both = run(short[:42], temperature_lr=0.3, method="full", lr=0.1)[1]
    assert alone == both != 1
    assert run(short, temperature_lr=0.3)[1] != run(short, temperature_lr=0.3, method="full", lr=0.1)[1]
