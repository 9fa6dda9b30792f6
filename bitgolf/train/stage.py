"""Stage `train`: prepared shards -> averaged float weights and calibration statistics, inside the wall clock.

The clock starts with the first timed step and stops when the last calibration row has been used; everything in
between counts, checkpoints included. The steps leave room for what follows them (see `finish`), measured in the untimed
warm-up, so training text is never read after the budget. Rank 0's clock rules: its reading travels with the metrics,
and every rank decides from the same numbers.
"""

from __future__ import annotations

import logging
import platform
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitgolf.config import Config, differing_keys
from bitgolf.data.held_out import HeldOut
from bitgolf.data.loader import BatchLoader, BatchShape, RowOrder
from bitgolf.data.prepare import PreparedData, open_data
from bitgolf.errors import BudgetError, ConfigError, RunError
from bitgolf.grids.roles import grid_of, require_passthrough_names
from bitgolf.measure.calibration import calibration_seconds
from bitgolf.measure.second_order import curvature_seconds, fisher_seconds
from bitgolf.model.build import build_model
from bitgolf.model.gpt import GPT
from bitgolf.run.clock import Clock
from bitgolf.run.directory import RunDirectory
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World, device_name
from bitgolf.train.branch import Trunk, adapt, find_trunk, require_same_data
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.choose import choice_seconds
from bitgolf.train.effects import without_effect
from bitgolf.train.finish import finish, write_products
from bitgolf.train.late import LatePhase
from bitgolf.train.loop import StepLoop
from bitgolf.train.metrics import MetricsPipe, TrainLog, read_events
from bitgolf.train.pace import LAG, MARGIN_SECONDS, Division, Pace
from bitgolf.train.replay import ReplayWindow
from bitgolf.train.session import KnownTokens, Reserves, Session
from bitgolf.train.trainer import Trainer
from bitgolf.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where the timed steps begin: "start" (from nothing), "resume" or "branch" (from a checkpoint)."""

    how: str = "start"
    step: int = 0
    seconds: float = 0.0
    origin: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def train(
    run: RunDirectory, world: World, *, resume: bool = False, branch: str = "", progress: Progress = silent
) -> None:
    """Train the run's model and write train.jsonl, train.log, checkpoint/, calibration/ and weights.safetensors.

    Args:
        resume: go on from the run's last checkpoint, if it has one.
        branch: begin from a checkpoint of another run, `RUN` or `RUN@STEP` (see `bitgolf.train.branch`).

    Raises:
        ConfigError, DataError: configuration and data do not fit each other, or a branch its trunk.
        BudgetError: the training budget does not hold one step and what follows the steps.
        RunError: there is no checkpoint to branch from, or those of this run are damaged.
        TrainingDiverged: NaN or infinity, with the step and the tensor.
    """
    config = run.config
    data = open_data(run.require("data"))
    shape, held_out, order = _plan(config, data, world)
    trunk = find_trunk(branch, config, run.path) if branch else None
    if trunk is not None:
        require_same_data(trunk, run)
    torch.manual_seed(config.seed)
    model, backend = build_model(config.model, config.train.seq_len, world.device, config.train.attention)
    model.initialize_(torch.Generator().manual_seed(config.seed))
    require_passthrough_names((name for name, _ in model.named_parameters()), config.pack)
    trainer = Trainer(model, config.train, shape, world, _late_phase(model, config))
    window = ReplayWindow(config.train)
    store = CheckpointStore(run / "checkpoint")
    start = _starting_point(config, store, trunk, resume, world, trainer.tensors() | window.state())
    need = _measure(trainer, config, held_out, shape, world, progress)
    division = Division.of(config.budget.train_seconds, need.reserve, config.train)
    if start.how != "start":
        trainer.load_({name: tensor.to(world.device) for name, tensor in start.tensors.items()})
        for name, tensor in window.state().items():
            tensor.copy_(start.tensors[name])
        torch.set_rng_state(start.tensors["rng"])
    _require_time(run, start, division, need.step)
    steps_end = division.steps_end(need.step)
    if world.is_main:
        _warn(config, model, start, steps_end, need.step)
        if start.how != "resume":
            store.remove_all()
        if start.how == "branch":  # the branch's own first checkpoint: from here on it needs its trunk no more
            state = TrainState(start.step, start.seconds, config.digest(), world.size, start.origin)
            store.save(state, start.tensors)
            store.wait()
    start.tensors.clear()
    train_log = TrainLog(run.path, world.is_main)
    history = trunk.run / "train.jsonl" if trunk is not None and start.how == "branch" else None
    train_log.begin(None if start.how == "start" else start.step, history)
    train_log.write(
        start.how,
        step=start.step,
        elapsed_seconds=start.seconds,
        **describe_run(config, order, world, backend, trainer.compiled),
        **start.about,
        warm_up_seconds=need.warm_up,
        warm_up_step_seconds=need.step,
        calibration_reserve_seconds=need.reserves.calibration,
        reserve_seconds=need.reserve,
        replay_reserve_seconds=division.replay_end - steps_end,
    )
    session = Session(
        run=run,
        world=world,
        stream=KnownTokens(data.train, data.tokenizer.vocab_size),
        order=order,
        shape=shape,
        held_out=held_out,
        trainer=trainer,
        window=window,
        store=store,
        log=train_log,
        pipe=MetricsPipe(world.device, trainer.optimizer.names, LAG),
        clock=Clock(start.seconds),
        pace=Pace(start.step, start.seconds, need.step),
        division=division,
        reserves=need.reserves,
        origin=start.origin,
        progress=progress,
    )
    with BatchLoader(
        session.stream, order, shape, rank=world.rank, device=world.device, first_step=start.step
    ) as loader:
        world.barrier()
        session.clock.start()
        step = StepLoop(session, start.step).run(loader)
        ending = finish(session, loader, step)
    write_products(session, step, ending)


def describe_run(config: Config, order: RowOrder, world: World, backend: str, compiled: bool) -> dict[str, Any]:
    """What a reader of the log needs to know about a run: configuration digest, data, software and hardware."""
    return {
        "config_sha256": config.digest(),
        "preset": config.name,
        "seed": config.seed,
        "world_size": world.size,
        "device": device_name(world.device),
        "attention": backend,
        "compiled": compiled,
        "bitgolf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "train_tokens_available": order.num_tokens,
        "vocab_size": config.model.vocab_size,
    }


def _late_phase(model: GPT, config: Config) -> LatePhase | None:
    """The quantized part of the run, on the grids that the weights will be packed on."""
    if not config.qat.enabled:
        return None
    grids = {}
    for name, parameter in model.named_parameters():
        grid = grid_of(name, tuple(parameter.shape), config.pack)
        if grid is not None:
            grids[name] = grid
    return LatePhase(model, config.qat, grids, config.pack.grid.percentiles)


def _plan(config: Config, data: PreparedData, world: World) -> tuple[BatchShape, HeldOut, RowOrder]:
    if data.tokenizer.vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} but the tokenizer of the data has "
            f"{data.tokenizer.vocab_size} entries; set --model.vocab_size {data.tokenizer.vocab_size}"
        )
    train = config.train
    shape = BatchShape.plan(train.batch_tokens, train.micro_batch_tokens, train.seq_len, world.size)
    held_out = HeldOut.of(data.train.num_tokens, train)
    return shape, held_out, RowOrder(held_out.first, train.seq_len, train.loader == "shuffled", config.seed)


def _starting_point(
    config: Config, store: CheckpointStore, trunk: Trunk | None, resume: bool, world: World, fresh: dict[str, Tensor]
) -> Start:
    """The run's own checkpoint when it is resumed, else its trunk's, else nothing. `fresh`: tensors that it needs."""
    loaded = store.load_latest(config.digest()) if resume else None
    if loaded is not None:
        state, tensors = loaded
        if trunk is not None and not trunk.is_origin(state.origin):
            raise RunError(
                f"the checkpoints in {store.folder} did not begin from {trunk.run.path}; leave out --branch to resume "
                "them, or --resume to begin the branch anew"
            )
        return Start("resume", state.step, state.seconds_spent, state.origin, tensors)
    if trunk is None:
        return Start()
    newest = trunk.load(trunk.step) if world.is_main else None  # a trunk that still trains has a new one any time
    step = int(world.from_main(float(newest[0].step if newest else 0)))
    state, tensors = newest or trunk.load(step)
    tensors, started = adapt(tensors, fresh, trunk, config)
    if state.world_size != world.size:
        log.warning("%s trained on %d processes, this branch on %d", trunk.run.path, state.world_size, world.size)
    about = {
        "branch_run": str(trunk.run.path),
        "branch_config_sha256": trunk.run.config.digest(),
        "branch_step": step,
        "branch_seconds": state.seconds_spent,
        "branch_world_size": state.world_size,
        "branch_differs": differing_keys(trunk.run.config, config),
        "branch_starts_fresh": started,
    }
    return Start("branch", step, state.seconds_spent, trunk.origin(step), tensors, about)


@dataclass(frozen=True)
class Need:
    """Seconds, as measured in the warm-up: of it, of a step, for each part that follows the steps, for all of them."""

    warm_up: float
    step: float
    reserves: Reserves
    reserve: float


def _measure(
    trainer: Trainer, config: Config, held_out: HeldOut, shape: BatchShape, world: World, progress: Progress
) -> Need:
    """Compile and touch everything, untimed, and learn what a step and the end of training take; rank 0's numbers."""
    begin = time.perf_counter()
    step = world.from_main(trainer.warm_up(config.model.vocab_size, progress, config.budget.train_seconds))
    reserves = _measure_reserves(trainer.model, config, shape, held_out, world)
    return Need(time.perf_counter() - begin, step, reserves, reserves.total + (LAG + 2) * step)


