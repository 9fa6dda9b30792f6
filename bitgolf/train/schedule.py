"""Schedules as functions of the fraction of the run that is spent."""

from __future__ import annotations

from bitgolf.config import TrainConfig


def lr_multiplier(fraction: float, warmdown: float, min_lr: float) -> float:
    """Learning-rate multiplier: 1, then linear over the last `warmdown` of the run, never below `min_lr`."""
    if warmdown <= 0:
        return 1.0
    return max(min(1.0, (1.0 - fraction) / warmdown), min_lr)


def muon_momentum(fraction: float, config: TrainConfig) -> float:
    """Muon momentum: linear from `muon_momentum_start` over the first `muon_momentum_warmup` of the run."""
    if config.muon.momentum_warmup <= 0:
        return config.muon.momentum
    rise = min(1.0, fraction / config.muon.momentum_warmup)
    return config.muon.momentum_start + rise * (config.muon.momentum - config.muon.momentum_start)
