"""The components of a configuration with their settings and sources.

Numbers are pull requests of the challenge (openai/parameter-golf). Only components that the configuration switches on
are listed, so a submission cannot claim others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitgolf.config import Config


@dataclass(frozen=True)
class Component:
    """A part of a system: the condition under which a configuration uses it, its settings and its source."""

    name: str
    used: Callable[[Config], bool]
    settings: tuple[str, ...]
    source: str


COMPONENTS = (
    Component(
        "U-Net skips, QK gain, tied embedding, softcap",
        lambda c: c.model.skips,
        ("model.skips", "model.attention.qk_gain", "model.logit_softcap"),
        "baseline",
    ),
    Component("Skip gates", lambda c: c.model.skip_gates, ("model.skip_gates",), "PR 1089"),
    Component(
        "Leaky ReLU squared",
        lambda c: c.model.mlp.activation == "leaky_relu2",
        ("model.mlp.activation", "model.mlp.leaky_slope"),
        "PR 493, 549",
    ),
    Component(
        "Partial RoPE", lambda c: c.model.rope.dims > 0, ("model.rope.dims", "model.rope.train_length"), "PR 315"
    ),
    Component(
        "Depth recurrence",
        lambda c: c.model.loop.repeats > 0,
        ("model.loop.first", "model.loop.last", "model.loop.repeats", "train.loop_start"),
        "PR 1204, 1394, 1855",
    ),
    Component("Parallel lanes", lambda c: c.model.lanes_from > 0, ("model.lanes_from",), "PR 1204, 1529"),
    Component("Sparse attention gate", lambda c: c.model.attention.gate, ("model.attention.gate",), "PR 1667, 1787"),
    Component("LN scale", lambda c: c.model.ln_scale, ("model.ln_scale",), "PR 315"),
    Component("XSA", lambda c: c.model.attention.xsa_layers > 0, ("model.attention.xsa_layers",), "PR 265, 287"),
    Component(
        "Value residual (VRL)",
        lambda c: c.model.attention.value_residual,
        ("model.attention.value_residual",),
        "PR 693",
    ),
    Component(
        "Shared value embedding",
        lambda c: bool(c.model.value_embedding.layers),
        ("model.value_embedding.layers", "model.value_embedding.dim"),
        "PR 374",
    ),
    Component("BigramHash", lambda c: c.model.bigram.rows > 0, ("model.bigram.rows", "model.bigram.dim"), "PR 65, 287"),
    Component("SmearGate v1", lambda c: c.model.smear.gate == "v1", ("model.smear.gate",), "PR 65, 287"),
    Component("SmearGate v2", lambda c: c.model.smear.gate == "v2", ("model.smear.gate",), "PR 1667, 1851"),
    Component(
        "Document attention",
        lambda c: c.model.attention.within_documents,
        ("model.attention.within_documents", "model.attention.document_tokens"),
        "PR 1530",
    ),
    Component("Orthogonal initialization", lambda c: c.model.init == "orthogonal", ("model.init",), "PR 162"),
    Component(
        "Muon",
        lambda c: True,
        ("train.matrix_lr", "train.muon.momentum", "train.muon.steps", "train.muon.weight_decay"),
        "Jordan et al. 2024, baseline",
    ),
    Component(
        "Polar Express",
        lambda c: c.train.muon.polynomial == "polar_express",
        ("train.muon.polynomial",),
        "Amsel et al. 2025 (arXiv 2505.16932), PR 1344, 1787",
    ),
    Component("MuonEq-R", lambda c: c.train.muon.row_norm, ("train.muon.row_norm",), "PR 1285, 1787"),
    Component(
        "Exponential moving average", lambda c: c.train.average.ema_decay > 0, ("train.average.ema_decay",), "PR 287"
    ),
    Component(
        "Snapshot average (SWA)",
        lambda c: c.train.average.swa_weight > 0,
        ("train.average.swa_weight", "train.average.swa_start", "train.average.swa_spacing"),
        "PR 414, 693",
    ),
    Component(
        "Replay burst",
        lambda c: c.train.replay.epochs > 0,
        ("train.replay.epochs", "train.replay.batches", "train.replay.lr"),
        "PR 693",
    ),
    Component(
        "Quantization-aware training",
        lambda c: c.qat.mode != "none",
        ("qat.mode", "qat.start_lr_scale", "qat.start_fraction"),
        "PR 315, 606",
    ),
    Component("CROWN-Q", lambda c: c.qat.crown.weight > 0, ("qat.crown.weight", "qat.crown.levels"), "PR 690, 693"),
    Component(
        "GPTQ on training text",
        lambda c: c.pack.method == "gptq",
        ("pack.method", "pack.gptq.damping", "train.measure.calibration_tokens"),
        "Frantar et al. 2022, PR 535, 1019, 1060",
    ),
    Component(
        "Clip at k standard deviations",
        lambda c: max(c.pack.grid.clip_sigmas, c.pack.grid.embed_clip_sigmas) > 0,
        ("pack.grid.clip_sigmas", "pack.grid.embed_clip_sigmas"),
        "PR 1394",
    ),
    Component("Magnitude pruning", lambda c: c.pack.prune > 0, ("pack.prune",), "PR 348"),
    Component(
        "Selective pruning to the cap",
        lambda c: c.pack.fit.prune,
        ("pack.fit.prune", "pack.fit.margin_bytes"),
        "PR 609, 693",
    ),
    Component(
        "Sliding window",
        lambda c: "sliding" in c.score.methods,
        ("score.stride", "score.seq_len"),
        "tail as in PR 1218",
    ),
    Component(
        "Score-first test-time training",
        lambda c: c.ttt.method in ("full", "last_blocks"),
        ("ttt.method", "ttt.weights.chunk_tokens", "ttt.weights.epochs", "ttt.weights.lr"),
        "PR 461, 549",
    ),
    Component(
        "Document LoRA test-time training",
        lambda c: c.ttt.method == "lora",
        ("ttt.lora.rank", "ttt.lora.targets", "ttt.lora.chunk_tokens", "ttt.lora.lr"),
        "baseline, PR 1530",
    ),
)


def lineage(config: Config) -> list[tuple[str, str, str]]:
    """(component, settings as text, source) of every component that the configuration uses."""
    values = config.flat()
    return [
        (component.name, ", ".join(f"{key} = {values[key]}" for key in component.settings), component.source)
        for component in COMPONENTS
        if component.used(config)
    ]
