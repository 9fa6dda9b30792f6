"""Stage `train`: prepared shards -> float weights and calibration statistics, inside the wall clock.

    plan (warm-up, division of the budget) -> start -> steps -> final weights -> statistics -> products

The clock starts with the first timed step and stops after the last measurement on training text. Everything between
counts, checkpoints included. Random tokens in the untimed warm-up show how long the parts after the steps take; the
budget reserves that time, so no training text is read after it (rule B4 in docs/rules.md).
"""

import logging
import platform
from typing import Any

import torch

from bitgolf.config import Config
from bitgolf.data.prepare import PreparedData, open_data
from bitgolf.errors import ConfigError
from bitgolf.grids.roles import grids_of, require_passthrough_names
from bitgolf.model.build import build_model
from bitgolf.model.flash4 import keep_kernels
from bitgolf.run.clock import Clock
from bitgolf.run.directory import RunDirectory, writes_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World, device_name
from bitgolf.run.seal import TRAIN_SETTINGS, code_digest, data_seal, settings_of
from bitgolf.train.finish import Ending
from bitgolf.train.late import LatePhase
from bitgolf.train.loop import make_steps
from bitgolf.train.metrics import MetricsPipe, StepReport, TrainLog, read_events
from bitgolf.train.pace import Pace, Timeline
from bitgolf.train.plan import Plan, make_plan
from bitgolf.train.ramp import Ramp
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.rows import TrainingRows
from bitgolf.train.trainer import Trainer
from bitgolf.train.unattended import Unattended
from bitgolf.version import __version__

log = logging.getLogger(__name__)


@writes_run
def train(run: RunDirectory, world: World, around: Unattended, progress: Progress = silent) -> None:
    """Train the run's model and write train.jsonl, train.log, calibration/ and weights.safetensors.

    `around`: where the training begins, and what is done beside its steps (`attended.train_attended`).

    Raises:
        ConfigError, DataError: configuration and data do not fit each other.
        BudgetError: the training budget does not hold one step and the work after the steps.
        TrainingDiverged: NaN or infinity, with the step and the tensor.
    """
    config, data = run.config, run.require("data")
    prepared = open_data(data)
    rows = TrainingRows.plan(prepared, config, world.size)
    trainer, backend = make_trainer(config, prepared, rows, world)
    window = ReplayWindow(config.train.replay)
    ramp = Ramp.of(config.train)
    live = trainer.tensors() | window.state() | ramp.state()
    start = around.start(live, world)
    shapes = trainer.model.shapes()
    quantized = list(grids_of(shapes, config.pack))
    limit, is_fixed = config.budget.train_seconds, not config.budget.min_steps
    plan = make_plan(trainer, rows, limit, quantized, progress, is_fixed=is_fixed)
    if start.may_extend_budget:
        plan, config = extend_budget_(run, plan, world)
    start.restore_(live)
    ramp.begin(start.step)
    plan.require_time(start.step, start.seconds)

    train_log = TrainLog(run.path, world.is_main)
    if world.is_main:
        run.remove_products_of_later_stages()
    around.begin(start, plan, shapes, train_log, world)
    train_log.write(
        start.event,
        step=start.step,
        elapsed_seconds=start.seconds,
        **describe_run(config, rows.order.num_tokens, trainer, backend),
        data_seal=data_seal(data),
        code_sha256=code_digest(),
        settings=settings_of(config, TRAIN_SETTINGS),
        **start.details(),
        **plan.figures(),
    )
    pace = Pace(start.step, start.seconds, plan.step_seconds, ramp)
    timeline = Timeline(Clock(start.seconds), pace, plan.division, config.train.max_steps)
    pipe = MetricsPipe(world.device, trainer.optimizer.names)
    rates = around.mfu_per_token_rates(world)
    report = StepReport(pipe, timeline, train_log, config.train, world, progress, rates)
    with rows.loader(world, int(ramp.taken)) as loader:
        with around.steps(trainer, rows, live, report, prepared.tokenizer) as after_step:
            world.barrier()
            timeline.clock.start()
            step = make_steps(trainer, loader, window, report, start.step, after_step)
        ending = Ending(trainer, rows, loader, report, step)
        weights = ending.weights(window, plan.end_times.choice)
        statistics = ending.statistics(plan.end_times, quantized, config.seed)
    if world.is_main:
        around.end()
        ending.write_products(run, weights, statistics)
    world.barrier()


def extend_budget_(run: RunDirectory, plan: Plan, world: World) -> tuple[Plan, Config]:
    """Give a run with `budget.min_steps` the time that it needs on this machine, in writing, before its clock starts.

    The times stand in config.toml, in the first line of the log, and as the limits of the budget ledger. Returns the
    plan and the configuration that result.
    """
    before = run.config.budget
    plan, budget = plan.extended(before, run.config.train.max_steps)
    if budget != before:
        run.extend_budget_(budget, write=world.is_main)
        log.warning(
            "this machine takes %.2g s per step: budget.train_seconds is extended from %g to %g and "
            "budget.eval_seconds from %g to %g, so that budget.min_steps %d fit; training starts now and takes %g s",
            plan.step_seconds, before.train_seconds, budget.train_seconds, before.eval_seconds, budget.eval_seconds,
            budget.min_steps, budget.train_seconds,
        )  # fmt: skip
    return plan, run.config


def make_trainer(config: Config, data: PreparedData, rows: TrainingRows, world: World) -> tuple[Trainer, str]:
    """A trainer of the initial weights, and the attention backend of its model.

    Raises ConfigError for what `pack` could not do afterwards: `pack.passthrough` names no parameter of the model, or
    method `rate` has no tensor whose bytes it could choose.
    """
    if world.device.type == "cuda":
        keep_kernels()
    torch.manual_seed(config.seed)
    model, backend = build_model(config.model, config.train.seq_len, world.device, config.train.attention)
    model.initialize_(torch.Generator().manual_seed(config.seed))
    require_passthrough_names(model.shapes(), config.pack)
    if config.pack.method == "rate" and not grids_of(model.shapes(), config.pack):
        raise ConfigError(
            "pack.method 'rate' has no tensor whose bytes it could choose: each has one dimension, is in "
            f"pack.passthrough, or has at most pack.small_tensor = {config.pack.small_tensor:,} weights; lower that"
        )
    late = LatePhase.of(model, config.qat, config.pack) if config.qat.enabled else None
    prefixes = torch.from_numpy(data.tokenizer.longest_prefixes()) if config.train.extra_targets.prefix else None
    return Trainer(model, config.train, rows.shape, world, late, prefixes), backend


def describe_run(config: Config, num_tokens: int, trainer: Trainer, backend: str) -> dict[str, Any]:
    """Values of the first log line: configuration digest, data, software and hardware.

    `num_tokens`: training tokens without the held-out ones.
    """
    return {
        "config_sha256": config.digest(),
        "preset": config.name,
        "seed": config.seed,
        "train_seconds_limit": config.budget.train_seconds,
        "eval_seconds_limit": config.budget.eval_seconds,
        "world_size": trainer.world.size,
        "device": device_name(trainer.world.device),
        "attention": backend,
        "kernels": trainer.kernels,
        "compiled": trainer.compiled,
        "bitgolf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "train_tokens_available": num_tokens,
        "vocab_size": config.model.vocab_size,
    }


def is_finished(run: RunDirectory) -> bool:
    """True if the log of the training has its last line and the weights are written."""
    events = read_events(run / "train.jsonl")
    return bool(events) and events[-1]["event"] == "end" and (run / "weights.safetensors").exists()
