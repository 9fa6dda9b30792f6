"""The late phase of training: fake quantization on the export grid, CROWN-Q, or both.

It is a loss of its own, traced apart from the plain one, so that switching it on cannot be optimized away; both are
compiled in the untimed warm-up. `begin` proves that it does something: it measures how far the fake-quantized weights
are from the float ones, and that figure goes into the log with the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitgolf.config import QATConfig
from bitgolf.grids.grid import Grid
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.train.qat import WeightFaker, attach_fakers, crown_penalty


class LatePhase:
    """Loss and bookkeeping of the quantized part of a run.

    Args:
        model: the model in training; its linear layers get fakers.
        config: of the phase.
        grids: parameter name -> grid it will be packed on; weights that stay in float are absent.
        percentiles: row clips that the export tries.
    """

    def __init__(self, model: GPT, config: QATConfig, grids: dict[str, Grid], percentiles: tuple[float, ...]) -> None:
        self.model, self.config = model, config
        self.layers: dict[str, tuple[Linear, WeightFaker]] = {}
        if config.mode != "none":
            self.layers = attach_fakers(model, grids.get, percentiles, soft=config.mode == "soft_round")
        self.matrices = [module.weight for module in model.modules() if isinstance(module, Linear)]
        self.sharpness = torch.full((), config.soft_round.sharpness_start, device=model.embedding.device)
        self.began_at = torch.full((), -1.0, dtype=torch.float64)  # fraction of the run; negative = not yet
        self.steps = torch.zeros((), dtype=torch.int64)  # in the phase so far

    def loss(self, tokens: Tensor, targets: Tensor, sharpness: Tensor) -> Tensor:
        """Cross entropy of the fake-quantized model plus the CROWN-Q penalty, a scalar in nats."""
        loss = self.model(tokens, targets, sharpness if self.config.mode != "none" else None)
        if self.config.crown.weight:
            loss = loss + self.config.crown.weight * crown_penalty(self.matrices, self.config.crown.levels)
        return loss

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, live (not copies)."""
        ratios = {f"late.ratio.{name}": faker.ratio for name, (_, faker) in self.layers.items()}
        return {"late.began_at": self.began_at, "late.steps": self.steps} | ratios

    def prepare(self, fraction: float) -> None:
        """Before a step at `fraction` of the run: anneal the sharpness, search the clips when they are due."""
        began = float(self.began_at)
        if began >= 0:
            share = min(1.0, max(0.0, (fraction - began) / max(1.0 - began, 1e-9)))
            low, high = self.config.soft_round.sharpness_start, self.config.soft_round.sharpness_end
            self.sharpness.fill_(low + share * (high - low))
        if int(self.steps) % self.config.refresh_steps == 0:
            for layer, faker in self.layers.values():
                faker.refresh_(layer.weight)
        self.steps += 1

    @torch.no_grad()
    def begin(self, fraction: float) -> float:
        """Start at `fraction` of the run, or go on in a run that was resumed in the phase.

        Returns:
            Relative distance |fake(W) - W|^2 / |W|^2 over all layers that are quantized; above 0 unless none is.
        """
        if float(self.began_at) < 0:
            self.began_at.fill_(fraction)
            for layer, faker in self.layers.values():
                faker.refresh_(layer.weight)
        moved = total = 0.0
        for layer, faker in self.layers.values():
            moved += float((faker(layer.weight, self.sharpness) - layer.weight).square().sum())
            total += float(layer.weight.square().sum())
        return moved / total if total else 0.0
