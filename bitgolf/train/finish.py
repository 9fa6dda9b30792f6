"""The timed end of training, after the last step: replay burst, choice of the average, statistics; then the products.

Everything that reads training text happens inside the budget (rule B4 in docs/rules.md): each part ends when its next
round of work would not fit. The products are written off the clock: float weights, calibration statistics, the charges
and the end of the log.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitgolf.data.loader import BatchLoader
from bitgolf.measure.calibration import gather_hessians
from bitgolf.measure.fisher import Fisher, gather_fisher
from bitgolf.measure.statistics import Statistics
from bitgolf.model.weights import write_tensors
from bitgolf.run.budget import Budget
from bitgolf.run.clock import Clock, Deadline
from bitgolf.run.ranks import World
from bitgolf.train.choose import best, held_out_losses
from bitgolf.train.metrics import StepReport, TrainLog
from bitgolf.train.pace import EndTimes, Timeline
from bitgolf.train.replay import ReplayWindow, replay
from bitgolf.train.rows import TrainingRows
from bitgolf.train.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalWeights:
    """The float weights to ship, by name, with a description of how they were averaged; and the last ones."""

    shipped: dict[str, Tensor]
    average: str
    last: dict[str, Tensor]


class Stopwatch:
    """Seconds of the training clock that each part of the training took."""

    def __init__(self, clock: Clock, world: World) -> None:
        self.clock, self.world = clock, world
        self.seconds: dict[str, float] = {}
        self._total = 0.0

    def stop(self, part: str) -> None:
        """Everything since the last stop was `part`. All ranks wait for their device here."""
        self.world.synchronize()
        total = self.clock.elapsed()
        self.seconds[part], self._total = total - self._total, total


def finish_weights(
    trainer: Trainer,
    rows: TrainingRows,
    loader: BatchLoader,
    timeline: Timeline,
    window: ReplayWindow,
    choice_end: float,
    report: StepReport,
    stopwatch: Stopwatch,
    step: int,
) -> FinalWeights:
    """Replay and choose as configured, and put the final weights into the model.

    `choice_end`: when the choice must be over, in seconds of the training clock.
    """
    if trainer.config.replay.epochs:
        _replay(trainer, loader, timeline, window, report, step)
        stopwatch.stop("replay")
    trainer.model.windows = trainer.model.config.attention.windows
    if trainer.config.average.choose == "held_out":
        deadline = Deadline(trainer.world, timeline.clock, choice_end)
        weights, average = _choose(trainer, rows, deadline, report.log, step)
        stopwatch.stop("choice of the average")
    else:
        weights, average = trainer.averages.shipped()
    last = trainer.averages.last_weights()
    trainer.install_(weights)
    return FinalWeights(weights, average, last)


def _replay(
    trainer: Trainer, loader: BatchLoader, timeline: Timeline, window: ReplayWindow, report: StepReport, step: int
) -> None:
    ramp = timeline.pace.ramp
    batches = window.batches(ramp.blocks(step), ramp.last_size)
    replayed = replay(trainer, loader, batches, step, timeline, report.pipe, report.progress)
    trainer.world.synchronize()
    if replayed.steps < replayed.planned:
        log.warning("the clock stopped the replay after %d of %d steps", replayed.steps, replayed.planned)
    report.log.write(
        "replay",
        step=step,
        batches=replayed.batches,
        first_batch=batches.start if batches else None,
        replay_steps=replayed.steps,
        planned_steps=replayed.planned,
        lr_scale=trainer.config.replay.lr,
        losses=list(replayed.losses),
        elapsed_seconds=timeline.clock.elapsed(),
    )


def _choose(
    trainer: Trainer, rows: TrainingRows, deadline: Deadline, train_log: TrainLog, step: int
) -> tuple[dict[str, Tensor], str]:
    """The candidate with the least loss on the held-out rows, and its description; all losses are logged."""
    candidates, held_out = trainer.averages.candidates(), rows.held_out
    losses, num_tokens = held_out_losses(
        trainer.model, candidates, held_out, rows.stream, rows.shape.micro_rows, trainer.world, deadline
    )
    chosen, all_tokens = best(losses, trainer.world), held_out.num_rows * held_out.seq_len
    if num_tokens < all_tokens:
        log.warning("the clock stopped the choice of the average after %d of %d tokens", num_tokens, all_tokens)
    train_log.write(
        "choice",
        step=step,
        chosen=chosen,
        configured=next(iter(candidates)),
        losses=losses,
        tokens=num_tokens,
        elapsed_seconds=deadline.clock.elapsed(),
    )
    return candidates[chosen], f"{chosen}, chosen of {len(candidates)} on {num_tokens} held-out training tokens"


def gather_statistics(
    trainer: Trainer,
    rows: TrainingRows,
    loader: BatchLoader,  # gives the next rows that training has not read
    ends: EndTimes,  # when each measurement must be over
    quantized: list[str],  # names of the parameters whose gradients are summed
    seed: int,  # of the Fisher labels
    stopwatch: Stopwatch,
) -> Statistics:
    """Measure the model, which holds the final weights, as far as the clock allows."""
    model, measure, world, clock = trainer.model, trainer.config.measure, trainer.world, stopwatch.clock
    count = rows.num_micro_batches(measure.calibration_tokens, world.size)
    num_tokens = 0
    hessians: dict[str, Tensor] = {}
    if count:
        deadline = Deadline(world, clock, ends.calibration)
        hessians, num_tokens = gather_hessians(model, rows.micro_batches(loader, count), world, deadline.another_fits)
    if num_tokens < count * rows.shape.micro_rows * rows.order.seq_len:
        log.warning("the clock stopped calibration after %d tokens per rank", num_tokens)
    stopwatch.stop("calibration")
    fisher: dict[str, Fisher] = {}
    gradients: dict[str, Tensor] = {}
    if measure.fisher_tokens:
        count = rows.num_micro_batches(measure.fisher_tokens, world.size)
        deadline = Deadline(world, clock, ends.fisher)
        batches = rows.micro_batches(loader, count)
        fisher, gradients = gather_fisher(model, batches, quantized, seed, world, deadline.another_fits)
        stopwatch.stop("fisher statistics")
    return Statistics(hessians, num_tokens * world.size, fisher, gradients=gradients)


def write_weights(folder: Path, weights: FinalWeights, *, last_too: bool) -> None:
    """Write weights.safetensors, and weights-last.safetensors if `last_too`, in fp32."""
    _write_weights(folder / "weights.safetensors", weights.shipped, weights.average)
    if last_too:
        _write_weights(folder / "weights-last.safetensors", weights.last, "last weights")


def _write_weights(path: Path, weights: dict[str, Tensor], average: str) -> None:
    tensors = {name: tensor.float().cpu() for name, tensor in weights.items()}
    write_tensors(path, tensors, {"average": average})  # one key: safetensors writes several in a random order


def charge_and_log_end(
    budget: Budget,
    train_log: TrainLog,
    seconds: dict[str, float],
    step: int,
    tokens: int,
    statistics: Statistics,
    average: str,
    products: dict[str, str],
) -> None:
    """Charge the seconds of every part to the budget, in place of those of an earlier training, and end the log.

    `tokens`: trained on in all steps. `products`: SHA-256 digests of weights and statistics by their path.
    """
    budget.forget("train")
    for part, amount in seconds.items():
        budget.charge("train_seconds", "train", part, amount)
    total, steps_seconds = sum(seconds.values()), seconds["optimizer steps"]
    if statistics.curvature:
        train_log.write(
            "curvature",
            step=step,
            tensors=len(statistics.curvature),
            increase_nats=sum(value.increase_nats for value in statistics.curvature.values()),
            elapsed_seconds=total,
        )
    train_log.write(
        "calibration",
        step=step,
        tokens=statistics.calibration_tokens,
        seconds=seconds["calibration"],
        elapsed_seconds=total,
    )
    train_log.write(
        "end",
        step=step,
        tokens=tokens,
        elapsed_seconds=total,
        steps_seconds=steps_seconds,
        tokens_per_second=tokens / max(steps_seconds, 1e-9),
        average=average,
        peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
        products=products,
    )
