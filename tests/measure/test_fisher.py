"""Fisher statistics against loops in float64 over the recorded inputs and output gradients of every layer."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitgolf.measure import fisher
from bitgolf.measure.fisher import FisherCollector
from bitgolf.model import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.ranks import World

ALONE = World(0, 1, torch.device("cpu"))


def reference(
    model: GPT, batches: list[torch.Tensor], labels: list[torch.Tensor]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(weighted input moments, row importances) per matrix, one token at a time."""
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def remember(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            output.retain_grad()
            pairs.setdefault(name, []).append((inputs[0], output))

        return hook

    hooks = [m.register_forward_hook(remember(f"{n}.weight")) for n, m in model.named_modules() if type(m) is Linear]
    for tokens, targets in zip(batches, labels, strict=True):
        hidden = model.hidden(tokens)
        scores = hidden @ model.embedding.T
        scores.retain_grad()
        pairs.setdefault("embedding", []).append((hidden, scores))
        F.cross_entropy((30 * torch.tanh(scores / 30)).flatten(0, 1), targets, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    statistics_of = {}
    for name, parts in pairs.items():
        moments, importance, weight, count = np.zeros(()), np.zeros(()), 0.0, 0
        for x, y in parts:
            assert y.grad is not None
            inputs = x.detach().double().reshape(-1, x.size(-1)).numpy()
            gradients = y.grad.double().reshape(-1, y.size(-1)).numpy()
            for a, b in zip(inputs, gradients, strict=True):
                moments = moments + float(b @ b) * np.outer(a, a)
                importance = importance + b * b
                weight += float(b @ b)
                count += 1
        statistics_of[name] = moments / weight, importance / count
    return statistics_of


def test_statistics_equal_the_loop(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(2)
    batches = [torch.randint(260, (3, 8), generator=rng) for _ in range(2)]
    labels = [torch.randint(260, (24,), generator=rng) for _ in range(2)]
    expected = reference(model, batches, labels)
    queue = [labels[0][:16], labels[0][16:], labels[1][:16], labels[1][16:]]
    monkeypatch.setattr(fisher, "_draw", lambda logits, generator: queue.pop(0))
    monkeypatch.setattr(fisher, "_ROWS_TOKENS", 16)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    collector = FisherCollector(model, rng)
    for tokens in batches:
        collector.add(tokens)
    statistics_of, gradients = collector.finish(ALONE)
    assert not gradients and statistics_of.keys() == expected.keys()
    for name, (moments, importance) in expected.items():
        assert torch.allclose(statistics_of[name].inputs.double(), torch.from_numpy(moments), rtol=2e-4, atol=1e-6), (
            name
        )
        assert torch.allclose(statistics_of[name].rows.double(), torch.from_numpy(importance), rtol=2e-4, atol=1e-9), (
            name
        )
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())


def test_labels_follow_the_model() -> None:
    logits = torch.tensor([0.0, 1.0, 2.5]).expand(200_000, 3)
    drawn = torch.bincount(fisher._draw(logits, torch.Generator().manual_seed(0)), minlength=3) / 200_000
    assert torch.allclose(drawn, torch.softmax(logits[0], 0), atol=4 * (0.25 / 200_000) ** 0.5)


def test_every_rank_draws_its_own_labels_and_a_seed_repeats_them(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [torch.randint(260, (2, 8), generator=torch.Generator().manual_seed(3))]
    labels: list[list[int]] = []
    draw = fisher._draw

    def watched(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn = draw(logits, generator)
        labels.append(drawn.tolist())
        return drawn

    monkeypatch.setattr(fisher, "_draw", watched)

    class Rank(World):
        def mean_(self, tensors: list[torch.Tensor]) -> None: ...

    for rank, seed in ((0, 5), (1, 5), (0, 5), (0, 6)):
        fisher.gather_fisher(model, tokens, (), seed, Rank(rank, 2, torch.device("cpu")), lambda: True)
    assert labels[0] == labels[2]
    assert labels[0] != labels[1] and labels[0] != labels[3]


def test_gradients_are_those_of_the_summed_loss_of_all_ranks(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(2)
    tokens, labels = torch.randint(260, (4, 8), generator=rng), torch.randint(260, (32,), generator=rng)
    names = ["embedding", "blocks.0.mlp.up.weight", "bigram.table"]
    F.cross_entropy(model(tokens.reshape(8, 4)).flatten(0, 1), labels, reduction="sum").backward()
    expected = {name: model.get_parameter(name).grad for name in names}
    model.zero_grad(set_to_none=True)
    monkeypatch.setattr(fisher, "_ROWS_TOKENS", 6)  # rows of 8 tokens are cut into two
    queue = list(labels.split(4))
    monkeypatch.setattr(fisher, "_draw", lambda logits, generator: queue.pop(0))

    class Pair(World):
        def mean_(self, tensors: list[torch.Tensor]) -> None: ...  # the other rank has the same sums

    collector = FisherCollector(model, rng, names)
    collector.add(tokens)
    _, gradients = collector.finish(Pair(0, 2, torch.device("cpu")))
    assert list(gradients) == names and not queue
    for name, gradient in expected.items():
        assert gradient is not None
        assert torch.allclose(gradients[name], gradient * 2**0.5 / 32**0.5, rtol=1e-4, atol=1e-7), name
