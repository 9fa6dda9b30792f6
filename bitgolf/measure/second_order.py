"""What packing to the byte needs besides the Hessians: Fisher statistics and the curvature of every tensor.

Both are gathered after the last step on the final weights, on the training clock and inside the budget: Fisher
statistics on the next rows of the training stream, like the Hessians; curvature on the rows that were held out from
training. The seconds are reserved beforehand, from measurements on random tokens in the untimed warm-up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from bitgolf.config import Config, TrainConfig
from bitgolf.data.held_out import HeldOut
from bitgolf.data.loader import BatchShape, TokenStream
from bitgolf.errors import RunError
from bitgolf.grids.roles import grid_of
from bitgolf.measure.calibration import hessian_key
from bitgolf.measure.curvature import Curvature, measure_curvature
from bitgolf.measure.fisher import Fisher, FisherCollector
from bitgolf.model.gpt import GPT
from bitgolf.model.weights import read_tensors, write_tensors
from bitgolf.run import atomic
from bitgolf.run.clock import SAFETY, Deadline
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World

_FISHER, _CURVATURE = "fisher.safetensors", "curvature.json"


def quantized_names(model: GPT, config: Config) -> list[str]:
    """Parameters that the packer rounds, in the order of the model."""
    return [name for name, p in model.named_parameters() if grid_of(name, tuple(p.shape), config.pack) is not None]


def num_fisher_batches(config: TrainConfig, shape: BatchShape, world_size: int) -> int:
    """Micro-batches a rank gathers its share of the Fisher statistics from; 0 = none."""
    if not config.measure.fisher_tokens:
        return 0
    return max(1, config.measure.fisher_tokens // (shape.micro_rows * config.seq_len * world_size))


def fisher_seconds(model: GPT, config: TrainConfig, shape: BatchShape, world: World) -> float:
    """Seconds to reserve for the Fisher statistics, from two passes over random tokens (the first one warms up)."""
    batches = num_fisher_batches(config, shape, world.size)
    if not batches:
        return 0.0
    device = world.device
    tokens = torch.randint(model.config.vocab_size, (shape.micro_rows, config.seq_len), device=device)
    collector = FisherCollector(model, torch.Generator(device=device).manual_seed(0))
    each = _second_run(lambda: collector.add(tokens), world)
    begin = time.perf_counter()
    collector.finish(world)
    # One batch more: the deadline stops when a batch of the longest kind might not fit.
    return SAFETY * ((batches + 1) * each + time.perf_counter() - begin)


def curvature_seconds(model: GPT, config: Config, world: World) -> float:
    """Seconds to reserve for the curvature, from measuring the widest tensor on random tokens; 0 = none is wanted."""
    train, device = config.train, world.device
    if not train.measure.curvature_tokens:
        return 0.0
    parameters = dict(model.named_parameters())
    names = quantized_names(model, config)
    widest = max(names, key=lambda name: parameters[name].size(1), default="")
    if not widest:
        return 0.0
    identity = torch.eye(parameters[widest].size(1), device=device)
    rows = [torch.randint(model.config.vocab_size, (_rows_a_rank(train, world), train.seq_len + 1), device=device)]
    each = _second_run(lambda: _measure(model, {widest: identity}, rows, config, world, 0), world)
    # On an H200 a tensor took 1.7 times as long after 300 s of training as in the warm-up.
    return 2 * SAFETY * (len(names) + 1) * each


def _second_run(work: Callable[[], object], world: World) -> float:
    """Seconds of `work` the second time."""
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        work()
        world.synchronize()
        seconds = time.perf_counter() - begin
    return seconds


def gather_fisher(
    model: GPT, batches: Iterable[Tensor], config: Config, world: World, deadline: Deadline
) -> dict[str, Fisher]:
    """Fisher statistics over this rank's micro-batches, (B, T) each, while the deadline allows; at least one."""
    generator = torch.Generator(device=world.device).manual_seed(config.seed + 1_000_003 * (world.rank + 1))
    collector = FisherCollector(model, generator)
    for tokens in batches:
        collector.add(tokens)
        if not deadline.another_fits():
            break
    return collector.finish(world)


