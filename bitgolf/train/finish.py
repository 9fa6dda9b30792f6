"""The timed end of training, after the last step: replay burst, choice of the average, statistics; then the products.

Everything that reads training text happens inside the budget (rule B4 in docs/rules.md): each part ends when its next
round of work would not fit. The products are written off the clock: float weights, calibration statistics, the charges
and the end of the log.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitgolf.data.loader import BatchLoader
from bitgolf.measure.calibration import gather_hessians
from bitgolf.measure.fisher import Fisher, gather_fisher
from bitgolf.measure.statistics import Statistics, with_curvature, write_statistics
from bitgolf.model.weights import write_tensors
from bitgolf.run.clock import Deadline
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import TRAIN_PRODUCTS, file_digests
from bitgolf.train.choose import best, held_out_losses
from bitgolf.train.metrics import StepReport
from bitgolf.train.pace import EndTimes
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


class Ending:
    """What follows the last step on the training clock. All ranks call the methods together, each once, in this order.

    Attributes:
        seconds: of the training clock that each part of the training took, the optimizer steps first.
    """

    def __init__(
        self,
        trainer: Trainer,
        rows: TrainingRows,
        loader: BatchLoader,  # gives the next rows that training has not read
        report: StepReport,
        step: int,  # steps made
    ) -> None:
        self.trainer, self.rows, self.loader, self.report, self.step = trainer, rows, loader, report, step
        self.clock, self.world = report.timeline.clock, trainer.world
        self.seconds: dict[str, float] = {}
        self._total = 0.0
        self._stop("optimizer steps")

    def weights(self, window: ReplayWindow, choice_end: float) -> FinalWeights:
        """Replay and choose as configured, and put the final weights into the model.

        `choice_end`: when the choice must be over, in seconds of the training clock.
        """
        trainer = self.trainer
        if trainer.config.replay.epochs:
            self._replay(window)
            self._stop("replay")
        trainer.model.windows = trainer.model.config.attention.windows
        if trainer.config.average.choose == "held_out":
            weights, average = self._choose(choice_end)
            self._stop("choice of the average")
        else:
            weights, average = trainer.averages.shipped()
        last = trainer.averages.last_weights()
        trainer.install_(weights)
        return FinalWeights(weights, average, last)

    def statistics(
        self,
        ends: EndTimes,  # when each measurement must be over
        quantized: list[str],  # names of the parameters whose gradients are summed
        seed: int,  # of the Fisher labels
    ) -> Statistics:
        """Measure the model, which holds the final weights, as far as the clock allows."""
        model, measure, rows, world = self.trainer.model, self.trainer.config.measure, self.rows, self.world
        count = rows.num_micro_batches(measure.calibration_tokens, world.size)
        num_tokens = 0
        hessians: dict[str, Tensor] = {}
        if count:
            another_fits = Deadline(world, self.clock, ends.calibration).another_fits
            batches = rows.micro_batches(self.loader, count)
            hessians, num_tokens = gather_hessians(model, batches, world, another_fits)
        if num_tokens < count * rows.shape.micro_rows * rows.order.seq_len:
            log.warning("the clock stopped calibration after %d tokens per rank", num_tokens)
        self._stop("calibration")
        fisher: dict[str, Fisher] = {}
        gradients: dict[str, Tensor] = {}
        if measure.fisher_tokens:
            another_fits = Deadline(world, self.clock, ends.fisher).another_fits
            batches = rows.micro_batches(self.loader, rows.num_micro_batches(measure.fisher_tokens, world.size))
            fisher, gradients = gather_fisher(model, batches, quantized, seed, world, another_fits)
            self._stop("fisher statistics")
        return Statistics(hessians, num_tokens * world.size, fisher, gradients=gradients)

    def write_products(self, run: RunDirectory, weights: FinalWeights, statistics: Statistics) -> None:
        """Write weights and statistics, charge the seconds of every part, and end the log. Rank 0 calls it."""
        statistics = with_curvature(statistics, weights.shipped, run.config.pack, self.world.device)
        write_statistics(run / "calibration", statistics)
        _write_weights(run / "weights.safetensors", weights.shipped, weights.average)
        if run.config.score.last_reference:
            _write_weights(run / "weights-last.safetensors", weights.last, "last weights")
        budget, seconds = run.budget(), self.seconds
        budget.forget("train")
        for part, amount in seconds.items():
            budget.charge("train_seconds", "train", part, amount)
        total, steps_seconds = sum(seconds.values()), seconds["optimizer steps"]
        write = partial(self.report.log.write, step=self.step, elapsed_seconds=total)
        if statistics.curvature:
            increase = sum(value.increase_nats for value in statistics.curvature.values())
            write("curvature", tensors=len(statistics.curvature), increase_nats=increase)
        write("calibration", tokens=statistics.calibration_tokens, seconds=seconds["calibration"])
        tokens = self.report.timeline.pace.ramp.blocks(self.step) * self.trainer.config.block_tokens
        write(
            "end",
            tokens=tokens,
            steps_seconds=steps_seconds,
            tokens_per_second=tokens / max(steps_seconds, 1e-9),
            average=weights.average,
            peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
            products=file_digests(run.path, *TRAIN_PRODUCTS),
        )

    def _stop(self, part: str) -> None:
        """Everything since the last stop was `part`. All ranks wait for their device here."""
        self.world.synchronize()
        total = self.clock.elapsed()
        self.seconds[part], self._total = total - self._total, total

    def _replay(self, window: ReplayWindow) -> None:
        report, ramp = self.report, self.report.timeline.pace.ramp
        batches = window.batches(ramp.blocks(self.step), ramp.last_size)
        replayed = replay(self.trainer, self.loader, batches, self.step, report.timeline, report.pipe, report.progress)
        self.world.synchronize()
        if replayed.steps < replayed.planned:
            log.warning("the clock stopped the replay after %d of %d steps", replayed.steps, replayed.planned)
        report.log.write(
            "replay",
            step=self.step,
            batches=replayed.batches,
            first_batch=batches.start if batches else None,
            replay_steps=replayed.steps,
            planned_steps=replayed.planned,
            lr_scale=self.trainer.config.replay.lr,
            losses=list(replayed.losses),
            elapsed_seconds=self.clock.elapsed(),
        )

    def _choose(self, end: float) -> tuple[dict[str, Tensor], str]:
        """The candidate with the least loss on the held-out rows, and its description; all losses are logged."""
        candidates, rows, held_out = self.trainer.averages.candidates(), self.rows, self.rows.held_out
        deadline = Deadline(self.world, self.clock, end)
        losses, num_tokens = held_out_losses(
            self.trainer.model, candidates, held_out, rows.stream, rows.shape.micro_rows, self.world, deadline
        )
        chosen, all_tokens = best(losses, self.world), held_out.num_rows * held_out.seq_len
        if num_tokens < all_tokens:
            log.warning("the clock stopped the choice of the average after %d of %d tokens", num_tokens, all_tokens)
        self.report.log.write(
            "choice",
            step=self.step,
            chosen=chosen,
            configured=next(iter(candidates)),
            losses=losses,
            tokens=num_tokens,
            elapsed_seconds=self.clock.elapsed(),
        )
        return candidates[chosen], f"{chosen}, chosen of {len(candidates)} on {num_tokens} held-out training tokens"


def _write_weights(path: Path, weights: dict[str, Tensor], average: str) -> None:
    tensors = {name: tensor.float().cpu() for name, tensor in weights.items()}
    write_tensors(path, tensors, {"average": average})  # one key: safetensors writes several in a random order
