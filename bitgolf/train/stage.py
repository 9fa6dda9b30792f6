"""Stage `train`: prepared shards -> averaged float weights and calibration statistics, inside the wall clock.

The clock starts with the first timed step and stops when the last calibration row has been used; everything in
between counts, checkpoints included. The loop leaves room for calibration (measured in the untimed warm-up), so
training text is never read after the budget. Rank 0's clock rules: its reading travels with the metrics, and
every rank decides from the same numbers.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.config import Config
from bitgolf.data.loader import BatchLoader, BatchShape, RowOrder
from bitgolf.data.prepare import PreparedData, open_data
from bitgolf.data.shards import TokenShards
from bitgolf.distributed import World, device_name
from bitgolf.errors import BudgetError, ConfigError
from bitgolf.model.build import build_model
from bitgolf.model.gpt import GPT
from bitgolf.progress import Progress, silent
from bitgolf.roles import grid_of
from bitgolf.rundir import RunDirectory
from bitgolf.train import calibration
from bitgolf.train.checkpoint import CheckpointStore, TrainState
from bitgolf.train.late import LatePhase
from bitgolf.train.metrics import MetricsPipe, TrainLog, read_events
from bitgolf.train.schedule import lr_multiplier, muon_momentum
from bitgolf.train.trainer import Trainer
from bitgolf.train.weights import write_tensors

log = logging.getLogger(__name__)

_LAG = 2  # steps between launching work and reading its metrics
_MARGIN_SECONDS = 0.1  # kept free for the last launches and the transfer of the statistics
_SAFETY = 1.15  # measured calibration time is reserved this many times


@dataclass
class _Clock:
    """Rank 0's training clock: seconds spent before this process plus seconds since `start`."""

    spent_before: float
    started: float | None = None

    def start(self) -> None:
        self.started = time.perf_counter()

    def elapsed(self) -> float:
        return self.spent_before + (time.perf_counter() - self.started if self.started is not None else 0.0)


@dataclass
class _Pace:
    """Elapsed time as every rank knows it: the last shared reading and the seconds a step takes."""

    step: int
    elapsed: float
    seconds_per_step: float

    def observe(self, step: int, elapsed: float) -> None:
        if step > self.step:
            measured = (elapsed - self.elapsed) / (step - self.step)
            self.seconds_per_step += 0.1 * (measured - self.seconds_per_step)
            self.step, self.elapsed = step, elapsed

    def predict(self, step: int) -> float:
        return self.elapsed + max(0, step - self.step) * self.seconds_per_step


def train(run: RunDirectory, world: World, *, resume: bool = False, progress: Progress = silent) -> None:
    """Train the run's model and write train.jsonl, train.log, checkpoint/, calibration/ and weights.safetensors.

    Raises:
        ConfigError, DataError: configuration and data do not fit each other.
        BudgetError: the training budget does not hold one step and its calibration.
        TrainingDiverged: NaN or infinity, with the step and the tensor.
    """
    config = run.config
    data = open_data(run.require("data"))
    shape, order = _plan(config, data, world)
    torch.manual_seed(config.seed)
    model, backend = build_model(config.model, config.train.seq_len, world.device, config.train.attention)
    model.initialize_(torch.Generator().manual_seed(config.seed))
    trainer = Trainer(model, config.train, shape, world, _late_phase(model, config))
    store = CheckpointStore(run / "checkpoint")
    loaded = store.load_latest(config.digest()) if resume else None
    begin = time.perf_counter()
    step_seconds = world.from_main(trainer.warm_up(config.model.vocab_size, progress))
    in_flight = _MARGIN_SECONDS + (_LAG + 2) * step_seconds
    reserve = world.from_main(_measure_calibration(trainer, config, shape)) + in_flight
    warm_up_seconds = time.perf_counter() - begin
    first_step, spent = 0, 0.0
    if loaded is not None:
        state, tensors = loaded
        trainer.load_({name: tensor.to(world.device) for name, tensor in tensors.items() if name != "rng"})
        torch.set_rng_state(tensors["rng"])
        first_step, spent = state.step, state.seconds_spent
    limit = config.budget.train_seconds
    if loaded is None and step_seconds + reserve > limit:
        raise BudgetError(
            f"budget.train_seconds = {limit:g} does not hold one optimizer step ({step_seconds:.3g} s) and "
            f"its calibration ({reserve:.3g} s reserved); allow more seconds, or make the batch, the model or "
            "train.calibration_tokens smaller"
        )
    if spent >= limit:
        raise BudgetError(
            f"budget.train_seconds = {limit:g} is spent: the checkpoint at step {first_step} was taken after "
            f"{spent:.3g} s, which leaves no time to calibrate; train from the start with `bitgolf train {run.path}`"
        )
    if loaded is None and world.is_main:
        store.remove_all()
    train_log = TrainLog(run.path, world.is_main)
    train_log.begin(first_step if loaded is not None else None)
    train_log.write(
        "resume" if loaded is not None else "start",
        step=first_step,
        elapsed_seconds=spent,
        **describe_run(config, data, world, backend, trainer.compiled),
        warm_up_seconds=warm_up_seconds,
        warm_up_step_seconds=step_seconds,
        calibration_reserve_seconds=reserve,
    )
    loop = _Loop(run, world, data, trainer, store, train_log, _Clock(spent), progress, order, shape, reserve)
    loop.go(first_step, _Pace(first_step, spent, step_seconds))


