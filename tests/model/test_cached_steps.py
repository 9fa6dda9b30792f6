"""Recorded steps: one record per number of positions, and weights that are cast once."""

from collections.abc import Callable

import pytest
import torch
from tiny_gpt import config, text, tiny_gpt
from torch import Tensor

from bitgolf.model import cached_steps
from bitgolf.model.cache import GenerationCache
from bitgolf.model.cached_steps import CachedSteps
from bitgolf.model.cast_weights import CastWeights
from bitgolf.model.gpt import GPT

COMPONENTS: list[dict] = [
    {
        "attention.gate": True,
        "attention.within_documents": True,
        "smear.document_mask": True,
        "smear.gate": "v2",
        "lanes_from": 2,
        "skip_gates": True,
    },
    {"bigram.every_layer": True, "value_embedding.gated": True, "value_embedding.dim": 16},
]


def logits(gpt: GPT, tokens: Tensor) -> Tensor:
    return gpt.logits(gpt.hidden(tokens, GenerationCache(gpt.num_positions)), tokens)


@pytest.mark.parametrize("components", COMPONENTS, ids=["pr-1855", "tables"])
def test_cast_weights_change_no_bit_and_follow_the_weights(components: dict) -> None:
    gpt, tokens = tiny_gpt(config().model.updated(components)), torch.from_numpy(text(12).astype("int64"))[None]
    gpt.compute_dtype = torch.bfloat16
    cast, before = CastWeights(gpt), logits(gpt, tokens)
    with cast:
        assert {p.dtype for p in gpt.parameters()} == {torch.bfloat16}
        assert torch.equal(logits(gpt, tokens), before)
    for parameter in gpt.parameters():
        parameter.mul_(1.5)
    after = logits(gpt, tokens)
    assert not torch.equal(after, before)
    with cast:
        assert torch.equal(logits(gpt, tokens), before)
    cast.refresh()
    with pytest.raises(KeyError), cast:
        assert torch.equal(logits(gpt, tokens), after)
        raise KeyError
    assert {p.dtype for p in gpt.parameters()} == {torch.float32}
    assert torch.equal(logits(gpt, tokens), after)


@pytest.mark.parametrize(("whole", "reaches", "ring"), [(False, [4, 8, 12], 3), (True, [12], 0)])
def test_a_step_is_recorded_once_for_each_number_of_positions(
    whole: bool, reaches: list[int], ring: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_steps, "_LEAST_REACH", 4)
    recorded: list[int] = []

    def recorder(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert steps._fixed is not None and steps._fixed.ring == ring
        recorded.append(steps._fixed.reach)
        return run

    gpt = tiny_gpt(config().model.updated({"attention.window": 3, "attention.full_layers": (1,)}))
    tokens = torch.from_numpy(text(12).astype("int64"))[None]
    steps = CachedSteps(gpt, 12, recorder=recorder, whole=whole)
    expected = gpt.logits(gpt.hidden(tokens), tokens)
    for first in (2, 7, 3):
        torch.testing.assert_close(steps.begin(tokens[:, :first]), expected[:, first - 1], atol=1e-4, rtol=1e-4)
        for position in range(first, 12):
            step = steps.step(tokens[:, position : position + 1])
            torch.testing.assert_close(step, expected[:, position], atol=1e-4, rtol=1e-4)
    assert recorded == reaches
