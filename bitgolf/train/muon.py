"""Muon: momentum whose matrix updates are replaced by nearly orthogonal ones (Jordan et al. 2024).

The formula, for a matrix p with gradient g, momentum mu, learning rate lr and weight decay wd:

    buf = mu buf + g;  u = g + mu buf;  X = NS(u / ||u||_F)
    p *= 1 - lr wd;  p -= lr max(1, rows / cols)^0.5 X

NS is a quintic Newton-Schulz iteration. Matrices of one shape are stacked and iterated together, in bf16 on GPUs and in
fp32 on CPUs (where the rounding of bf16 would make runs on one and on two ranks differ). Each rank iterates its share
of a stack, and the results are gathered, so every rank holds the same weights.

Legend: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.run.ranks import World

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at 0, so that small singular values rise fast


def orthogonalize(update: Tensor, steps: int) -> Tensor:
    """The nearest orthogonal matrix to every matrix of a stack, approximately.

    Args:
        update: (N, R, C), any float dtype.
        steps: Newton-Schulz iterations.
    Returns:
        (N, R, C) with singular values near 1 (0.7 to 1.2 after five steps); bf16 on GPUs, else fp32.
    """
    a, b, c = QUINTIC
    x = update.bfloat16() if update.is_cuda else update.float()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def momentum_update(grads: Tensor, buffer: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Nesterov momentum: returns (new buffer, update), both shaped like grads (N, R, C)."""
    buffer = momentum * buffer + grads
    return buffer, grads + momentum * buffer


class Muon:
    """Muon over named matrices.

    Args:
        parameters: name -> (R, C) fp32 parameter; order is kept.
        world: its ranks share the stacks.
        steps: Newton-Schulz iterations.
        weight_decay: decoupled, multiplied by the scheduled learning rate.
        transform: applied to the numeric functions (`torch.compile` on GPUs, identity on CPUs).
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        world: World,
        *,
        steps: int = 5,
        weight_decay: float = 0.0,
        transform: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda f: f,
    ) -> None:
        self.world, self.steps, self.weight_decay = world, steps, weight_decay
        stacks: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, parameter in parameters.items():
            stacks[(parameter.size(0), parameter.size(1))].append(name)
        self.parameters = parameters
        self.stacks = dict(stacks)
        self.buffers = {
            shape: torch.zeros(len(names), *shape, device=parameters[names[0]].device)
            for shape, names in self.stacks.items()
        }
        self._coefficient = torch.zeros((), device=world.device)
        self._orthogonalize = transform(orthogonalize)
        self._momentum = transform(momentum_update)  # type: ignore[arg-type]

    def state(self) -> dict[str, Tensor]:
        """The momentum stacks by name, live (not copies)."""
        return {f"muon.{rows}x{cols}": buffer for (rows, cols), buffer in self.buffers.items()}

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update every matrix from its `.grad`."""
        self._coefficient.fill_(momentum)  # a tensor, so that the update is compiled once for all values
        for shape, names in self.stacks.items():
            matrices = [self.parameters[name] for name in names]
            grads = torch.stack([m.grad for m in matrices if m.grad is not None])
            buffer, update = self._momentum(grads, self.buffers[shape], self._coefficient)
            self.buffers[shape].copy_(buffer)
            direction = self._shared_orthogonalize(update)
            if self.weight_decay:
                torch._foreach_mul_(matrices, 1.0 - lr * self.weight_decay)
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(matrices, list(direction.to(matrices[0].dtype)), alpha=-lr * scale)

    def _shared_orthogonalize(self, update: Tensor) -> Tensor:
        size = self.world.size
        if size == 1:
            return self._orthogonalize(update, self.steps)
        count = update.size(0)
        share = -(-count // size)
        padded = torch.cat((update, update.new_ones(share * size - count, *update.shape[1:])))
        mine = padded[self.world.rank * share : (self.world.rank + 1) * share]
        return self.world.gather_slices(self._orthogonalize(mine, self.steps))[:count]
