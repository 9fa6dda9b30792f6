"""Calibration statistics: the second moments of what every matrix multiplies, gathered on the training clock.

For each linear layer H = mean over tokens of x x^T, with x the layer's input under the weights that will be
packed; query, key and value share one. The tied embedding, as the output head, multiplies the final normalized
hidden state. `pack` reads these files and no text (rules B4 and B7).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from bitgolf.config import TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.clock import SAFETY
from bitgolf.run.ranks import World


def hessian_key(parameter: str) -> str | None:
    """Name of the Hessian that belongs to a parameter, or None for those that multiply no activations."""
    if parameter == "embedding":
        return "head"
    if not parameter.endswith(".weight"):
        return None
    layer = parameter.removesuffix(".weight")
    for shared in (".attention.query", ".attention.key", ".attention.value"):
        if layer.endswith(shared):
            return layer.removesuffix(shared) + ".attention.input"
    return layer


class HessianCollector:
    """Accumulates H for every matrix of `model` over forward passes; fp32 on the model's device."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.sums: dict[str, Tensor] = {}
        self.num_tokens = 0

    @torch.no_grad()
    def add(self, tokens: Tensor) -> None:
        """Run the model on tokens (B, T) and add their second moments."""
        hooks = [
            module.register_forward_pre_hook(self._hook(key))
            for name, module in self.model.named_modules()
            if isinstance(module, Linear)
            and (key := hessian_key(f"{name}.weight"))
            and not name.endswith((".key", ".value"))
        ]
        try:
            self._accumulate("head", self.model.hidden(tokens))
        finally:
            for hook in hooks:
                hook.remove()
        self.num_tokens += tokens.numel()

    def finish(self, world: World) -> dict[str, Tensor]:
        """Means over the tokens of all ranks: key -> (C, C) fp32 on the CPU."""
        sums = [self.sums[key] for key in sorted(self.sums)]
        world.mean_(sums)
        return {key: (total / self.num_tokens).cpu() for key, total in zip(sorted(self.sums), sums, strict=True)}

    def _hook(self, key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._accumulate(key, inputs[0])

        return hook

    def _accumulate(self, key: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.size(-1)).float()
        if key not in self.sums:
            self.sums[key] = torch.zeros(rows.size(1), rows.size(1), device=rows.device)
        self.sums[key].addmm_(rows.mT, rows)


def gather(
    model: GPT, batches: Iterable[Tensor], world: World, keep_going: Callable[[], bool]
) -> tuple[dict[str, Tensor], int]:
    """Hessians over `batches` of this rank's tokens, (B, T) each, while `keep_going()`; at least one batch.

    Returns:
        (key -> (C, C) fp32 CPU, tokens used by this rank).
    """
    collector = HessianCollector(model)
    for tokens in batches:
        collector.add(tokens)
        if not keep_going():
            break
    return collector.finish(world), collector.num_tokens


def num_batches(config: TrainConfig, shape: BatchShape, world_size: int) -> int:
    """Micro-batches a rank gathers its share of the statistics from."""
    return max(1, config.measure.calibration_tokens // (shape.micro_rows * config.seq_len * world_size))


def calibration_seconds(model: GPT, config: TrainConfig, shape: BatchShape, world: World) -> float:
    """Seconds to reserve for calibration, from two passes over random tokens (the first one warms up)."""
    collector = HessianCollector(model)
    seconds = 0.0
    for _ in range(2):
        tokens = torch.randint(model.config.vocab_size, (shape.micro_rows, config.seq_len), device=world.device)
        begin = time.perf_counter()
        collector.add(tokens)
        world.synchronize()
        seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    collector.finish(world)
    finish = time.perf_counter() - begin
    if config.measure.reserve_seconds:
        return config.measure.reserve_seconds
    return SAFETY * (seconds * num_batches(config, shape, world.size) + finish)
