"""The components of a configuration with their settings and sources.

Numbers are pull requests of the challenge (openai/parameter-golf). Only components that the configuration switches on
are listed, so a submission cannot claim others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bitgolf.config import Config


@dataclass(frozen=True)
class Component:
    """A part of a system."""

    name: str
    source: str
    settings: str  # dotted keys, separated by spaces
    # whether a configuration has it; None = when the first of its settings is neither zero, off nor empty
    used: Callable[[Config], bool] | None = None


COMPONENTS = (
    Component(
        "U-Net skips, QK gain, tied embedding, softcap", "baseline",
        "model.skips model.attention.qk_gain model.logit_softcap",
    ),
    Component("Skip gates", "PR 1089", "model.skip_gates"),
    Component(
        "Leaky ReLU squared", "PR 493, 549", "model.mlp.activation model.mlp.leaky_slope",
        lambda c: c.model.mlp.activation == "leaky_relu2",
    ),
    Component("Partial RoPE", "PR 315", "model.rope.dims model.rope.train_length"),
    Component(
        "Depth recurrence", "PR 1204, 1394, 1855",
        "model.loop.first model.loop.last model.loop.repeats train.loop_start",
        lambda c: c.model.loop.repeats > 0,
    ),
    Component("Parallel lanes", "PR 1204, 1529", "model.lanes_from"),
    Component("Sparse attention gate", "PR 1667, 1787", "model.attention.gate"),
    Component("LN scale", "PR 315", "model.ln_scale"),
    Component("XSA", "PR 265, 287", "model.attention.xsa_layers"),
    Component("Value residual (VRL)", "PR 693", "model.attention.value_residual"),
    Component("Shared value embedding", "PR 374", "model.value_embedding.layers model.value_embedding.dim"),
    Component("BigramHash", "PR 65, 287", "model.bigram.rows model.bigram.dim"),
    Component("SmearGate v1", "PR 65, 287", "model.smear.gate", lambda c: c.model.smear.gate == "v1"),
    Component("SmearGate v2", "PR 1667, 1851", "model.smear.gate", lambda c: c.model.smear.gate == "v2"),
    Component("Document attention", "PR 1530", "model.attention.within_documents model.attention.document_tokens"),
    Component(
        "Attention windows", "modded-nanogpt (github.com/KellerJordan/modded-nanogpt)",
        "model.attention.window model.attention.full_layers train.windows",
    ),
    Component(
        "Partial key offset", "modded-nanogpt (github.com/KellerJordan/modded-nanogpt)", "model.attention.key_offset"
    ),
    Component("Case transform", "PR 1729", "data.tokenizer", lambda c: c.data.tokenizer == "lossless-case"),
    Component("Orthogonal initialization", "PR 162", "model.init", lambda c: c.model.init == "orthogonal"),
    Component(
        "Muon", "Jordan et al. 2024, baseline",
        "train.matrix_lr train.muon.momentum train.muon.steps train.muon.weight_decay",
        lambda c: True,
    ),
    Component(
        "Polar Express", "Amsel et al. 2025 (arXiv 2505.16932), PR 1344, 1787", "train.muon.polynomial",
        lambda c: c.train.muon.polynomial == "polar_express",
    ),
    Component("MuonEq-R", "PR 1285, 1787", "train.muon.row_norm"),
    Component("Exponential moving average", "PR 287", "train.average.ema_decay"),
    Component(
        "Snapshot average (SWA)", "PR 414, 693",
        "train.average.swa_weight train.average.swa_start train.average.swa_spacing",
    ),
    Component("Batch ramp", "modded-nanogpt (github.com/KellerJordan/modded-nanogpt)", "train.batch_ramp"),
    Component("Replay burst", "PR 693", "train.replay.epochs train.replay.batches train.replay.lr"),
    Component(
        "Quantization-aware training", "PR 315, 606", "qat.mode qat.start_lr_scale qat.start_fraction",
        lambda c: c.qat.mode != "none",
    ),
    Component("CROWN-Q", "PR 690, 693", "qat.crown.weight qat.crown.levels"),
    Component(
        "GPTQ on training text", "Frantar et al. 2022, PR 535, 1019, 1060",
        "pack.method pack.gptq.damping train.measure.calibration_tokens",
        lambda c: c.pack.method == "gptq",
    ),
    Component(
        "Clip at k standard deviations", "PR 1394", "pack.grid.clip_sigmas pack.grid.embed_clip_sigmas",
        lambda c: max(c.pack.grid.clip_sigmas, c.pack.grid.embed_clip_sigmas) > 0,
    ),
    Component("Magnitude pruning", "PR 348", "pack.prune"),
    Component("Selective pruning to the cap", "PR 609, 693", "pack.fit.prune pack.fit.margin_bytes"),
    Component(
        "Sliding window", "tail as in PR 1218", "score.stride score.seq_len", lambda c: "sliding" in c.score.methods
    ),
    Component(
        "Score-first test-time training", "PR 461, 549",
        "ttt.method ttt.weights.chunk_tokens ttt.weights.epochs ttt.weights.lr",
        lambda c: c.ttt.method in ("full", "last_blocks"),
    ),
    Component(
        "Gated value tables", "modded-nanogpt, karpathy/autoresearch PR 44", "model.value_embedding.layers",
        lambda c: c.model.value_embedding.gated,
    ),
    Component("Signed bigrams in every layer", "modded-nanogpt PR 299", "model.bigram.every_layer model.bigram.rows"),
    Component(
        "More targets on the same logits", "modded-nanogpt, its PR 337",
        "train.extra_targets.next_tokens train.extra_targets.prefix train.extra_targets.until",
        lambda c: c.train.extra_targets.enabled,
    ),
    Component("Cautious weight decay", "arXiv 2411.16085, modded-nanogpt", "train.muon.cautious_decay"),
    Component(
        "Two-rail momentum", "modded-nanogpt PR 340", "train.muon.two_rails_from",
        lambda c: c.train.muon.two_rails_from < 1,
    ),
    Component("Canonical pairs of tokens", "arXiv 2506.07956, modded-nanogpt PR 350", "score.canonical"),
    Component(
        "Document LoRA test-time training", "baseline, PR 1530",
        "ttt.lora.rank ttt.lora.targets ttt.lora.chunk_tokens ttt.lora.lr",
        lambda c: c.ttt.method == "lora",
    ),
)  # fmt: skip


def lineage(config: Config) -> list[tuple[str, str, str]]:
    """(component, settings as text, source) of every component that the configuration uses."""
    values = config.flat()
    used = []
    for component in COMPONENTS:
        keys = component.settings.split()
        if component.used(config) if component.used else values[keys[0]]:
            used.append((component.name, ", ".join(f"{key} = {values[key]}" for key in keys), component.source))
    return used
