"""Schedules as functions of the fraction of the run, so that one preset serves any budget."""

from dataclasses import dataclass

from bitgolf.config.train import ExtraTargetsConfig, MuonConfig, TrainConfig


@dataclass(frozen=True)
class StepSettings:
    """What the schedules set for one optimizer step."""

    lr_scale: float  # multiplier on every learning rate
    momentum: float  # Muon momentum
    fraction: float = 0.0  # share of the run that is done (for the averages and the late phase)
    late: bool = False  # use the loss of the late phase (quantized or penalized)
    snapshots: bool = True  # SWA may take a snapshot after this step
    looped: bool = True  # run the looped layers of the model several times
    # another multiplier on every learning rate, which is no part of the schedule (`train.batch_ramp`).
    rate: float = 1.0
    decay: float | None = None  # Muon's weight decay; None = the configured one
    # weights of `extra_weights`; None = the plain loss. The late phase has no extra targets.
    extra: list[float] | None = None


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


def muon_decay(fraction: float, config: MuonConfig) -> float:
    """Muon's weight decay: constant, or linear to 0 at the end of the run."""
    return config.weight_decay * (1.0 - fraction if config.decay_falls else 1.0)


def windows_at(fraction: float, config: TrainConfig, last: tuple[int, int]) -> tuple[int, int]:
    """The attention windows of a pass (`GPT.windows`); `last`: those after training."""
    windows = last
    for start, window, full in config.windows:
        if fraction >= start:
            windows = window, full
    return windows


def extra_weights(fraction: float, config: ExtraTargetsConfig) -> list[float] | None:
    """Weights of the extra targets (`model.extra_targets`), the prefix last; None once all are 0, or without any.

    The time up to `until` has one part per token after the next one. In the first part the weight of the farthest token
    falls linearly to 0, in the next part that of the one before it. That of the prefix falls in the second half.
    """
    if not config.enabled or fraction >= config.until:
        return None
    done, count = fraction / config.until, len(config.next_tokens)
    parts = [1.0 - min(1.0, max(0.0, done * count - (count - 1 - i))) for i in range(count)]
    weights = [weight * part for weight, part in zip(config.next_tokens, parts, strict=True)]
    return [*weights, config.prefix * min(1.0, 2.0 - 2.0 * done)]