def gather_curvature(
    model: GPT,
    hessians: dict[str, Tensor],
    held_out: HeldOut,
    stream: TokenStream,
    config: Config,
    world: World,
    deadline: Deadline,
    progress: Progress = silent,
) -> dict[str, Curvature]:
    """Curvature of every tensor that the packer rounds, on the first held-out rows, shared out among the ranks."""
    count = _rows_a_rank(config.train, world)
    rows = held_out.rows(stream, world.rank * count, count).to(world.device)
    wanted = {name: hessians.get(hessian_key(name) or "") for name in quantized_names(model, config)}
    return _measure(model, wanted, [rows], config, world, config.seed, deadline, progress)


def _measure(
    model: GPT,
    hessians: dict[str, Tensor] | dict[str, Tensor | None],
    rows: list[Tensor],
    config: Config,
    world: World,
    seed: int,
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> dict[str, Curvature]:
    first = True

    def keep_going() -> bool:
        nonlocal first
        if deadline is None or first:
            first = False
            return True
        return deadline.another_fits()

    return measure_curvature(
        model,
        dict(hessians),
        rows,
        relative_step=config.train.measure.curvature_step,
        damping=config.pack.gptq.damping,
        column_steps=config.pack.rate.column_steps,
        generator=torch.Generator(device=world.device).manual_seed(seed),
        world=world,
        keep_going=keep_going,
        progress=progress,
    )


def _rows_a_rank(config: TrainConfig, world: World) -> int:
    return max(1, config.measure.curvature_tokens // (config.seq_len * world.size))


def write_second_order(folder: Path, fisher: dict[str, Fisher], curvature: dict[str, Curvature]) -> None:
    """Write what was gathered into the run's calibration folder; what was not is removed."""
    for name, found in ((_FISHER, fisher), (_CURVATURE, curvature)):
        if not found:
            (folder / name).unlink(missing_ok=True)
    if fisher:
        tensors = {f"{name}.inputs": statistics.inputs for name, statistics in fisher.items()}
        tensors |= {f"{name}.rows": statistics.rows for name, statistics in fisher.items()}
        write_tensors(folder / _FISHER, tensors, {})
    if curvature:
        atomic.write_json(
            folder / _CURVATURE,
            {
                name: {"step": found.step, "increase_nats": found.increase_nats, "error_nats": found.error_nats}
                for name, found in curvature.items()
            },
        )


def read_fisher(folder: Path, run: Path) -> dict[str, Fisher]:
    """Fisher statistics by parameter name. Raises RunError when the run has none."""
    path = folder / _FISHER
    if not path.exists():
        raise RunError(
            f"{path} is missing: set train.measure.fisher_tokens and run `bitgolf train {run}` again, or pack with "
            "pack.rate.hessian 'plain'"
        )
    tensors = read_tensors(path, run)
    names = [key.removesuffix(".rows") for key in tensors if key.endswith(".rows")]
    return {name: Fisher(tensors[f"{name}.inputs"], tensors[f"{name}.rows"]) for name in names}


def read_curvature(folder: Path, run: Path) -> dict[str, Curvature]:
    """Curvature by parameter name. Raises RunError when the run has none or the file is damaged."""
    path = folder / _CURVATURE
    if not path.exists():
        raise RunError(
            f"{path} is missing: set train.measure.curvature_tokens and run `bitgolf train {run}` again, or pack with "
            "pack.method 'gptq'"
        )
    try:
        return {
            name: Curvature(float(found["step"]), float(found["increase_nats"]), float(found["error_nats"]))
            for name, found in json.loads(path.read_text()).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error}); run `bitgolf train {run}` again") from error
