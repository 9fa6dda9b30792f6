"""The plan of a training, made before its clock starts: how long a step takes, and how the budget is divided.

The warm-up runs every kind of work on random tokens, off the clock (rule B5 in docs/rules.md), and measures it. The
plan reserves the seconds for everything that follows the steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bitgolf.config import BudgetConfig
from bitgolf.errors import BudgetError
from bitgolf.measure.calibration import calibration_seconds
from bitgolf.measure.fisher import fisher_seconds
from bitgolf.run.clock import SAFETY
from bitgolf.run.progress import Progress, silent
from bitgolf.train.choose import choice_seconds
from bitgolf.train.pace import LAG, MARGIN_SECONDS, Division, EndTimes, Reserves
from bitgolf.train.rows import TrainingRows
from bitgolf.train.trainer import Trainer


@dataclass(frozen=True)
class Plan:
    """Seconds as measured in the warm-up; the same on every rank."""

    warm_up_seconds: float  # duration of the warm-up itself, which is off the clock
    step_seconds: float  # one optimizer step
    reserves: Reserves  # for everything after the steps
    division: Division  # of the training budget

    @property
    def steps_end(self) -> float:
        """When the optimizer steps end, in seconds, at the pace of the warm-up."""
        return self.division.steps_end(self.step_seconds)

    @property
    def end_times(self) -> EndTimes:
        """When each part after the replay burst must be over."""
        return self.reserves.end_times(self.division.limit)

    def extended(self, budget: BudgetConfig, max_steps: int) -> tuple[Plan, BudgetConfig]:
        """Plan and budget with enough time for `budget.min_steps` steps on this machine.

        If `budget.train_seconds` holds them, both stay as they are. Otherwise the times of training and of evaluation
        are extended by the same factor, because the same machine does both. `max_steps`: 0 = no limit.
        """
        num_steps = min(budget.min_steps, max_steps or budget.min_steps)
        seconds = float(math.ceil(self.division.seconds_for(SAFETY * num_steps, self.step_seconds)))
        if not num_steps or seconds <= budget.train_seconds:
            return self, budget
        eval_seconds = float(math.ceil(budget.eval_seconds * seconds / budget.train_seconds))
        longer = budget.updated({"train_seconds": seconds, "eval_seconds": eval_seconds})
        return replace(self, division=replace(self.division, limit=seconds)), longer

    def figures(self) -> dict[str, float]:
        return {
            "warm_up_seconds": self.warm_up_seconds,
            "warm_up_step_seconds": self.step_seconds,
            "calibration_reserve_seconds": self.reserves.calibration,
            "reserve_seconds": self.reserves.total,
            "replay_reserve_seconds": self.division.replay_end - self.steps_end,
        }

    def require_time(self, step: int, seconds: float) -> None:
        """Raises BudgetError unless a training that has made `step` steps in `seconds` seconds can go on."""
        limit, reserve = self.division.limit, self.division.reserve
        if step == 0 and self.step_seconds + reserve > limit:
            raise BudgetError(
                f"budget.train_seconds = {limit:g} does not hold one optimizer step ({self.step_seconds:.3g} s) and "
                f"the work after the steps ({reserve:.3g} s reserved for calibration and other measurements on the "
                "final weights); allow more seconds, or make the batch, the model or train.measure.calibration_tokens "
                "smaller"
            )
        if seconds >= limit:
            raise BudgetError(
                f"budget.train_seconds = {limit:g} is spent: the checkpoint at step {step} was taken after "
                f"{seconds:.3g} s, which leaves no time to calibrate; train from the start, without --resume"
            )


def make_plan(
    trainer: Trainer,
    rows: TrainingRows,
    limit_seconds: float,  # of the whole training
    quantized: Sequence[str],  # names of the parameters whose gradients will be summed
    progress: Progress = silent,
    *,
    is_fixed: bool = True,  # whether a step longer than `limit_seconds` is refused before it is made
) -> Plan:
    """Warm up, measure, and divide the budget of `limit_seconds`."""
    begin = time.perf_counter()
    step_seconds = trainer.world.from_main(trainer.warm_up(progress, limit_seconds if is_fixed else math.inf))
    reserves = _measure_reserves(trainer, rows, quantized, (LAG + 2) * step_seconds)
    division = Division.of(limit_seconds, reserves.total, trainer.config)
    return Plan(time.perf_counter() - begin, step_seconds, reserves, division)


def _measure_reserves(trainer: Trainer, rows: TrainingRows, quantized: Sequence[str], in_flight: float) -> Reserves:
    """Seconds to reserve for everything after the steps, measured on random tokens; rank 0's numbers."""
    model, config, world = trainer.model, trainer.config, trainer.world
    measure = config.measure
    tokens = torch.randint(model.config.vocab_size, (rows.shape.micro_rows, config.seq_len + 1), device=world.device)
    choice = calibration = fisher = 0.0
    if config.average.choose == "held_out":
        choice = choice_seconds(model, config.average, rows.held_out, tokens, world)
    batches = rows.num_micro_batches(measure.calibration_tokens, world.size)
    if batches:
        calibration = calibration_seconds(model, tokens[:, 1:], batches, world)
    if measure.fisher_tokens:
        batches = rows.num_micro_batches(measure.fisher_tokens, world.size)
        fisher = fisher_seconds(model, tokens[:, 1:], batches, quantized, world)
    return Reserves(
        choice=world.from_main(choice),
        calibration=world.from_main(MARGIN_SECONDS + (measure.reserve_seconds or calibration)),
        fisher=world.from_main(fisher),
        in_flight=in_flight,
    )
