"""One optimizer step, the state that it needs, and the warm-up that must leave no trace."""

import math
from typing import Any

import pytest
import torch
from simulated_time import simulate_time
from tiny_trainer import MODEL, batch, make_steps, make_trainer

import bitgolf.train.trainer
from bitgolf.config import PackConfig, QATConfig
from bitgolf.errors import BudgetError
from bitgolf.model import GPT
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import copy_into_, state_digest
from bitgolf.train.late import LatePhase
from bitgolf.train.schedule import StepSettings


@pytest.mark.parametrize(
    ("changes", "micro_rows"),
    [
        ({"average.ema_decay": 0.9, "warmup_steps": 3, "grad_clip": 0.1}, 4),
        ({"table_dtype": "bf16", "average.ema_decay": 0.9}, 4),
        ({}, 1),
    ],
    ids=str,
)
def test_the_warm_up_leaves_no_trace(changes: dict[str, Any], micro_rows: int) -> None:
    trainer, untouched = (make_trainer(changes, micro_rows=micro_rows) for _ in range(2))
    make_steps(trainer, 0, 2)
    make_steps(untouched, 0, 2)
    random_state, before = torch.get_rng_state(), state_digest(trainer.tensors())
    assert trainer.warm_up() > 0
    assert state_digest(trainer.tensors()) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    make_steps(trainer, 2, 4)
    make_steps(untouched, 2, 4)
    assert state_digest(trainer.tensors()) == state_digest(untouched.tensors())


def test_a_warm_up_that_leaves_a_trace_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitgolf.train.trainer, "copy_into_", lambda live, saved: None)
    with pytest.raises(AssertionError):
        make_trainer().warm_up()


def test_the_warm_up_makes_the_late_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer({"warmup_steps": 2})
    pack = PackConfig().updated({"small_tensor": 1, "grid.matrix_bits": 4})
    trainer.late = LatePhase.of(trainer.model, QATConfig().updated({"mode": "ste", "start_fraction": 0.5}), pack)
    trainer._late_loss = trainer.late.loss
    late_steps: list[bool] = []
    real = trainer.step

    def watched(inputs: torch.Tensor, targets: torch.Tensor, settings: StepSettings) -> torch.Tensor:
        late_steps.append(settings.late)
        return real(inputs, targets, settings)

    monkeypatch.setattr(trainer, "step", watched)
    trainer.warm_up()
    assert late_steps == [False, False, True, True]


def test_a_step_longer_than_the_budget_is_refused_without_making_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(micro_rows=1)
    before = state_digest(trainer.tensors())
    monkeypatch.setattr(bitgolf.train.trainer, "seconds_of_second_run", lambda work, world: (work(), 2.5)[1])
    monkeypatch.setattr(trainer, "step", lambda *_, **__: pytest.fail("a whole step was made"))
    with pytest.raises(BudgetError, match=r"train_seconds = 9.9 .* 4 micro-batches .* 10 s"):
        trainer.warm_up(limit_seconds=9.9)
    assert state_digest(trainer.tensors()) == before
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("changes", [{}, {"table_dtype": "bf16"}], ids=str)
def test_saved_state_continues_bit_for_bit(changes: dict[str, Any]) -> None:
    changes = changes | {"average.ema_decay": 0.9, "average.swa_weight": 0.5, "average.swa_start": 1.0}
    whole, resumed = make_trainer(changes), make_trainer(changes, seed=99)
    make_steps(whole, 0, 3)
    saved = {name: tensor.detach().clone() for name, tensor in whole.tensors().items()}
    make_steps(whole, 3, 6)
    copy_into_(resumed.tensors(), saved)
    make_steps(resumed, 3, 6)
    assert state_digest(resumed.tensors()) == state_digest(whole.tensors())
    assert resumed.averages.shipped()[1] == whole.averages.shipped()[1]
    assert state_digest(resumed.averages.shipped()[0]) == state_digest(whole.averages.shipped()[0])


def test_saved_state_that_lacks_a_tensor_names_it() -> None:
    trainer = make_trainer()
    saved = dict(trainer.tensors())
    del saved["model.embedding"]
    with pytest.raises(KeyError, match=r"model\.embedding"):
        copy_into_(trainer.tensors(), saved)


@pytest.mark.parametrize("micro_rows", [4, 2, 1])
def test_a_step_reports_the_clock_the_loss_and_the_gradient_norms(micro_rows: int) -> None:
    trainer, reference = make_trainer(micro_rows=micro_rows), GPT(MODEL, 8)
    reference.load_state_dict(trainer.model.state_dict())
    inputs, targets = batch(5)
    loss = reference(inputs, targets)
    loss.backward()
    metrics = trainer.step(inputs, targets, StepSettings(1.0, 0.9), elapsed=12.5)
    assert metrics[0] == 12.5
    assert float(metrics[1]) == pytest.approx(loss.item(), rel=1e-5)
    norms = [float(p.grad.norm()) for _, p in reference.named_parameters() if p.grad is not None]
    assert metrics[2:-1].tolist() == pytest.approx(norms, rel=1e-3, abs=1e-6)
    assert float(metrics[-1]) == pytest.approx(math.sqrt(sum(norm**2 for norm in norms)), rel=1e-4)


def test_the_warm_up_returns_the_median_of_its_last_half(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, durations = make_trainer({"warmup_steps": 7}), iter([90.0, 9.0, 8.0, 7.0, 2.0, 50.0, 3.0])
    clock = simulate_time(monkeypatch, step_seconds=0.0)
    step = trainer.step

    def slow_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        clock.now += next(durations)
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "step", slow_step)
    assert trainer.warm_up() == 3.0


@pytest.mark.parametrize(("rank", "reading"), [(0, 12.5), (1, 0.0)])
def test_the_mean_over_ranks_of_the_clock_is_the_reading_of_rank_0(rank: int, reading: float) -> None:
    trainer = make_trainer()

    class Half(World):
        """Two ranks, of which the other one has only zeros."""

        def mean_(self, tensors: list[torch.Tensor]) -> None:
            for tensor in tensors:
                tensor.div_(2)

    trainer.world = trainer.optimizer.world = Half(rank, 2, torch.device("cpu"))
    assert float(trainer.step(*batch(0), StepSettings(1.0, 0.9), elapsed=12.5)[0]) == reading
