"""The late phase of training: fake quantization on the grid of the artifact, the CROWN-Q penalty, or both.

The late phase has a loss of its own, which is traced apart from the plain one, so that a compiler cannot optimize it
away. Both are compiled in the untimed warm-up. `begin` measures how far the fake-quantized weights are from the float
ones. That figure is logged, and shows that the phase has an effect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitgolf.config import PackConfig, QATConfig
from bitgolf.grids.grid import Grid
from bitgolf.grids.roles import grids_of
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.train.qat import WeightFaker, attach_fakers, crown_penalty


class LatePhase:
    """Loss and state of the quantized part of a run.

    Args:
        model: the model in training. Its linear layers get fakers.
        config: of the phase.
        grids: parameter name -> grid of the artifact; weights that stay in float are absent.
        percentiles: row clips that `pack` tries.
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

    @classmethod
    def of(cls, model: GPT, config: QATConfig, pack: PackConfig) -> LatePhase:
        """The late phase on the grids that `pack` will use."""
        return cls(model, config, grids_of(model.shapes(), pack), pack.grid.percentiles)

    def loss(self, tokens: Tensor, targets: Tensor, sharpness: Tensor, looped: bool = True) -> Tensor:
        """Cross entropy of the fake-quantized model plus the CROWN-Q penalty, a scalar in nats."""
        loss = self.model(tokens, targets, sharpness if self.config.mode != "none" else None, looped)
        if self.config.crown.weight:
            loss = loss + self.config.crown.weight * crown_penalty(self.matrices, self.config.crown.levels)
        return loss

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, live (not copies)."""
        ratios = {f"late.ratio.{name}": faker.ratio for name, (_, faker) in self.layers.items()}
        return {"late.began_at": self.began_at, "late.steps": self.steps} | ratios

    def prepare(self, fraction: float) -> None:
        """Before a step at `fraction` of the run: set the sharpness, and search the clips if a search is due."""
        began = float(self.began_at)
        if began >= 0:
            done = min(1.0, max(0.0, (fraction - began) / max(1.0 - began, 1e-9)))
            first, last = self.config.soft_round.sharpness_start, self.config.soft_round.sharpness_end
            self.sharpness.fill_(first + done * (last - first))
        if int(self.steps) % self.config.refresh_steps == 0:
            for layer, faker in self.layers.values():
                faker.refresh_(layer.weight)
        self.steps += 1

    @torch.no_grad()
    def begin(self, fraction: float) -> float:
        """Start at `fraction` of the run, or go on if the run was resumed in the phase.

        Returns |fake(W) - W|^2 / |W|^2 over all quantized layers; 0 if there are none.
        """
        if float(self.began_at) < 0:
            self.began_at.fill_(fraction)
            for layer, faker in self.layers.values():
                faker.refresh_(layer.weight)
        change = total = 0.0
        for layer, faker in self.layers.values():
            change += float((faker(layer.weight, self.sharpness) - layer.weight).square().sum())
            total += float(layer.weight.square().sum())
        return change / total if total else 0.0
