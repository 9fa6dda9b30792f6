"""Exponential moving average of the weights: fp32, from the initial weights on, no bias correction."""

from __future__ import annotations

import torch
from torch import Tensor


class EMA:
    """Shadow of named parameters, updated as shadow = decay * shadow + (1 - decay) * parameter."""

    def __init__(self, parameters: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.parameters = parameters
        self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after an optimizer step."""
        torch._foreach_lerp_(
            list(self.shadow.values()), [p.detach() for p in self.parameters.values()], 1.0 - self.decay
        )

    def state(self) -> dict[str, Tensor]:
        """The shadow by name, live (not copies)."""
        return {f"ema.{name}": tensor for name, tensor in self.shadow.items()}
