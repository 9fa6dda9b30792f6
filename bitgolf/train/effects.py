"""Settings that cannot take effect in a run, found before training starts.

What contradicts itself is refused where the configuration is read. What is merely idle here (a rate for a replay that
is off, a snapshot rule that so few steps never meet) is said once, loudly, so that nobody believes it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from bitgolf.config import Config
from bitgolf.grids.idle import idle_keys, idle_packing
from bitgolf.train.schedule import lr_multiplier


def without_effect(
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],
    num_steps: int,
    begun: float = 0.0,
) -> list[str]:
    """One sentence for every setting that will change nothing.

    Args:
        shapes: of the model's tensors, by name.
        num_steps: optimizer steps that the run will make, as far as is known.
        begun: fraction of the run at which a branch begins; 0 for a run of its own.
    """
    train, qat, pack = config.train, config.qat, config.pack
    last = (num_steps - 1) / max(1, num_steps)
    lowest = lr_multiplier(last, train.warmdown, train.min_lr)
    found = []
    if train.replay.epochs and lowest >= train.replay.lr_scale_below:
        found.append(
            f"train.replay.epochs {train.replay.epochs}: none of the {num_steps} steps has a rate multiplier below "
            f"train.replay.lr_scale_below {train.replay.lr_scale_below:g}, so there is nothing to replay"
        )
    if train.average.swa_weight and lowest >= train.average.swa_start:
        found.append(
            f"train.average.swa_weight {train.average.swa_weight:g}: none of the {num_steps} steps has a rate "
            "multiplier below "
            f"train.average.swa_start {train.average.swa_start:g}, so no snapshot will be taken"
        )
    if qat.enabled and not qat.is_on(last, lowest):
        found.append(f"qat: none of the {num_steps} steps reaches its start, so all of them train plain weights")
    if not train.replay.epochs:
        keys = ("batches", "lr_scale_below", "lr")
        found += idle_keys(train.replay, "train.replay", keys, "train.replay.epochs is 0")
    if train.held_out_tokens and train.average.choose == "fixed" and not train.measure.curvature_tokens:
        found.append(
            f"train.held_out_tokens {train.held_out_tokens}: with train.average.choose 'fixed' and no curvature only a "
            "branch can use them; this run just does not train on them"
        )
    if train.measure.fisher_tokens and pack.rate.hessian != "fisher":
        found.append(
            f"train.measure.fisher_tokens {train.measure.fisher_tokens}: pack.rate.hessian is {pack.rate.hessian!r}, "
            "so the seconds that the "
            "Fisher statistics take serve only a packing with other settings"
        )
    if train.measure.curvature_tokens and pack.method != "rate":
        found.append(
            f"train.measure.curvature_tokens {train.measure.curvature_tokens}: pack.method is {pack.method!r}, so "
            "the seconds that the "
            "curvature takes serve only a packing with other settings"
        )
    if not pack.fit.prune:
        found += idle_keys(pack.fit, "pack.fit", ("margin_bytes",), "pack.fit.prune is off")
    found += [
        f"train.checkpoint.at {at:g}: the branch begins later, at fraction {begun:.3g}"
        for at in train.checkpoint.at
        if at <= begun
    ]
    return found + idle_packing(pack, shapes)
