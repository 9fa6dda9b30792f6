"""Ranks that update only their share of the matrices follow the losses of one process, with two and three ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from ranks import fork
from tiny_gpt import free_port, tiny_gpt
from tiny_trainer import make_trainer

from bitgolf.config.train import TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

STEPS, RESUMED_FROM, ROWS = 24, 14, 6


def train(world: World, checkpoint: Path) -> dict[str, Any]:
    """Losses, norms and the final weights; from step 14 on, a second trainer goes on from the state of the first."""
    config = TrainConfig().updated(
        {"grad_clip": 0.5, "muon.weight_decay": 0.1, "muon.cautious_decay": True, "average.ema_decay": 0.9}
        | {"muon.two_rails_from": 0.5}
    )
    shape = BatchShape(ROWS, ROWS // world.size, 1)  # several micro-batches per step

    def fresh() -> Trainer:
        return Trainer(tiny_gpt().requires_grad_(), config, shape, world)

    trainer, generator = fresh(), torch.Generator().manual_seed(3)
    metrics = []
    for step in range(STEPS):
        if step == RESUMED_FROM:
            state = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
            if world.is_main:
                torch.save(state, checkpoint)
            world.barrier()
            trainer = fresh()
            live = trainer.tensors()
            for name, tensor in torch.load(checkpoint).items():
                live[name].data.copy_(tensor)
        tokens = torch.randint(2, 40, (ROWS, 13), generator=generator)
        tokens[:, 1::2] = tokens[:, ::2][:, :6]  # something to learn
        own = tokens[world.rank * shape.rank_rows : (world.rank + 1) * shape.rank_rows]
        metrics.append(trainer.step(own[:, :-1], own[:, 1:], StepSettings(1.0, 0.9, fraction=step / STEPS))[1:].clone())
    return {"metrics": torch.stack(metrics), "digest": state_digest(trainer.tensors())}


def on_rank(rank: int, ports: dict[int, int], folder: Path) -> None:
    for size, port in ports.items():
        if rank < size:
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
            result = train(World(rank, size, torch.device("cpu")), folder / f"state-{size}.pt")
            torch.save(result, folder / f"{rank}-of-{size}.pt")
            dist.destroy_process_group()


def test_ranks_that_share_the_matrices_follow_one_process(tmp_path: Path, one_thread: None) -> None:
    assert fork(3, on_rank, {2: free_port(), 3: free_port()}, tmp_path) == [0, 0, 0]
    alone = train(World(0, 1, torch.device("cpu")), tmp_path / "alone.pt")["metrics"]
    losses = alone[:, 0]
    assert losses[-1] < 0.8 * losses[0]
    for size in (2, 3):
        results = [torch.load(tmp_path / f"{rank}-of-{size}.pt") for rank in range(size)]
        assert len({result["digest"] for result in results}) == 1  # weights and gathered state, the same on all ranks
        torch.testing.assert_close(results[0]["metrics"][:, 0], losses, rtol=0, atol=1e-3)
        torch.testing.assert_close(results[0]["metrics"][:5], alone[:5], rtol=2e-3, atol=1e-5)  # norms of every tensor


def test_gradients_that_are_exchanged_are_not_averaged_again_and_missing_ones_are_left_out() -> None:
    optimizer = make_trainer().optimizer
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    left_out, *others = [name for name in optimizer.names if name not in optimizer.muon.parameters]
    optimizer.parameters[left_out].grad = None
    averaged: list[torch.Tensor] = []
    optimizer.world = SimpleNamespace(mean_=averaged.extend)  # type: ignore[assignment]
    head, rows = torch.zeros(3), {("matrix", 0): torch.zeros(2)}
    exchange = SimpleNamespace(own_rows=lambda received: rows)
    for present, own, shared in (
        (None, {*optimizer.muon.parameters, *others}, {*optimizer.muon.parameters, *others}),
        (exchange, {*rows, *others}, set(others)),
    ):
        optimizer.muon.exchange = present  # type: ignore[assignment]
        assert optimizer._own_gradients({}).keys() == own
        averaged.clear()
        optimizer.average_(head)
        assert averaged[-1] is head
        assert {id(grad) for grad in averaged[:-1]} == {id(optimizer.parameters[name].grad) for name in shared}
