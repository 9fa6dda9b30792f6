"""Settings that have no effect because another setting switches their method off.

Such a configuration is allowed, but the user is told before training and before packing, so that nobody believes that
the setting was measured. Contradictions are refused where the configuration is read. `bitgolf.train.effects` adds
the settings that the schedule of a run never reaches, and `bitgolf.grids.roles` the patterns that match no matrix.
"""

from bitgolf.config.pack import PackConfig
from bitgolf.config.section import Section
from bitgolf.config.train import TrainConfig


def idle_training(train: TrainConfig, pack: PackConfig) -> list[str]:
    """One sentence per training setting that has no effect with this configuration."""
    sentences = []
    if not train.replay.epochs:
        keys = ("batches", "lr_scale_below", "lr")
        sentences += _changed(train.replay, "train.replay", keys, "train.replay.epochs is 0")
    is_used = train.watch.seconds or train.average.choose == "held_out"
    if train.held_out_tokens and not is_used:
        sentences.append(
            f"train.held_out_tokens {train.held_out_tokens}: with train.average.choose 'fixed', only a branch of this "
            "run can use them"
        )
    if train.measure.fisher_tokens and pack.method != "rate":
        sentences.append(
            f"train.measure.fisher_tokens {train.measure.fisher_tokens}: pack.method is {pack.method!r}, so only a "
            "packing with other settings can use the Fisher statistics"
        )
    return sentences


def idle_packing(pack: PackConfig) -> list[str]:
    """One sentence per setting of `pack` that has no effect with its method."""
    sentences = []
    method = f"pack.method is {pack.method!r}"
    if pack.fit.prune and pack.method != "gptq":
        sentences.append(f"pack.fit.prune: only GPTQ matrices are pruned, and {method}")
    if not pack.fit.prune:
        sentences += _changed(pack.fit, "pack.fit", ("margin_bytes",), "pack.fit.prune is off")
    if pack.method == "rate":
        keys = ("matrix_bits", "attention_bits", "mlp_bits", "embed_bits", "clip_sigmas", "embed_clip_sigmas")
        sentences += _changed(pack.grid, "pack.grid", keys, method)
    else:
        sentences += _changed(pack.rate, "pack.rate", tuple(type(pack.rate).model_fields), method)
    return sentences


def _changed(section: Section, name: str, keys: tuple[str, ...], reason: str) -> list[str]:
    """One sentence per key of `keys` that does not have its default."""
    fields = type(section).model_fields
    return [
        f"{name}.{key} {getattr(section, key)}: {reason}, so this setting has no effect"
        for key in keys
        if getattr(section, key) != fields[key].default
    ]
