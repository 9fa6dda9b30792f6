"""Settings of earlier versions: keys that moved, and keys that were removed because measurements showed no gain.

Run directories, presets of users and headers of artifacts hold such keys. A moved key is read under its current name.
A removed key is accepted only with the value that had no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED: dict[str, str] = {
    "model.mlp_multiple": "model.mlp.multiple",
    "model.activation": "model.mlp.activation",
    "model.leaky_slope": "model.mlp.leaky_slope",
    "model.rope_dims": "model.rope.dims",
    "model.rope_base": "model.rope.base",
    "model.rope_train_length": "model.rope.train_length",
    "model.qk_gain": "model.attention.qk_gain",
    "model.xsa_layers": "model.attention.xsa_layers",
    "model.value_residual": "model.attention.value_residual",
    "model.document_attention": "model.attention.within_documents",
    "model.bigram_rows": "model.bigram.rows",
    "model.bigram_dim": "model.bigram.dim",
    "model.smear": "model.smear.gate",
    "model.smear_document_mask": "model.smear.document_mask",
    "model.ve_layers": "model.value_embedding.layers",
    "model.ve_dim": "model.value_embedding.dim",
    "train.muon_momentum": "train.muon.momentum",
    "train.muon_momentum_start": "train.muon.momentum_start",
    "train.muon_momentum_warmup": "train.muon.momentum_warmup",
    "train.muon_steps": "train.muon.steps",
    "train.muon_weight_decay": "train.muon.weight_decay",
    "train.adam_beta1": "train.adam.beta1",
    "train.adam_beta2": "train.adam.beta2",
    "train.adam_eps": "train.adam.eps",
    "train.adam_weight_decay": "train.adam.weight_decay",
    "train.ema_decay": "train.average.ema_decay",
    "train.swa_weight": "train.average.swa_weight",
    "train.swa_start": "train.average.swa_start",
    "train.swa_spacing": "train.average.swa_spacing",
    "train.choose_average": "train.average.choose",
    "train.replay_epochs": "train.replay.epochs",
    "train.replay_batches": "train.replay.batches",
    "train.replay_lr_scale_below": "train.replay.lr_scale_below",
    "train.replay_lr": "train.replay.lr",
    "train.calibration_tokens": "train.measure.calibration_tokens",
    "train.fisher_tokens": "train.measure.fisher_tokens",
    "train.curvature_tokens": "train.measure.curvature_tokens",
    "train.curvature_step": "train.measure.curvature_step",
    "train.calibration_reserve_seconds": "train.measure.reserve_seconds",
    "train.checkpoint_seconds": "train.checkpoint.seconds",
    "train.checkpoint_at": "train.checkpoint.at",
    "qat.sharpness_start": "qat.soft_round.sharpness_start",
    "qat.sharpness_end": "qat.soft_round.sharpness_end",
    "qat.crown_lambda": "qat.crown.weight",
    "qat.crown_levels": "qat.crown.levels",
    "pack.matrix_bits": "pack.grid.matrix_bits",
    "pack.attention_bits": "pack.grid.attention_bits",
    "pack.mlp_bits": "pack.grid.mlp_bits",
    "pack.embed_bits": "pack.grid.embed_bits",
    "pack.clip_sigmas": "pack.grid.clip_sigmas",
    "pack.embed_clip_sigmas": "pack.grid.embed_clip_sigmas",
    "pack.scale_floor": "pack.grid.scale_floor",
    "pack.percentiles": "pack.grid.percentiles",
    "pack.damping": "pack.gptq.damping",
    "pack.block_size": "pack.gptq.block_size",
    "pack.trellis": "pack.rate.trellis",
    "pack.column_steps": "pack.rate.column_steps",
    "pack.hessian": "pack.rate.hessian",
    "pack.prune_to_fit": "pack.fit.prune",
    "pack.fit_margin_bytes": "pack.fit.margin_bytes",
    "ttt.chunk_tokens": "ttt.weights.chunk_tokens",
    "ttt.epochs": "ttt.weights.epochs",
    "ttt.batch_rows": "ttt.weights.batch_rows",
    "ttt.last_blocks": "ttt.weights.last_blocks",
    "ttt.freeze_blocks": "ttt.weights.freeze_blocks",
    "ttt.optimizer": "ttt.weights.optimizer",
    "ttt.lr": "ttt.weights.lr",
    "ttt.step_cosine_floor": "ttt.weights.step_cosine_floor",
    "ttt.momentum": "ttt.weights.momentum",
    "ttt.beta1": "ttt.weights.beta1",
    "ttt.beta2": "ttt.weights.beta2",
    "ttt.weight_decay": "ttt.weights.weight_decay",
    "ttt.grad_clip": "ttt.weights.grad_clip",
    "ttt.lora_rank": "ttt.lora.rank",
    "ttt.lora_alpha": "ttt.lora.alpha",
    "ttt.lora_targets": "ttt.lora.targets",
    "ttt.lora_documents": "ttt.lora.documents",
    "ttt.lora_chunk_tokens": "ttt.lora.chunk_tokens",
    "ttt.lora_lr": "ttt.lora.lr",
    "ttt.lora_beta1": "ttt.lora.beta1",
    "ttt.lora_beta2": "ttt.lora.beta2",
    "ttt.lora_weight_decay": "ttt.lora.weight_decay",
    "ttt.lora_keep_a": "ttt.lora.keep_a",
}
"""Earlier key -> current key."""

NOTEBOOK = (
    'The result is in docs/lab-notebook.md under "options that do not pay are removed"; commit 237e293 has the code.'
)

REMOVED: dict[str, tuple[Any, str]] = {
    "model.smear_gate_init": (0.0, "The smear gate starts at a logit of 0, as in every run so far."),
    "pack.column_rule": ("pivot", "Column steps in the manner of AWQ ('salient') lost more than those by pivots."),
    "pack.lqer_rank": (0, "Low-rank corrections (LQER) lowered the loss by 0.00003 bits per byte for 12 KB."),
    "pack.lqer_tensors": (3, "It belonged to pack.lqer_rank, which is removed too."),
    "pack.rate": (0.0, "The rate term saved 0.003 to 0.004 bits per weight at equal error."),
    "pack.rescale": ("none", "Scales fitted again to the chosen codes did not lower the loss."),
    "ttt.temperature": (1.0, "A temperature chosen while scoring gained 0.0004 bits per byte on a small model."),
    "ttt.temperature_lr": (0.0, "A temperature learned while scoring gained 0.0004 bits per byte on a small model."),
}
"""Earlier key -> (the value that had no effect, a sentence with the measured gain)."""


def translate(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the earlier keys of a section to current keys.

    Args:
        section: dotted name of the section, for example "pack".
        values: key -> value, as this or an earlier version wrote them.

    Raises:
        ValueError: a removed setting has a value that had an effect.
    """
    current: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            current[key] = {**current.get(key, {}), **value}
            continue
        earlier = f"{section}.{key}"
        if earlier in REMOVED:
            neutral, sentence = REMOVED[earlier]
            if value != neutral:
                raise ValueError(
                    f"{earlier} = {value!r}: this setting was removed, and only {neutral!r} is still allowed. "
                    f"{sentence} {NOTEBOOK}"
                )
        elif earlier in MOVED:
            group, leaf = MOVED[earlier].removeprefix(f"{section}.").split(".")
            current.setdefault(group, {}).setdefault(leaf, value)
        else:
            current[key] = value
    return current
