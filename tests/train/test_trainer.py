"""One optimizer step, the state that it carries, and the warm-up that must leave no trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import bitgolf.train.trainer
from bitgolf.config import ModelConfig, TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.errors import BudgetError
from bitgolf.model import GPT
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import copy_into_, state_digest
from bitgolf.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = World(0, 1, torch.device("cpu"))
MODEL = ModelConfig(
    vocab_size=260, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, bigram_rows=20, bigram_dim=4, smear="v1"
)


def make(seed: int = 0, micro_rows: int = 4, **settings: object) -> Trainer:
    """A trainer of a small model on 4 rows of 8 tokens."""
    config = TrainConfig.model_validate({"seq_len": 8, "batch_tokens": 32, "micro_batch_tokens": 32} | settings)
    model = GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(seed))
    return Trainer(model, config, BatchShape(4, 4, micro_rows), ALONE)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(260, (4, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def steps(trainer: Trainer, first: int, last: int) -> list[torch.Tensor]:
    return [trainer.step(*batch(seed), 1.0, 0.9) for seed in range(first, last)]


@pytest.mark.parametrize(
    "settings", [{}, {"ema_decay": 0.9}, {"warmup_steps": 4, "grad_clip": 0.1}, {"micro_rows": 1}], ids=str
)
def test_the_warm_up_leaves_no_trace(settings: dict[str, Any]) -> None:
    trainer, untouched = make(**settings), make(**settings)
    steps(trainer, 0, 2)
    steps(untouched, 0, 2)
    random_state = torch.get_rng_state()
    before = state_digest(trainer.tensors())
    assert trainer.warm_up() > 0
    assert state_digest(trainer.tensors()) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    steps(trainer, 2, 4)
    steps(untouched, 2, 4)
    assert state_digest(trainer.tensors()) == state_digest(untouched.tensors())


def test_a_warm_up_that_does_leave_a_trace_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    monkeypatch.setattr(bitgolf.train.trainer, "copy_into_", lambda live, saved: None)
    with pytest.raises(AssertionError, match="changed the training state"):
        trainer.warm_up()


def test_a_step_longer_than_the_budget_is_found_without_making_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(micro_rows=1)
    before = state_digest(trainer.tensors())
    monkeypatch.setattr(trainer, "step", lambda *_, **__: pytest.fail("a whole step was made"))
    with pytest.raises(BudgetError, match=r"train_seconds = 1e-06 .* its 4 micro-batches take .* train.batch_tokens"):
        trainer.warm_up(limit_seconds=1e-6)
    assert state_digest(trainer.tensors()) == before
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_saved_state_continues_bit_for_bit() -> None:
    whole = make(ema_decay=0.9)
    steps(whole, 0, 3)
    saved = {name: tensor.detach().clone() for name, tensor in whole.tensors().items()}
    steps(whole, 3, 6)
    resumed = make(seed=99, ema_decay=0.9)
    copy_into_(resumed.tensors(), saved)
    steps(resumed, 3, 6)
    assert state_digest(resumed.tensors()) == state_digest(whole.tensors())
    shipped, how = resumed.averages.shipped()
    assert how == whole.averages.shipped()[1]
    for name, weight in whole.averages.shipped()[0].items():
        assert torch.equal(weight, shipped[name])


def test_saved_state_that_lacks_a_tensor_names_it() -> None:
    trainer = make()
    saved = dict(trainer.tensors())
    del saved["model.embedding"]
    with pytest.raises(KeyError, match=r"model\.embedding"):
        copy_into_(trainer.tensors(), saved)


@pytest.mark.parametrize("micro_rows", [4, 2, 1])
def test_a_step_reports_the_clock_the_loss_and_the_gradient_norms(micro_rows: int) -> None:
    trainer, reference = make(micro_rows=micro_rows), GPT(MODEL, 8)
    reference.load_state_dict(trainer.model.state_dict())
    inputs, targets = batch(5)
    loss = reference(inputs, targets)
    loss.backward()
    metrics = trainer.step(inputs, targets, 1.0, 0.9, elapsed=12.5)
    assert metrics[0] == 12.5
    assert float(metrics[1]) == pytest.approx(loss.item(), rel=1e-5)
    norms = [float(p.grad.norm()) for _, p in reference.named_parameters() if p.grad is not None]
    assert metrics[2:-1].tolist() == pytest.approx(norms, rel=1e-3, abs=1e-6)
    assert float(metrics[-1]) == pytest.approx(math.sqrt(sum(norm**2 for norm in norms)), rel=1e-4)


def test_only_the_average_is_shipped_when_there_is_one() -> None:
    trainer = make(ema_decay=0.5)
    initial = trainer.optimizer.parameters["embedding"].detach().clone()
    expected = initial.double()
    for seed in range(4):
        trainer.step(*batch(seed), 1.0, 0.9)
        expected = 0.5 * expected + 0.5 * trainer.optimizer.parameters["embedding"].detach().double()
    shipped = trainer.averages.shipped()[0]["embedding"]
    torch.testing.assert_close(shipped.double(), expected, atol=1e-6, rtol=1e-5)
    plain = make()
    steps(plain, 0, 2)
    assert torch.equal(plain.averages.shipped()[0]["embedding"], plain.optimizer.parameters["embedding"])


def test_a_learning_rate_of_zero_moves_nothing() -> None:
    trainer = make()
    before = {name: p.detach().clone() for name, p in trainer.optimizer.parameters.items()}
    trainer.step(*batch(0), 0.0, 0.9)
    for name, parameter in trainer.optimizer.parameters.items():
        assert torch.equal(parameter, before[name]), name


def test_training_lowers_the_loss_of_what_it_sees() -> None:
    trainer = make()
    losses = [float(trainer.step(*batch(0), 1.0, 0.9)[1]) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]
