"""One optimizer step, and everything that a run must carry from step to step.

The trainer owns the live tensors (weights, optimizer state, average); the loop around it owns time. Compile
warm-up runs real steps on random token ids and puts every tensor back, which is proved by a hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.distributed import World
from bitgolf.model.gpt import GPT
from bitgolf.train.average import EMA
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.optimizer import ModelOptimizer


class Trainer:
    """Steps `model` under `config`; see `step`, `tensors`, `load_`."""

    def __init__(self, model: GPT, config: TrainConfig, shape: BatchShape, world: World) -> None:
        self.model, self.config, self.shape, self.world = model, config, shape, world
        self.compiled = config.compile and world.device.type == "cuda"
        self.optimizer = ModelOptimizer(model, config, world, compile_updates=self.compiled)
        self.average = EMA(self.optimizer.parameters, config.ema_decay) if config.ema_decay else None
        self._loss: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(model, dynamic=False) if self.compiled else model
        )

    def step(
        self, inputs: Tensor, targets: Tensor, lr_scale: float, momentum: float, elapsed: float = 0.0
    ) -> Tensor:
        """One update from this rank's rows.

        Args:
            inputs, targets: (rank_rows, T) int64.
            lr_scale: multiplier on every learning rate.
            momentum: Muon momentum.
            elapsed: rank 0's clock, carried to every rank with the metrics.
        Returns:
            (P + 3,) fp32 on the device: elapsed on rank 0, mean loss over all ranks in nats, the gradient norms
            of `ModelOptimizer.step`.
        """
        total = torch.zeros((), device=self.world.device)
        for x, y in zip(
            inputs.split(self.shape.micro_rows), targets.split(self.shape.micro_rows), strict=True
        ):
            loss = self._loss(x, y) / self.shape.accumulation
            loss.backward()
            total += loss.detach()
        head = torch.stack((torch.full_like(total, elapsed * self.world.size * self.world.is_main), total))
        self.world.mean_([p.grad for p in self.optimizer.parameters.values() if p.grad is not None] + [head])
        norms = self.optimizer.step(lr_scale, momentum)
        if self.average is not None:
            self.average.update()
        return torch.cat((head, norms))

    def tensors(self) -> dict[str, Tensor]:
        """Every live tensor that a resumed run needs, by name."""
        tensors = {
            f"model.{name}": p for name, p in self.optimizer.parameters.items()
        } | self.optimizer.state()
        return tensors | (self.average.state() if self.average is not None else {})

    @torch.no_grad()
    def load_(self, saved: dict[str, Tensor]) -> None:
        """Copy saved tensors over the live ones. Raises KeyError naming one that is missing."""
        for name, tensor in self.tensors().items():
            tensor.copy_(saved[name])

    def final_weights(self) -> dict[str, Tensor]:
        """The weights to ship: the average when there is one, else the last ones."""
        if self.average is not None:
            return self.average.shadow
        return {name: p.detach() for name, p in self.optimizer.parameters.items()}

    def warm_up(self, vocab_size: int) -> float:
        """Compile and touch every kernel on random tokens, then restore all state.

        Returns:
            Seconds of one step once everything is compiled.
        """
        before = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        digest = state_digest(before)
        generator = torch.Generator(device=self.world.device).manual_seed(0)
        seconds = 0.0
        for _ in range(self.config.warmup_steps):
            tokens = torch.randint(
                vocab_size,
                (self.shape.rank_rows, self.config.seq_len + 1),
                generator=generator,
                device=self.world.device,
            )
            self.world.synchronize()
            begin = time.perf_counter()
            self.step(tokens[:, :-1], tokens[:, 1:], 1.0, self.config.muon_momentum)
            self.world.synchronize()
            seconds = time.perf_counter() - begin
        self.load_(before)
        if state_digest(self.tensors()) != digest:
            raise AssertionError("compile warm-up left a trace in the training state")
        return seconds