def describe_run(config: Config, data: PreparedData, world: World, backend: str, compiled: bool) -> dict[str, Any]:
    """What a reader of the log needs to know about a run: configuration digest, data, software and hardware."""
    return {
        "config_sha256": config.digest(),
        "preset": config.name,
        "seed": config.seed,
        "world_size": world.size,
        "device": device_name(world.device),
        "attention": backend,
        "compiled": compiled,
        "torch": torch.__version__,
        "train_tokens_available": data.train.num_tokens,
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
    return LatePhase(model, config.qat, grids, config.pack.percentiles)


def _plan(config: Config, data: PreparedData, world: World) -> tuple[BatchShape, RowOrder]:
    if data.tokenizer.vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size {config.model.vocab_size} but the tokenizer of the data has "
            f"{data.tokenizer.vocab_size} entries; set --model.vocab_size {data.tokenizer.vocab_size}"
        )
    shape = BatchShape.plan(
        config.train.batch_tokens, config.train.micro_batch_tokens, config.train.seq_len, world.size
    )
    return shape, RowOrder(data.train.num_tokens, config.train.seq_len, config.train.loader == "shuffled", config.seed)


def _calibration_batches(config: Config, shape: BatchShape, world_size: int) -> int:
    """Micro-batches a rank gathers its share of the statistics from."""
    return max(1, config.train.calibration_tokens // (shape.micro_rows * config.train.seq_len * world_size))


def _measure_calibration(trainer: Trainer, config: Config, shape: BatchShape) -> float:
    """Seconds to reserve for calibration, from two passes over random tokens (the first one warms up)."""
    world = trainer.world
    collector = calibration.HessianCollector(trainer.model)
    seconds = 0.0
    for _ in range(2):
        tokens = torch.randint(config.model.vocab_size, (shape.micro_rows, config.train.seq_len), device=world.device)
        begin = time.perf_counter()
        collector.add(tokens)
        world.synchronize()
        seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    collector.finish(world)
    finish = time.perf_counter() - begin
    if config.train.calibration_reserve_seconds:
        return config.train.calibration_reserve_seconds
    return _SAFETY * (seconds * _calibration_batches(config, shape, world.size) + finish)


class _KnownTokens:
    """The training tokens; an id that the model has no embedding for is a DataError when it is read."""

    def __init__(self, stream: TokenShards, vocab_size: int) -> None:
        self.stream, self.vocab_size, self.num_tokens = stream, vocab_size, stream.num_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of the stream, (length,) uint16."""
        tokens = self.stream.read(start, length)
        if length and int(tokens.max()) >= self.vocab_size:
            self.stream.validate(self.vocab_size)  # names file, position and id
        return tokens


class _Loop:
    """The timed part: steps until the reserve begins, then calibration, then the products."""

    def __init__(
        self,
        run: RunDirectory,
        world: World,
        data: PreparedData,
        trainer: Trainer,
        store: CheckpointStore,
        train_log: TrainLog,
        clock: _Clock,
        progress: Progress,
        order: RowOrder,
        shape: BatchShape,
        reserve: float,
    ) -> None:
        self.run, self.world, self.data, self.trainer, self.store = run, world, data, trainer, store
        self.log, self.clock, self.progress, self.order, self.shape = train_log, clock, progress, order, shape
        self.config = run.config.train
        self.limit = run.config.budget.train_seconds
        self.effective = self.limit - reserve
        self.pipe = MetricsPipe(world.device, trainer.optimizer.names, _LAG)
        self.recent: list[float] = []
        self.lr_scales: dict[int, float] = {}  # of the steps whose metrics are in flight

    def go(self, step: int, pace: _Pace) -> None:
        world = self.world
        last_checkpoint, last_logged = pace.elapsed, (step, pace.elapsed)
        stream = _KnownTokens(self.data.train, self.data.tokenizer.vocab_size)
        with BatchLoader(
            stream, self.order, self.shape, rank=world.rank, device=world.device, first_step=step
        ) as loader:
            world.barrier()
            self.clock.start()
            late_began = False
            while not self._done(step, pace):
                inputs, targets = next(loader)
                fraction = self._fraction(step, pace)
                lr_scale = lr_multiplier(fraction, self.config.warmdown, self.config.min_lr)
                late = self.run.config.qat.is_on(fraction, lr_scale)
                if late and not late_began:
                    late_began = True
                    self._begin_late(step, fraction, lr_scale)
                metrics = self.trainer.step(
                    inputs,
                    targets,
                    lr_scale,
                    muon_momentum(fraction, self.config),
                    self.clock.elapsed(),
                    fraction,
                    late,
                )
                step += 1
                self.lr_scales[step] = lr_scale
                for due in self.pipe.push(step, metrics):
                    last_logged = self._note(due, pace, last_logged)
                if (
                    self.config.checkpoint_seconds
                    and pace.predict(step) - last_checkpoint > self.config.checkpoint_seconds
                ):
                    last_logged = self._drain(pace, last_logged)
                    last_checkpoint = pace.predict(step)
                    self._checkpoint(step)
            self._drain(pace, last_logged)
            world.synchronize()
            steps_seconds = self.clock.elapsed()
            hessians, tokens = self._calibrate(loader)
        seconds = world.from_main(self.clock.elapsed())
        calibration_seconds = seconds - steps_seconds
        self._finish(step, steps_seconds, calibration_seconds, hessians, tokens * world.size)

    def _fraction(self, step: int, pace: _Pace) -> float:
        """Share of the run that is spent: by steps when they are capped, else by the clock."""
        if self.config.max_steps:
            return min(1.0, step / self.config.max_steps)
        return min(1.0, pace.predict(step) / self.effective)

    def _done(self, step: int, pace: _Pace) -> bool:
        if self.config.max_steps and step >= self.config.max_steps:
            return True
        return step > 0 and pace.predict(step + 1) > self.effective

    def _drain(self, pace: _Pace, last_logged: tuple[int, float]) -> tuple[int, float]:
        for due in self.pipe.drain():
            last_logged = self._note(due, pace, last_logged)
        return last_logged

    def _note(self, due: tuple[int, list[float]], pace: _Pace, last_logged: tuple[int, float]) -> tuple[int, float]:
        """Take in one step's metrics: the shared clock, the progress bar, every `log_every` steps a log line."""
        step, values = due
        elapsed, loss, grad_norm, lr_scale = values[0], values[1], values[-1], self.lr_scales.pop(step)
        pace.observe(step, elapsed)
        self.recent.append(loss)
        if self.world.is_main:
            limit = self.config.max_steps
            done, total = (step, limit) if limit else (min(elapsed, self.effective), self.effective)
            self.progress("train", done, total, f"step {step} loss {loss:.4f}")
        if step % self.config.log_every and step != 1:
            return last_logged
        before_step, before = last_logged
        tokens = self.config.batch_tokens
        # The clock is read when a step is launched, so the first reading times nothing; the warm-up's step does.
        seconds = pace.seconds_per_step if step == 1 else elapsed - before
        self.log.write(
            "step",
            step=step,
            loss=sum(self.recent) / len(self.recent),
            lr_scale=lr_scale,
            tokens=step * tokens,
            elapsed_seconds=elapsed,
            grad_norm=grad_norm,
            tokens_per_second=(step - before_step) * tokens / max(seconds, 1e-9),
        )
        self.recent = []
        return step, elapsed

    def _begin_late(self, step: int, fraction: float, lr_scale: float) -> None:
        """Switch the late phase on and write down that it changes the weights that are used."""
        assert self.trainer.late is not None
        moved = self.trainer.late.begin(fraction)
        qat = self.run.config.qat
        self.log.write(
            "late",
            step=step,
            fraction=fraction,
            lr_scale=lr_scale,
            mode=qat.mode,
            crown_lambda=qat.crown_lambda,
            relative_change=moved,
        )

    def _checkpoint(self, step: int) -> None:
        if not self.world.is_main:
            return
        spent = self.clock.elapsed()
        state = TrainState(step, spent, self.run.config.digest(), self.world.size)
        self.store.save(state, self.trainer.tensors() | {"rng": torch.get_rng_state()})
        self.log.write("checkpoint", step=step, elapsed_seconds=spent)

    def _calibrate(self, loader: BatchLoader) -> tuple[dict[str, Tensor], int]:
        """Load the final weights into the model and gather the Hessians from the next rows of the stream."""
        self.shipped = self.trainer.final_weights()
        weights, _ = self.shipped
        with torch.no_grad():
            for name, parameter in self.trainer.model.named_parameters():
                parameter.copy_(weights[name])
        wanted = _calibration_batches(self.run.config, self.shape, self.world.size)
        done, last, longest = 0, self.clock.elapsed(), 0.0

        def keep_going() -> bool:
            nonlocal done, last, longest
            done += 1
            self.world.synchronize()
            now = self.clock.elapsed()
            longest, last = max(longest, now - last), now
            return bool(self.world.from_main(float(now + longest < self.limit)))

        def batches() -> Any:
            left = wanted
            while left:
                for micro in next(loader)[0].split(self.shape.micro_rows)[:left]:
                    left -= 1
                    yield micro

        hessians, tokens = calibration.gather(self.trainer.model, batches(), self.world, keep_going)
        if done < wanted:
            log.warning("the clock stopped calibration after %d of %d batches", done, wanted)
        return hessians, tokens

    def _finish(
        self,
        step: int,
        steps_seconds: float,
        calibration_seconds: float,
        hessians: dict[str, Tensor],
        calibration_tokens: int,
    ) -> None:
        if not self.world.is_main:
            self.world.barrier()
            return
        self.store.close()
        seconds = steps_seconds + calibration_seconds
        weights, average = self.shipped
        meta = {"step": str(step), "average": average}
        write_tensors(self.run / "calibration" / "hessians.safetensors", hessians, {"tokens": str(calibration_tokens)})
        write_tensors(
            self.run / "weights.safetensors",
            {name: t.float().cpu() for name, t in weights.items()},
            meta,
        )
        budget = self.run.budget()
        budget.forget("train")
        budget.charge("train_seconds", "train", "optimizer steps", steps_seconds)
        budget.charge("train_seconds", "train", "calibration", calibration_seconds)
        self.log.write(
            "calibration",
            step=step,
            tokens=calibration_tokens,
            seconds=calibration_seconds,
            elapsed_seconds=seconds,
        )
        memory = torch.cuda.max_memory_allocated() / 2**20 if self.world.device.type == "cuda" else 0.0
        timed_tokens = step * self.config.batch_tokens
        self.log.write(
            "end",
            step=step,
            tokens=timed_tokens,
            elapsed_seconds=seconds,
            steps_seconds=steps_seconds,
            tokens_per_second=timed_tokens / max(steps_seconds, 1e-9),
            peak_memory_mib=memory,
        )
        self.world.barrier()


def is_finished(run: RunDirectory) -> bool:
    """True when the training that the log tells of has written its last product."""
    events = read_events(run / "train.jsonl")
    return bool(events) and events[-1]["event"] == "end" and (run / "weights.safetensors").exists()
