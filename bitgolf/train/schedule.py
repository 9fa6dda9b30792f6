"""Schedules as functions of the fraction of the run, so that one preset serves any budget."""

from __future__ import annotations

from bitgolf.config.train import MuonConfig


def lr_multiplier(fraction: float, warmdown: float, min_lr: float) -> float:
    """Learning-rate multiplier: 1, then linear to 0 over the last `warmdown` of the run, but never below `min_lr`."""
    if warmdown <= 0:
        return 1.0
    return max(min(1.0, (1.0 - fraction) / warmdown), min_lr)


def muon_momentum(fraction: float, config: MuonConfig) -> float:
    """Muon's momentum: linear from `momentum_start` to `momentum` over the first `momentum_warmup` of the run."""
    if config.momentum_warmup <= 0:
        return config.momentum
    return config.momentum_start + min(1.0, fraction / config.momentum_warmup) * (
        config.momentum - config.momentum_start
    )
