"""Ranks that update only their share of the matrices follow the losses of one process, with two and three ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import fork
from tiny_gpt import free_port, tiny_gpt
from tiny_trainer import make_trainer

from bitgolf.config.train import TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.run.ranks import World
from bitgolf.train import exchange
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.exchange import Exchange
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
    shared_out = SimpleNamespace(own_rows=lambda received: rows)
    for present, own, shared in (
        (None, {*optimizer.muon.parameters, *others}, {*optimizer.muon.parameters, *others}),
        (shared_out, {*rows, *others}, set(others)),
    ):
        optimizer.muon.exchange = present  # type: ignore[assignment]
        assert optimizer._own_gradients({}).keys() == own
        averaged.clear()
        optimizer.average_(head)
        assert averaged[-1] is head
        assert {id(grad) for grad in averaged[:-1]} == {id(optimizer.parameters[name].grad) for name in shared}


@pytest.mark.parametrize("size", [2, 3, 7])
def test_every_matrix_reaches_the_rank_that_updates_it_and_comes_back(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks in one process, with the same gradients: their sum is `size` times one of them."""
    shapes = {(2, 3): [f"a{n}" for n in range(5)], (3, 2): [f"b{n}" for n in range(4)]}
    order = ["a0", "b0", "a1", "a2", "b1", "b2", "a3", "b3", "a4"]
    sent: list[torch.Tensor] = []
    padded: dict[int, torch.Tensor] = {}

    def reduce_scatter(received: torch.Tensor, parts: torch.Tensor, async_op: bool) -> Any:
        assert async_op
        sent.append(parts.clone())
        return SimpleNamespace(wait=lambda: received.copy_(size * parts[rank : rank + 1]))

    def all_gather(gathered: torch.Tensor, mine: torch.Tensor, async_op: bool) -> Any:
        assert async_op
        padded[rank] = mine
        return SimpleNamespace(wait=lambda: gathered.copy_(torch.cat([padded[other] for other in range(size)])))

    monkeypatch.setattr(exchange, "_reduce_scatter", reduce_scatter)
    monkeypatch.setattr(exchange, "_all_gather", all_gather)
    waiting = {}
    for rank in range(size):
        parameters = {name: torch.zeros(2, 3) if name in shapes[2, 3] else torch.zeros(3, 2) for name in order}
        for parameter in parameters.values():
            parameter.requires_grad_()
        world: Any = SimpleNamespace(rank=rank, size=size, device=torch.device("cpu"))
        made = Exchange(parameters, shapes, world)
        for armed in (True, False):  # as the gradients arrive, or all at the end
            sent.clear()
            if armed:
                made.arm()
            loss = sum((n + 1) * parameters[name].sum() for n, name in enumerate(order) if name != "b2")
            for parameter in parameters.values():
                parameter.grad = None
            loss.backward()  # type: ignore[union-attr]
            before = len(sent)
            received = made.receive()
            assert before == 0 if not armed else before < len(sent), "b2 has no gradient, so its round waits"
            numbers = [[int(part.flatten()[0]) for part in parts] for parts in sent]
            dealt = {(2, 3): [9, 7, 4, 3, 1], (3, 2): [8, 0, 5, 2]}  # numbers of a4, a3, .. and b3, b2 (none), ..
            rounds = [
                (numbers_of[first : first + size] + [0] * size)[:size]
                for numbers_of in dealt.values()
                for first in range(0, len(numbers_of), size)
            ]
            assert sorted(numbers) == sorted(rounds)
            rows = made.own_rows(received)
            for shape, names in shapes.items():
                own = [names[place] for place in made.own[shape].tolist()]
                assert own == names[::-1][rank::size] and len(received[shape]) == len(own)
                for name, row in zip(own, received[shape], strict=True):
                    value = 0 if name == "b2" else order.index(name) + 1
                    assert torch.equal(row, torch.full(shape, float(value))) and torch.equal(rows.pop(name), row)
            assert not rows
        for shape in shapes:
            mine = [torch.full(shape, float(place)) for place in made.own[shape].tolist()]
            waiting[rank, shape] = (
                made.gather(shape, torch.stack(mine) if mine else torch.zeros(0, *shape)),
                padded.copy(),
            )
    for shape, names in shapes.items():
        padded.update({rank: waiting[rank, shape][1][rank] for rank in range(size)})
        for rank in range(size):
            expected = torch.arange(len(names)).float()[:, None, None].expand(-1, *shape)
            assert torch.equal(waiting[rank, shape][0](), expected)
