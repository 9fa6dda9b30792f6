"""More targets on the same logits: loss, gradient, schedule, and the table of prefixes, each from its definition."""

import numpy as np
import pytest
import torch
from tiny_run import documents
from tiny_trainer import batch, make_trainer

from bitgolf.config.train import ExtraTargetsConfig
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.model.extra_targets import ExtraTargets, cross_entropy
from bitgolf.train.schedule import StepSettings, extra_weights

V, BOS = 30, 1


def by_definition(
    logits: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor, weights: list[float], pre: list[int]
) -> torch.Tensor:
    """The loss with all terms, target by target, in float64."""
    log_p, (B, T), total = torch.log_softmax(logits.double(), -1), targets.shape, torch.zeros((), dtype=torch.float64)
    for b in range(B):
        for i in range(T):
            total = total - log_p[b, i, targets[b, i]]
            if pre[int(targets[b, i])] >= 0:
                total = total - weights[-1] * log_p[b, i, pre[int(targets[b, i])]]
            for k, weight in enumerate(weights[:-1], 1):
                if i + k < T and BOS not in inputs[b, i + 1 : i + k + 1].tolist():
                    total = total - weight * log_p[b, i, targets[b, i + k]]
    return total / (B * T)


@pytest.mark.parametrize("weights", [[0.0], [0.25], [0.5, 0.25, 0.3], [0.7, 0.0]])
def test_the_gradient_has_all_terms_and_the_value_is_the_plain_loss(weights: list[float]) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 9, V, generator=rng), torch.randint(2, V, (2, 9), generator=rng)
    targets[0, [3, 4]] = targets[1, 8] = BOS
    inputs = torch.cat((torch.full((2, 1), BOS), targets[:, :-1]), 1)
    inputs[1, 5] = BOS  # a piece of a document begins here, without a BOS among the targets
    pre = torch.randint(-1, V, (V,), generator=rng)
    logits.requires_grad_()
    columns, all_weights = ExtraTargets(torch.tensor(weights), pre).columns(targets, inputs)
    loss = cross_entropy(logits, columns, all_weights)
    expected = by_definition(logits, inputs, targets, weights, pre.tolist())
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, plain)


def test_prefixes_are_those_of_a_search_over_all_lengths() -> None:
    tokenizer = train_tokenizer(documents()[:60], 360, lossless=True)
    texts = [tokenizer.token_text_bytes(i) for i in range(360)]
    tokens = {text: i for i, text in enumerate(texts) if text and i >= 260}  # after control and byte pieces
    for token, prefix in enumerate(tokenizer.longest_prefixes().tolist()):
        lengths = range(len(texts[token]) - 1, 0, -1) if token >= 260 else ()
        assert prefix == next((tokens[texts[token][:n]] for n in lengths if texts[token][:n] in tokens), -1)
    assert (tokenizer.longest_prefixes() >= 0).sum() > 50


def test_weights_fall_to_zero_one_after_the_other() -> None:
    config = ExtraTargetsConfig(next_tokens=(0.5, 0.25), prefix=0.2, until=0.6)
    at = {f: extra_weights(f, config) for f in (0.0, 0.15, 0.3, 0.45, 0.6, 1.0)}
    assert at[0.0] == pytest.approx([0.5, 0.25, 0.2])
    assert at[0.15] == pytest.approx([0.5, 0.125, 0.2])
    assert at[0.3] == pytest.approx([0.5, 0.0, 0.2])
    assert at[0.45] == pytest.approx([0.25, 0.0, 0.1])
    assert at[0.6] is at[1.0] is None
    assert extra_weights(0.0, ExtraTargetsConfig()) is None
    with pytest.raises(ValueError, match="must be weights above 0"):
        ExtraTargetsConfig(next_tokens=(0.5, 0.0))


def test_a_step_learns_the_extra_targets_and_weights_of_zero_change_nothing() -> None:
    changes = {"extra_targets.next_tokens": (0.5,), "extra_targets.prefix": 0.25}
    results = []
    for extra in (None, [0.0, 0.0], [0.5, 0.25]):
        trainer = make_trainer(changes)
        trainer.warm_up()
        metrics = trainer.step(*batch(0), StepSettings(1.0, 0.9, extra=extra))
        results.append((float(metrics[1]), trainer.model.embedding.detach().numpy().copy()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6) == pytest.approx(results[2][0], abs=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=2e-4)
    assert np.abs(results[0][1] - results[2][1]).max() > 1e-3


@pytest.mark.parametrize(
    ("loop_start", "until", "kinds"),
    [
        (0.35, 0.5, [(False, True), (True, True), (True, False)]),
        (0.5, 0.35, [(False, True), (False, False), (True, False)]),
        (0.0, 0.5, [(True, True), (True, False)]),
    ],
)
def test_the_warm_up_makes_every_kind_of_step_that_the_run_makes(loop_start, until, kinds) -> None:
    trainer = make_trainer({"extra_targets.prefix": 0.2, "extra_targets.until": until, "loop_start": loop_start})
    trainer.model.config = trainer.model.config.updated({"loop.repeats": 1, "loop.last": 0})
    assert [kind[1:3] for kind in trainer._kinds()] == kinds
    assert len(make_trainer({"loop_start": 0.35})._kinds()) == 1, "without a loop it begins nowhere"
