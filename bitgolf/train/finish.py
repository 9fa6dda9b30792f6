"""After the last step, still on the training clock: the replay burst, the choice of the average, the statistics.

Then, off the clock, the products: float weights, calibration statistics, the charges and the end of the log. All that
reads training text happens inside the budget (rule B4): each part stops when the next round of work would not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitgolf.data.loader import BatchLoader
from bitgolf.measure import calibration
from bitgolf.measure.curvature import Curvature
from bitgolf.measure.fisher import Fisher
from bitgolf.measure.second_order import (
    gather_curvature,
    gather_fisher,
    num_fisher_batches,
    quantized_names,
    write_second_order,
)
from bitgolf.model.weights import write_tensors
from bitgolf.run.clock import Deadline
from bitgolf.train.choose import best, held_out_losses
from bitgolf.train.replay import replay
from bitgolf.train.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """What the end of training gave: weights with their making, statistics, and the seconds of every part."""

    weights: dict[str, Tensor]
    last: dict[str, Tensor]  # before averaging
    average: str
    hessians: dict[str, Tensor]
    calibration_tokens: int
    fisher: dict[str, Fisher]
    curvature: dict[str, Curvature]
    seconds: dict[str, float]


def finish(session: Session, loader: BatchLoader, step: int) -> Ending:
    """The timed end of training after `step` steps; `loader` stands at the next unseen batch."""
    world, clock = session.world, session.clock
    world.synchronize()
    marks = [clock.elapsed()]
    seconds = {"optimizer steps": marks[0]}

    def took(what: str) -> None:
        world.synchronize()
        marks.append(clock.elapsed())
        seconds[what] = marks[-1] - marks[-2]

    if session.config.replay.epochs:
        _replay(session, loader, step)
        took("replay")
    if session.config.average.choose == "held_out":
        weights, average = _choose(session, step)
        took("choice of the average")
    else:
        weights, average = session.trainer.final_weights()
    last = session.trainer.averages.last_weights()
    session.trainer.install_(weights)
    hessians, tokens = _calibrate(session, loader)
    took("calibration")
    fisher: dict[str, Fisher] = {}
    curvature: dict[str, Curvature] = {}
    if session.config.measure.fisher_tokens:
        fisher = _fisher(session, loader)
        took("fisher statistics")
    if session.config.measure.curvature_tokens:
        curvature = _curvature(session, hessians, step)
        took("curvature")
    seconds = {what: world.from_main(spent) for what, spent in seconds.items()}
    return Ending(weights, last, average, hessians, tokens * world.size, fisher, curvature, seconds)


def _replay(session: Session, loader: BatchLoader, step: int) -> None:
    batches = session.window.batches(step)
    done = replay(
        session.trainer,
        loader,
        batches,
        step,
        session.pace,
        session.clock,
        session.pipe,
        session.division.replay_end,
        session.progress,
    )
    session.world.synchronize()
    if done.steps < done.planned:
        log.warning("the clock stopped the replay after %d of %d steps", done.steps, done.planned)
    session.log.write(
        "replay",
        step=step,
        batches=done.batches,
        first_batch=batches.start if batches else None,
        replay_steps=done.steps,
        planned_steps=done.planned,
        lr_scale=session.config.replay.lr,
        losses=list(done.losses),
        elapsed_seconds=session.clock.elapsed(),
    )


def _choose(session: Session, step: int) -> tuple[dict[str, Tensor], str]:
    """The candidate of least loss on the held-out rows; all of them are logged."""
    trainer, world = session.trainer, session.world
    candidates = trainer.averages.candidates()
    reserves = session.reserves
    until = session.division.limit - reserves.calibration - reserves.fisher - reserves.curvature
    losses, tokens = held_out_losses(
        trainer.model,
        candidates,
        session.held_out,
        session.stream,
        session.shape.micro_rows,
        world,
        Deadline(world, session.clock, until),
    )
    chosen = best(losses, world)
    wanted = session.held_out.num_rows * session.held_out.seq_len
    if tokens < wanted:
        log.warning("the clock stopped the choice of the average after %d of %d held-out tokens", tokens, wanted)
    session.log.write(
        "choice",
        step=step,
        chosen=chosen,
        configured=next(iter(candidates)),
        losses=losses,
        tokens=tokens,
        elapsed_seconds=session.clock.elapsed(),
    )
    return candidates[chosen], f"{chosen}, chosen of {len(candidates)} on {tokens} held-out training tokens"


def _calibrate(session: Session, loader: BatchLoader) -> tuple[dict[str, Tensor], int]:
    """Gather the Hessians of the model as it is now from the next rows of the stream."""
    config, world, shape = session.config, session.world, session.shape
    wanted = calibration.num_batches(config, shape, world.size)
    done = 0
    until = session.division.limit - session.reserves.fisher - session.reserves.curvature
    deadline = Deadline(world, session.clock, until)

    def keep_going() -> bool:
        nonlocal done
        done += 1
        return deadline.another_fits()

    batches = _next_batches(session, loader, wanted)
    hessians, tokens = calibration.gather(session.trainer.model, batches, world, keep_going)
    if done < wanted:
        log.warning("the clock stopped calibration after %d of %d batches", done, wanted)
    return hessians, tokens


def _next_batches(session: Session, loader: BatchLoader, wanted: int) -> Iterator[Tensor]:
    """The next `wanted` micro-batches of inputs of this rank, (B, T) each."""
    left = wanted
    while left:
        for micro in next(loader)[0].split(session.shape.micro_rows)[:left]:
            left -= 1
            yield micro


def _fisher(session: Session, loader: BatchLoader) -> dict[str, Fisher]:
    """Second-order statistics on the rows of the stream that follow."""
    config, world = session.run.config, session.world
    until = session.division.limit - session.reserves.curvature
    wanted = num_fisher_batches(config.train, session.shape, world.size)
    return gather_fisher(
        session.trainer.model,
        _next_batches(session, loader, wanted),
        config,
        world,
        Deadline(world, session.clock, until),
    )


def _curvature(session: Session, hessians: dict[str, Tensor], step: int) -> dict[str, Curvature]:
    """Curvature of every tensor that will be rounded, on held-out rows."""
    config, world = session.run.config, session.world
    model = session.trainer.model
    found = gather_curvature(
        model,
        hessians,
        session.held_out,
        session.stream,
        config,
        world,
        Deadline(world, session.clock, session.division.limit),
        session.progress,
    )
    wanted = len(quantized_names(model, config))
    if len(found) < wanted:
        log.warning("the clock stopped the measurement of curvature after %d of %d tensors", len(found), wanted)
    session.log.write(
        "curvature",
        step=step,
        tensors=len(found),
        of=wanted,
        tokens=config.train.measure.curvature_tokens,
        increase_nats=sum(measured.increase_nats for measured in found.values()),
        elapsed_seconds=session.clock.elapsed(),
    )
    return found


def write_products(session: Session, step: int, ending: Ending) -> None:
    """Rank 0 writes the weights, the statistics, the charges and the end of the log; the others wait."""
    if not session.world.is_main:
        session.world.barrier()
        return
    session.store.close()
    run, total = session.run, sum(ending.seconds.values())
    write_tensors(
        run / "calibration" / "hessians.safetensors",
        ending.hessians,
        {"tokens": str(ending.calibration_tokens)},
    )
    write_second_order(run / "calibration", ending.fisher, ending.curvature)
    _write_weights(run / "weights.safetensors", ending.weights, step, ending.average)
    if run.config.score.last_reference:
        _write_weights(run / "weights-last.safetensors", ending.last, step, "last weights")
    budget = run.budget()
    budget.forget("train")
    for what, seconds in ending.seconds.items():
        budget.charge("train_seconds", "train", what, seconds)
    session.log.write(
        "calibration",
        step=step,
        tokens=ending.calibration_tokens,
        seconds=ending.seconds["calibration"],
        elapsed_seconds=total,
    )
    device = session.world.device
    tokens, steps_seconds = step * session.config.batch_tokens, ending.seconds["optimizer steps"]
    session.log.write(
        "end",
        step=step,
        tokens=tokens,
        elapsed_seconds=total,
        steps_seconds=steps_seconds,
        tokens_per_second=tokens / max(steps_seconds, 1e-9),
        average=ending.average,
        peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0,
    )
    session.world.barrier()


def _write_weights(path: Path, weights: dict[str, Tensor], step: int, average: str) -> None:
    tensors = {name: tensor.float().cpu() for name, tensor in weights.items()}
    write_tensors(path, tensors, {"step": str(step), "average": average})
