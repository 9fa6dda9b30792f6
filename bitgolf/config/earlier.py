"""Settings of earlier versions: keys that moved, and keys that were removed because measurements showed no gain.

Run directories, presets of users and headers of artifacts hold such keys. A moved key is read under its current name.
A removed key is accepted only with the value that had no effect, or with every value if it chose no more than how a
statistic was measured.
"""

from collections.abc import Mapping
from typing import Any

# Group -> its settings that stood in the section without a group: "mlp.activation" was "activation".
_UNGROUPED = {
    "model.mlp": "activation leaky_slope",
    "model.attention": "qk_gain xsa_layers value_residual",
    "train.average": "ema_decay swa_weight swa_start swa_spacing",
    "train.measure": "calibration_tokens fisher_tokens",
    "qat.soft_round": "sharpness_start sharpness_end",
    "pack.grid": (
        "matrix_bits attention_bits mlp_bits embed_bits clip_sigmas embed_clip_sigmas scale_floor percentiles"
    ),
    "pack.gptq": "damping block_size",
    "pack.rate": "trellis column_steps hessian",
    "ttt.weights": (
        "chunk_tokens epochs batch_rows last_blocks freeze_blocks optimizer lr step_cosine_floor momentum beta1 beta2 "
        "weight_decay grad_clip"
    ),
}
# Group -> its settings whose names began with that of the group: "rope.dims" was "rope_dims".
_JOINED = {
    "model.mlp": "multiple",
    "model.rope": "dims base train_length",
    "model.bigram": "rows dim",
    "model.smear": "document_mask",
    "train.muon": "momentum momentum_start momentum_warmup steps weight_decay",
    "train.adam": "beta1 beta2 eps weight_decay",
    "train.replay": "epochs batches lr_scale_below lr",
    "train.checkpoint": "seconds at",
    "qat.crown": "levels",
    "pack.fit": "margin_bytes",
    "ttt.lora": "rank alpha targets documents chunk_tokens lr beta1 beta2 weight_decay keep_a",
}
MOVED: dict[str, str] = {  # earlier key -> current key
    "model.document_attention": "model.attention.within_documents",
    "model.smear": "model.smear.gate",
    "model.ve_layers": "model.value_embedding.layers",
    "model.ve_dim": "model.value_embedding.dim",
    "train.choose_average": "train.average.choose",
    "train.calibration_reserve_seconds": "train.measure.reserve_seconds",
    "qat.crown_lambda": "qat.crown.weight",
    "pack.prune_to_fit": "pack.fit.prune",
}
MOVED |= {f"{group.split('.')[0]}.{key}": f"{group}.{key}" for group in _UNGROUPED for key in _UNGROUPED[group].split()}
MOVED |= {f"{group}_{key}": f"{group}.{key}" for group in _JOINED for key in _JOINED[group].split()}

NOTEBOOK = (
    'The result is in docs/lab-notebook.md under "options that do not pay are removed"; commit 237e293 has the code.'
)

_BY_GRADIENTS = "Curvature is computed in the passes of train.measure.fisher_tokens, which did as well as trials."
REMOVED: dict[str, tuple[Any, str]] = {
    "model.smear_gate_init": (0.0, "The smear gate starts at a logit of 0, as in every run so far."),
    "pack.column_rule": ("pivot", "Column steps in the manner of AWQ ('salient') lost more than those by pivots."),
    "pack.lqer_rank": (0, "Low-rank corrections (LQER) lowered the loss by 0.00003 bits per byte for 12 KB."),
    "pack.lqer_tensors": (3, "It belonged to pack.lqer_rank, which is removed too."),
    "pack.rate": (0.0, "The rate term saved 0.003 to 0.004 bits per weight at equal error."),
    "pack.rescale": ("none", "Scales fitted again to the chosen codes did not lower the loss."),
    "ttt.temperature": (1.0, "A temperature chosen while scoring gained 0.0004 bits per byte on a small model."),
    "ttt.temperature_lr": (0.0, "A temperature learned while scoring gained 0.0004 bits per byte on a small model."),
    "train.curvature_tokens": (None, _BY_GRADIENTS),
    "train.curvature_step": (None, _BY_GRADIENTS),
    "train.measure.curvature_tokens": (None, _BY_GRADIENTS),
    "train.measure.curvature_step": (None, _BY_GRADIENTS),
}
"""Earlier key -> (the value that had no effect, None = every value is accepted; a sentence with the measured gain)."""


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
        earlier = f"{section}.{key}"
        if isinstance(value, Mapping):
            current[key] = {**current.get(key, {}), **translate(earlier, value)}
        elif earlier in REMOVED:
            neutral, sentence = REMOVED[earlier]
            if neutral is not None and value != neutral:
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
