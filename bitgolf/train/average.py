"""Averages of the weights over training: exponential (EMA), of snapshots (SWA), or a blend of both.

EMA is fp32, starts at the initial weights, is updated every step and not bias-corrected. SWA is the plain mean of
snapshots taken at even spacing once the learning rate has fallen below a share of its peak. What is shipped is
decided by the configuration before any held-out text is seen (techniques.md section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitgolf.config import TrainConfig


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


class SWA:
    """Mean of snapshots, one whenever the run's fraction passes a multiple of `spacing` while the rate is low.

    Args:
        parameters: live parameters by name.
        spacing: fraction of the run between snapshots.
        start_lr_scale: snapshots are taken while the learning-rate multiplier is below this.
    """

    def __init__(self, parameters: dict[str, Tensor], spacing: float, start_lr_scale: float) -> None:
        self.parameters, self.spacing, self.start_lr_scale = parameters, spacing, start_lr_scale
        device = next(iter(parameters.values())).device
        self.sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        self.count = torch.zeros((), device=device)
        self.last_slot = torch.full((), -1.0, dtype=torch.float64)

    @torch.no_grad()
    def update(self, fraction: float, lr_scale: float) -> None:
        """Take a snapshot if one is due after the step that ran at `fraction` of the run."""
        slot = float(int(fraction / self.spacing + 1e-9))
        if lr_scale >= self.start_lr_scale or slot <= float(self.last_slot):
            return
        self.last_slot.fill_(slot)
        torch._foreach_add_(list(self.sums.values()), [p.detach() for p in self.parameters.values()])
        self.count += 1

    def mean(self) -> dict[str, Tensor] | None:
        """The mean of the snapshots, or None when none was taken."""
        if not float(self.count):
            return None
        return {name: total / self.count for name, total in self.sums.items()}

    def state(self) -> dict[str, Tensor]:
        """Sums, count and the last slot, live (not copies)."""
        state = {f"swa.{name}": tensor for name, tensor in self.sums.items()}
        return state | {"swa_count": self.count, "swa_last_slot": self.last_slot}


class Averages:
    """What `TrainConfig` asks for: EMA, SWA, their blend, or the last weights."""

    def __init__(self, parameters: dict[str, Tensor], config: TrainConfig) -> None:
        self.parameters, self.weight = parameters, config.swa_weight
        self.ema = EMA(parameters, config.ema_decay) if config.ema_decay else None
        self.swa = SWA(parameters, config.swa_spacing, config.swa_start) if config.swa_weight else None

    def update(self, fraction: float, lr_scale: float) -> None:
        """Take in the parameters after the step that ran at `fraction` of the run with `lr_scale`."""
        if self.ema is not None:
            self.ema.update()
        if self.swa is not None:
            self.swa.update(fraction, lr_scale)

    def state(self) -> dict[str, Tensor]:
        """Every tensor to be restored on resumption, live (not copies)."""
        return (self.ema.state() if self.ema else {}) | (self.swa.state() if self.swa else {})

    def shipped(self) -> tuple[dict[str, Tensor], str]:
        """The weights to ship, and how they were made."""
        last = {name: p.detach() for name, p in self.parameters.items()}
        base, told = (self.ema.shadow, f"ema {self.ema.decay:g}") if self.ema else (last, "last weights")
        mean = self.swa.mean() if self.swa else None
        if self.swa is None:
            return base, told
        if mean is None:
            return base, f"{told} (no swa snapshot was due)"
        told = f"{1 - self.weight:g} x {told} + {self.weight:g} x swa of {int(self.swa.count)}"
        return {name: torch.lerp(base[name].float(), mean[name], self.weight) for name in base}, told