def _measure_reserves(model: GPT, config: Config, shape: BatchShape, held_out: HeldOut, world: World) -> Reserves:
    """Seconds to keep for all that follows the steps, measured off the clock; the same on every rank."""
    choice = 0.0
    if config.train.average.choose == "held_out":
        choice = choice_seconds(model, config.train, held_out, shape.micro_rows, world)
    return Reserves(
        world.from_main(choice),
        world.from_main(MARGIN_SECONDS + calibration_seconds(model, config.train, shape, world)),
        world.from_main(fisher_seconds(model, config.train, shape, world)),
        world.from_main(curvature_seconds(model, config, world)),
    )


def _require_time(run: RunDirectory, start: Start, division: Division, step_seconds: float) -> None:
    """Raises BudgetError unless the steps that are left, and what follows them, have room in the budget."""
    limit, reserve = division.limit, division.reserve
    if start.how == "start" and step_seconds + reserve > limit:
        raise BudgetError(
            f"budget.train_seconds = {limit:g} does not hold one optimizer step ({step_seconds:.3g} s) and what "
            f"follows the steps ({reserve:.3g} s reserved for calibration and what else is measured on the final "
            "weights); allow more seconds, or make the batch, the model or train.measure.calibration_tokens smaller"
        )
    if start.seconds >= limit:
        raise BudgetError(
            f"budget.train_seconds = {limit:g} is spent: the checkpoint at step {start.step} was taken after "
            f"{start.seconds:.3g} s, which leaves no time to calibrate; train from the start with `bitgolf train "
            f"{run.path}`"
        )


def _warn(config: Config, model: GPT, start: Start, steps_end: float, step_seconds: float) -> None:
    """Say which settings change nothing in this run, as far as its length is known."""
    most = config.train.max_steps
    num_steps = most or max(1, int(steps_end / step_seconds))
    begun = 0.0
    if start.how == "branch":
        begun = start.step / most if most else start.seconds / steps_end
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for sentence in without_effect(config, shapes, num_steps, begun):
        log.warning("no effect: %s", sentence)


def is_finished(run: RunDirectory) -> bool:
    """True when the training that the log tells of has written its last product."""
    events = read_events(run / "train.jsonl")
    return bool(events) and events[-1]["event"] == "end" and (run / "weights.safetensors").exists()
