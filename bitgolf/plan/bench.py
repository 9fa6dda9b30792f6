"""How fast a preset trains and is evaluated on this machine, measured on random tokens with untrained weights.

Whole steps are timed without waiting between their parts, and then the parts alone, each until the device has finished
it. On a GPU `idle` is the time of a step in which no kernel runs, by PyTorch's profiler. On a CPU it is the time in
which the process does not run, for example because others do.
"""

import errno
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitgolf.config import Config
from bitgolf.data.loader import BatchLoader, BatchShape
from bitgolf.data.row_order import row_order
from bitgolf.evaluate.tape import ScoreTape, evaluate
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model.build import build_model
from bitgolf.model.document_borders import BOS
from bitgolf.model.flops import MFU_FORMULA, mfu, peak_flops
from bitgolf.run.ranks import World, device_name
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

PARTS = ("loader", "forward", "backward", "communication", "optimizer", "averaging")
_PROFILED_STEPS = 3
_SCORED_BATCHES = 3


def measure(
    config: Config, world: World, *, steps: int = 20, packing_seconds: float | None = None, trace: Path | None = None
) -> dict[str, Any]:
    """Figures of the preset `config` by name. `idle_ms` is part of a step, so the parts and it need not add up to one.

    Args:
        steps: timed steps; the warm-up takes `train.warmup_steps` more.
        packing_seconds: of a finished run, to be reported beside the rest.
        trace: where a trace of some steps is written, for chrome://tracing or Perfetto; None = nowhere.
    """
    train = config.train
    shape = BatchShape.plan(train.batch_tokens, train.micro_batch_tokens, train.seq_len, world.size)
    model, attention = build_model(config.model, train.seq_len, world.device, train.attention)
    model.initialize_(torch.Generator().manual_seed(config.seed))
    trainer = Trainer(model, train, shape, world)
    trainer.warm_up()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    stream = _RandomTokens(config.model.vocab_size, (2 * shape.rows + 1) * train.seq_len + 1)
    order = row_order(stream, stream.num_tokens, config, BOS)
    with BatchLoader(stream, order, shape, rank=world.rank, device=world.device) as loader:
        milliseconds, waiting = _step_time(trainer, loader, steps)
        parts = _part_times(trainer, loader, steps)
        busy = _profile(trainer, loader, trace)
    memory = _peak_memory(world)
    name, speed = device_name(world.device), 1e3 * train.batch_tokens / milliseconds
    return {
        "preset": config.name,
        "gpu": name,  # or the name of the CPU
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _commit(),
        "attention": attention,
        "kernels": trainer.kernels,
        "batch_tokens": train.batch_tokens,
        "seq_len": train.seq_len,
        "tokens_per_second": speed,
        "ms_per_step": milliseconds,
        "ms_per_part": parts,
        "idle_ms": max(0.0, milliseconds - busy) if busy else waiting,
        "mfu": mfu(config.model, train.seq_len, speed, name, world.size),
        "mfu_formula": MFU_FORMULA,
        "peak_flops": peak_flops(name),
        "peak_memory_mib": memory,
        "evaluation_tokens_per_second": _evaluation_speed(config, trainer, world),
        "packing_seconds": packing_seconds,
        "load": os.getloadavg()[0],  # processes that ran or waited in the last minute
    }


class _RandomTokens:
    """A `TokenStream` of random tokens."""

    def __init__(self, vocab_size: int, num_tokens: int) -> None:
        self.tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens).astype(np.uint16)
        self.num_tokens = num_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        return self.tokens[start : start + length]


def _one_step(trainer: Trainer, loader: BatchLoader) -> None:
    inputs, targets = next(loader)
    trainer.mark("loader")
    trainer.step(inputs, targets, StepSettings(1.0, trainer.config.muon.momentum))


def _step_time(trainer: Trainer, loader: BatchLoader, steps: int) -> tuple[float, float]:
    """Milliseconds per step, the median of five groups of steps, and those in which this process did not run."""
    group, walls, works = max(1, steps // 5), [], []
    for _ in range(5):
        trainer.world.synchronize()
        wall, work = time.perf_counter(), time.process_time()
        for _ in range(group):
            _one_step(trainer, loader)
        trainer.world.synchronize()
        walls.append((time.perf_counter() - wall) / group)
        works.append((time.process_time() - work) / group / torch.get_num_threads())
    milliseconds = 1e3 * statistics.median(walls)
    return milliseconds, max(0.0, milliseconds - 1e3 * statistics.median(works))


def _part_times(trainer: Trainer, loader: BatchLoader, steps: int) -> dict[str, float]:
    """Milliseconds per part of a step, medians over the steps."""
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    current: dict[str, float] = defaultdict(float)
    last = 0.0

    def mark(part: str) -> None:
        nonlocal last
        trainer.world.synchronize()
        now = time.perf_counter()
        current[part] += now - last
        last = now

    trainer.mark = mark
    for _ in range(steps):
        trainer.world.synchronize()
        current.clear()
        last = time.perf_counter()
        _one_step(trainer, loader)
        for part in PARTS:
            seconds[part].append(current[part])
    trainer.mark = lambda part: None
    return {part: 1e3 * statistics.median(values) for part, values in seconds.items()}


def _profile(trainer: Trainer, loader: BatchLoader, trace: Path | None) -> float:
    """Milliseconds per step in which the GPU runs kernels; 0 on a CPU. Writes the trace."""
    on_cuda = trainer.world.device.type == "cuda"
    if not on_cuda and trace is None:
        return 0.0
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(_PROFILED_STEPS):
            _one_step(trainer, loader)
        trainer.world.synchronize()
    if trace is not None and trainer.world.is_main:
        profile.export_chrome_trace(str(trace))
        if not trace.is_file():  # the profiler tells nobody that the disk is full
            raise OSError(errno.EIO, "the profiler could not write its trace", str(trace))
    microseconds = sum(event.self_device_time_total for event in profile.key_averages()) if on_cuda else 0.0
    return float(microseconds) / 1e3 / _PROFILED_STEPS


def _evaluation_speed(config: Config, trainer: Trainer, world: World) -> float:
    """Targets per second of the last method of `score.methods`, on a few batches of windows."""
    windows = Windows.of(config)
    own = windows.length if windows.method == "chunked" else windows.stride
    batch = max(1, windows.batch_tokens // windows.length) * own * world.size
    targets = windows.length + _SCORED_BATCHES * batch
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, targets + 1).astype(np.uint16)
    trainer.model.eval()
    scorer = windows.scorer(trainer.model, world)
    seconds = []
    for _ in range(2):  # the first compiles
        tape = ScoreTape(tokens)
        world.synchronize()
        begin = time.perf_counter()
        evaluate(tape, scorer)
        world.synchronize()
        seconds.append(time.perf_counter() - begin)
    return targets / seconds[-1]


def _peak_memory(world: World) -> float:
    """MiB: of the GPU's allocations since the warm-up, or of this process; 0 = unknown, on Windows."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device) / 2**20
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _commit() -> str:
    """The commit of the source, with "+" if it was changed; "" outside a repository."""
    run = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(run, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
