"""The plan: seconds measured in the warm-up, reserved for the work after the steps, and the budgets that are refused.

Time is simulated: a step takes 0.5 s, a batch of Hessians or Fisher statistics 0.25 s.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulated_time import simulate_time
from tiny_trainer import ALONE, make_trainer

from bitgolf.config import BudgetConfig, TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.data.row_order import HeldOut, RowOrder
from bitgolf.errors import BudgetError
from bitgolf.run.ranks import World
from bitgolf.train.pace import Division, Reserves
from bitgolf.train.plan import Plan, make_plan
from bitgolf.train.rows import TrainingRows
from bitgolf.train.trainer import Trainer


class Ranks(World):
    """Rank 0 of several, without communication."""

    def mean_(self, tensors: list[torch.Tensor]) -> None: ...

    def from_main(self, value: float) -> float:
        return value


def rows_of(config: TrainConfig, held_out_rows: int = 8) -> TrainingRows:
    """Batches of 4 rows of 8 tokens in one micro-batch; the stream itself is not read."""
    return TrainingRows(
        None, RowOrder(1000, 8, False, 0), BatchShape(4, 4, 4), HeldOut(900, held_out_rows, config.seq_len)
    )  # type: ignore[arg-type]


def plan_of(trainer: Trainer, world: World = ALONE, limit: float = 100.0) -> Plan:
    trainer.world = trainer.optimizer.world = world
    return make_plan(trainer, rows_of(trainer.config), limit, ["embedding"])


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_calibration_and_fisher_reserve_their_batches_per_rank_with_a_margin(
    monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    simulate_time(monkeypatch, step_seconds=0.5, batch_seconds=0.25)
    trainer = make_trainer({"measure.calibration_tokens": 32 * 16, "measure.fisher_tokens": 32 * 8})
    plan = plan_of(trainer, Ranks(0, num_ranks, torch.device("cpu")))
    assert plan.step_seconds == 0.5
    assert plan.reserves.calibration == pytest.approx(0.1 + 1.15 * 0.25 * 16 / num_ranks)
    assert plan.reserves.fisher == pytest.approx(1.15 * 0.25 * 8 / num_ranks)
    assert plan.reserves.in_flight == 4 * 0.5
    assert plan.reserves.choice == 0
    assert plan.division == Division(100.0, plan.reserves.total)


def test_a_configured_reserve_replaces_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_time(monkeypatch, batch_seconds=0.25)
    plan = plan_of(make_trainer({"measure.calibration_tokens": 3200, "measure.reserve_seconds": 7.0}))
    assert plan.reserves.calibration == pytest.approx(7.1)


def test_the_choice_reserves_time_if_it_is_asked_for() -> None:
    trainer = make_trainer({"held_out_tokens": 64, "average.choose": "held_out", "average.ema_decay": 0.5})
    reserves = plan_of(trainer).reserves
    assert reserves.choice > 0 and reserves.fisher == 0


@pytest.mark.parametrize(
    ("limit", "step", "seconds", "words"),
    [
        (3.9, 0, 0.0, "does not hold one optimizer step"),
        (4.0, 0, 0.0, ""),
        (3.5, 7, 3.4, ""),
        (4.0, 7, 4.0, "is spent"),
        (4.0, 7, 99.0, "is spent"),
    ],
)
def test_a_budget_without_time_is_refused(limit: float, step: int, seconds: float, words: str) -> None:
    plan = Plan(1.0, 1.0, Reserves(calibration=3.0), Division(limit, 3.0))
    if not words:
        plan.require_time(step, seconds)
        return
    with pytest.raises(BudgetError, match=rf"budget.train_seconds = {limit:g} {words}"):
        plan.require_time(step, seconds)


@pytest.mark.parametrize(
    ("min_steps", "max_steps", "train_seconds", "eval_seconds"),
    [(0, 0, 100.0, 50.0), (42, 0, 100.0, 50.0), (80, 0, 187.0, 94.0), (80, 42, 100.0, 50.0), (80, 99, 187.0, 94.0)],
)
def test_a_slow_machine_gets_the_time_for_the_least_number_of_steps(
    min_steps: int, max_steps: int, train_seconds: float, eval_seconds: float
) -> None:
    """A step takes 2 s, the work after the steps 3 s; 15 % more steps are allowed for."""
    budget = BudgetConfig(train_seconds=100.0, eval_seconds=50.0, min_steps=min_steps)
    plan = Plan(1.0, 2.0, Reserves(calibration=3.0), Division(100.0, 3.0))
    longer, extended = plan.extended(budget, max_steps)
    assert (extended.train_seconds, extended.eval_seconds) == (train_seconds, eval_seconds)
    assert longer.division == Division(train_seconds, 3.0)
    assert extended.updated({"train_seconds": 100.0, "eval_seconds": 50.0}) == budget


@given(
    steps=st.integers(1, 2000),
    step_seconds=st.floats(0.001, 10),
    epochs=st.integers(0, 3),
    batches=st.integers(1, 200),
    warmdown=st.floats(0.05, 1),
)
def test_the_time_for_a_number_of_steps_is_that_in_which_the_steps_end(
    steps: int, step_seconds: float, epochs: int, batches: int, warmdown: float
) -> None:
    config = TrainConfig().updated({"replay.epochs": epochs, "replay.batches": batches, "warmdown": warmdown})
    seconds = Division.of(1.0, 2.5, config).seconds_for(steps, step_seconds)
    assert Division.of(seconds, 2.5, config).steps_end(step_seconds) == pytest.approx(steps * step_seconds)
