"""Muon: momentum whose matrix updates are replaced by nearly orthogonal ones (Jordan et al. 2024).

The formula, for a matrix p with gradient g, momentum mu, learning rate lr and weight decay wd:

    buf = mu buf + g;  u = g + mu buf;  X = NS(u / ||u||_F)
    p *= 1 - lr wd;  p -= lr max(1, rows / cols)^0.5 X

NS is a Newton-Schulz iteration with odd polynomials of degree 5: one polynomial for all iterations, or with
`polar_express` another one per iteration, the best for the singular values that are left (Polar Express, Amsel et al.
2025, arXiv 2505.16932). With `row_norm` each row of u is divided by its norm first (NorMuon's idea without its second
moment, PR 1787). With `dtype` bf16, gradients and momentum take half the memory.

Matrices of one shape are stacked and iterated together, in bf16 on GPUs and in fp32 on CPUs (where the rounding of bf16
would make runs on one and on two ranks differ). With several ranks each one has the gradients and the momentum of its
share of a stack only (`exchange`). The updates are gathered, so every rank holds the same weights.

Legend: N matrices of one shape, R rows, C columns.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.config.train import MuonConfig
from bitgolf.run.ranks import World, has_bf16
from bitgolf.train.exchange import Exchange

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at 0, so that small singular values rise fast
# For singular values from 0.001 to 1, with a safety factor of 1.02 (PR 1787, from modded-nanogpt).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


FAST_RAIL, SLOW_RAIL, SLOW_SHARE = 0.85, 0.98, 0.5615  # mean age 30 steps (modded-nanogpt PR 340)


def orthogonalize(
    update: Tensor,
    steps: int,
    polar_express: bool = False,
    row_norm: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The nearest orthogonal matrix to every matrix of a stack, approximately.

    Args:
        update: (N, R, C), any float dtype.
        steps: Newton-Schulz iterations.
        polar_express: the first five iterations have a polynomial each, and later ones repeat the fifth.
        row_norm: divide each row by its norm first.
        dtype: of the arithmetic and the result.
    Returns:
        (N, R, C) with singular values near 1 (0.7 to 1.2 after five steps, 0.86 to 1.13 with Polar Express).
    """
    x = update.to(dtype)
    if row_norm:
        x = (x.float() / x.float().norm(dim=-1, keepdim=True).clamp_min(1e-7)).to(x.dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for step in range(steps):
        a, b, c = POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] if polar_express else QUINTIC
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def momentum_update(grads: Tensor, buffer: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Nesterov momentum: returns (new buffer, update), both shaped like grads (N, R, C)."""
    buffer = momentum * buffer + grads
    return buffer, grads + momentum * buffer


def two_rails_update(grads: Tensor, fast: Tensor, slow: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nesterov momentum with the mean of two averages of the gradients (modded-nanogpt PR 340).

    Returns the new averages and the update, all shaped like grads (N, R, C).
    """
    fast, slow = torch.lerp(fast, grads, 1 - FAST_RAIL), torch.lerp(slow, grads, 1 - SLOW_RAIL)
    mean = torch.lerp(fast, slow, SLOW_SHARE)
    return fast, slow, (1 - momentum).to(grads.dtype) * grads + momentum.to(grads.dtype) * mean


def cautious_factor(weights: Tensor, direction: Tensor, decay: Tensor) -> Tensor:
    """Factor of each weight, (N, R, C): 1 - decay where subtracting the direction makes the weight smaller, else 1."""
    return 1 - decay * (direction.to(weights.dtype) * weights >= 0)


class Muon:
    """Muon over named matrices."""

    def __init__(
        self,
        parameters: dict[str, Tensor],  # name -> (R, C) fp32 parameter; order is kept
        world: World,  # its ranks share the stacks
        config: MuonConfig,
        # applied to the numeric functions (`torch.compile` on GPUs, identity on CPUs).
        transform: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda f: f,
    ) -> None:
        self.world, self.config = world, config
        self.dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32  # of the gradients and the momentum
        # Decided here, because a compiler cannot ask a GPU.
        products = torch.bfloat16 if has_bf16(world.device) else torch.float32
        self.iteration = (config.steps, config.polynomial == "polar_express", config.row_norm, products)
        stacks: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, parameter in parameters.items():
            stacks[(parameter.size(0), parameter.size(1))].append(name)
        self.parameters = parameters
        self.stacks = dict(stacks)
        self.buffers = {
            shape: torch.zeros(len(names), *shape, device=parameters[names[0]].device, dtype=self.dtype)
            for shape, names in self.stacks.items()
        }
        self.exchange = Exchange(parameters, self.stacks, world) if world.size > 1 else None
        has_rails = config.two_rails_from < 1  # `step` may be asked for two rails
        self.slow = {shape: torch.zeros_like(buffer) for shape, buffer in self.buffers.items()} if has_rails else {}
        self.on_rails = torch.zeros((), dtype=torch.bool)
        self._coefficient = torch.zeros((), device=world.device)
        self._decay = torch.zeros((), device=world.device)
        self._orthogonalize = transform(orthogonalize)
        self._momentum = transform(momentum_update)  # type: ignore[arg-type]
        self._rails = transform(two_rails_update)  # type: ignore[arg-type]
        self._cautious_factor = transform(cautious_factor)

    def state(self) -> dict[str, Tensor]:
        """The momentum stacks by name, live (not copies)."""
        state = {f"muon.{rows}x{cols}": buffer for (rows, cols), buffer in self.buffers.items()}
        if self.slow:
            state |= {f"muon.slow.{rows}x{cols}": buffer for (rows, cols), buffer in self.slow.items()}
            state["muon.on_rails"] = self.on_rails
        return state

    @torch.no_grad()
    def step(
        self,
        lr: float,
        momentum: float,
        received: dict[tuple[int, int], Tensor] | None = None,
        decay: float | None = None,  # weight decay; None = the configured one
        two_rails: bool = False,  # the momentum is from now on that of `two_rails_update`
    ) -> None:
        """Update every matrix from its `.grad`, or from the mean gradients that this rank `received`."""
        decay = self.config.weight_decay if decay is None else decay
        if two_rails and not self.on_rails:
            self.on_rails.fill_(True)
            for shape, buffer in self.buffers.items():  # the sum of gradients becomes their mean, on both rails
                self.slow[shape].copy_(buffer.mul_(1 - momentum))
        self._coefficient.fill_(momentum)  # a tensor, so that the update is compiled once for all values
        waiting: list[tuple[tuple[int, int], Callable[[], Tensor]]] = []
        for shape, names in self.stacks.items():
            if self.exchange is None or received is None:
                grads = torch.stack([self.parameters[name].grad for name in names])  # type: ignore[misc]
                self._apply(shape, self._direction(shape, grads, slice(None)), lr, decay)
                continue
            direction = self._direction(shape, received[shape], self.exchange.own[shape])
            waiting.append((shape, self.exchange.gather(shape, direction)))
        for shape, gathered in waiting:
            self._apply(shape, gathered(), lr, decay)

    def _direction(self, shape: tuple[int, int], grads: Tensor, rows: slice | Tensor) -> Tensor:
        """Take gradients of some matrices of a stack into their momentum; the orthogonal update of these matrices."""
        grads, buffer = grads.to(self.dtype), self.buffers[shape][rows]
        if self.on_rails:
            buffer, slow, update = self._rails(grads, buffer, self.slow[shape][rows], self._coefficient)
            self.slow[shape][rows] = slow
        else:
            buffer, update = self._momentum(grads, buffer, self._coefficient)
        self.buffers[shape][rows] = buffer
        return self._orthogonalize(update, *self.iteration)

    def _apply(self, shape: tuple[int, int], direction: Tensor, lr: float, decay: float) -> None:
        matrices = [self.parameters[name] for name in self.stacks[shape]]
        if decay and self.config.cautious_decay:
            self._decay.fill_(lr * decay)
            factor = self._cautious_factor(torch.stack(matrices), direction, self._decay)
            torch._foreach_mul_(matrices, list(factor.unbind()))
        elif decay:
            torch._foreach_mul_(matrices, 1.0 - lr * decay)
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        torch._foreach_add_(matrices, list(direction.to(matrices[0].dtype)), alpha=-lr * scale)

    @torch.no_grad()
    def gather_(self) -> None:
        """Give every rank the momentum of all matrices, which a checkpoint needs. All ranks call it together."""
        if self.exchange is None:
            return
        for buffers in (self.buffers, self.slow):
            for shape, buffer in buffers.items():
                buffer.copy_(self.exchange.gather(shape, buffer[self.exchange.own[shape]])())
