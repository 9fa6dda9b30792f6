"""Gradients of block matrices between ranks: each rank receives the means of the matrices that it updates, no others.

The matrices of one shape are dealt out like cards, the last layer first: one to each rank, then the next round. A round
is one reduce-scatter, which starts as soon as the backward pass has the gradients of the round, so it runs beside the
rest of the backward pass. (A compiled backward pass hands all gradients over at its end; the rounds then run beside
each other and the first updates.) Each rank orthogonalizes its matrices, and one all-gather per shape, started while
the next shape is computed, gives every rank all updates.
Source: modded-nanogpt (github.com/KellerJordan/modded-nanogpt), which shards Muon in this way.

Legend: N matrices of one shape, R rows, C columns, S ranks, n = ceil(N / S) rounds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bitgolf.run.ranks import World

# PyTorch 2.13 renamed them.
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

Shape = tuple[int, int]


class Exchange:
    """The rounds of all stacks of a model.

    Args:
        parameters: by name.
        stacks: names of the matrices of each shape, in the order of the layers; the same on every rank.
        world: more than one rank.
    """

    def __init__(self, parameters: dict[str, Tensor], stacks: dict[Shape, list[str]], world: World) -> None:
        self.parameters, self.world = parameters, world
        self.dealt = {shape: list(reversed(names)) for shape, names in stacks.items()}
        self.own = {
            shape: torch.arange(len(names) - 1 - world.rank, -1, -world.size, device=world.device)
            if world.rank < len(names)
            else torch.empty(0, dtype=torch.int64, device=world.device)
            for shape, names in stacks.items()
        }  # places of this rank's matrices in the stack, in the order of the rounds
        self._rounds = [
            (shape, first) for shape, names in self.dealt.items() for first in range(0, len(names), world.size)
        ]
        # Rounds of the last layers come first. All ranks start them in this order.
        self._rounds.sort(key=lambda round_: -self._layer(*round_))
        self._place = {
            name: (shape, index // world.size * world.size)
            for shape, names in self.dealt.items()
            for index, name in enumerate(names)
        }
        self._armed = False
        for name in self._place:
            parameters[name].register_post_accumulate_grad_hook(partial(self._note, name))

    def _layer(self, shape: Shape, first: int) -> int:
        """Place, among all parameters, of the first matrix of a round's last layer."""
        names = list(self.parameters)
        return min(names.index(name) for name in self.dealt[shape][first : first + self.world.size])

    def arm(self) -> None:
        """The next backward pass is the last one of the step: start rounds as its gradients arrive."""
        self._armed = True
        self._missing = {
            (shape, first): len(self.dealt[shape][first : first + self.world.size]) for shape, first in self._rounds
        }
        self._next = 0
        self._received = {
            shape: torch.empty(-(-len(names) // self.world.size), *shape, device=self.world.device, dtype=torch.float32)
            for shape, names in self.dealt.items()
        }
        self._running: list[tuple[Any, Tensor]] = []

    def receive(self) -> dict[Shape, Tensor]:
        """The mean gradients of this rank's matrices by shape, (at most n, R, C) fp32 in the order of `own`."""
        if not self._armed:
            self.arm()
        self._start(everything=True)
        for work, _ in self._running:
            work.wait()
        self._armed = False
        self._running = []
        return {
            shape: received[: len(self.own[shape])].div_(self.world.size) for shape, received in self._received.items()
        }

    def own_rows(self, received: dict[Shape, Tensor]) -> dict[str, Tensor]:
        """What was received, by the name of the matrix."""
        size, rank = self.world.size, self.world.rank
        return {
            name: row
            for shape, rows in received.items()
            for name, row in zip(self.dealt[shape][rank::size], rows, strict=True)
        }

    def gather(self, shape: Shape, mine: Tensor) -> Callable[[], Tensor]:
        """Start to give this rank's matrices, in the order of `own`, to all; returns what waits for all, (N, R, C)."""
        size, count = self.world.size, len(self.dealt[shape])
        rounds = -(-count // size)
        padded = mine.new_zeros(rounds, *shape)
        padded[: len(mine)] = mine
        gathered = mine.new_empty(size * rounds, *shape)
        work = _all_gather(gathered, padded, async_op=True)

        def wait() -> Tensor:
            work.wait()
            dealt = gathered.view(size, rounds, *shape).transpose(0, 1).reshape(-1, *shape)[:count]
            return dealt.flip(0)

        return wait

    def _note(self, name: str, _: Tensor) -> None:
        if self._armed:
            self._missing[self._place[name]] -= 1
            self._start()

    def _start(self, everything: bool = False) -> None:
        """Start the rounds whose gradients are there, in order."""
        while self._next < len(self._rounds) and (everything or not self._missing[self._rounds[self._next]]):
            shape, first = self._rounds[self._next]
            self._next += 1
            matrices = [self.parameters[name] for name in self.dealt[shape][first : first + self.world.size]]
            sent = torch.zeros(self.world.size, *shape, device=self.world.device, dtype=torch.float32)
            for row, matrix in zip(sent, matrices, strict=False):
                if matrix.grad is not None:
                    row.copy_(matrix.grad)
            number = first // self.world.size
            received = self._received[shape][number : number + 1]
            self._running.append((_reduce_scatter(received, sent, async_op=True), sent))
