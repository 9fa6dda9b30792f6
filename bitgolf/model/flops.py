"""Floating-point operations of training, for predicted speed and for model FLOP utilization (MFU).

    operations per token = 6 N + 6 L D T

N counts the weights that a token is multiplied with (linear layers and the output head; a looped layer counts each
time that it runs). A multiplication and an addition are two operations, and the backward pass costs twice the forward
pass. 6 L D T is attention over T tokens in L layers of width D: scores and outputs, with half of the pairs masked. T is
the length of a row, or of the pieces that documents are cut into. A layer with a window of W tokens has W (2 - W / T)
in place of T.
Source: PaLM (arXiv 2204.02311), appendix B, which counts masked pairs too.
"""

from __future__ import annotations

from bitgolf.config import ModelConfig
from bitgolf.model.order import layer_order


def flops_per_token(config: ModelConfig, seq_len: int, looped: bool = True) -> float:
    """Operations of forward and backward pass per training token, in rows of `seq_len`, with the loop on or off."""
    width, layers = config.model_dim, [position.layer for position in layer_order(config, looped)]
    length = min(config.attention.document_tokens or seq_len, seq_len)
    window = min(config.attention.window or length, length)
    passes, full = len(layers), sum(layer in config.attention.full_layers for layer in layers)
    spans = full * length + (passes - full) * window * (2 - window / length)
    attention = width * (2 * width + 2 * config.kv_dim)
    block = attention + 2 * width * config.mlp_dim
    tables = config.vocab_size * width + (
        config.bigram.dim * width if config.bigram.rows and not config.bigram.every_layer else 0
    )
    return 6.0 * (passes * block + tables) + 6.0 * width * spans


# Dense bf16 operations per second by the makers' data sheets (fp16 where a GPU has no bf16); the first name that is
# part of the device's name counts.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
MFU_FORMULA = "MFU = tokens per second * (6 N + 6 L D T) / (peak of all GPUs)"


def peak_flops(device: str) -> float | None:
    """Peak operations per second of the GPU with this name; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def mfu(
    config: ModelConfig,
    seq_len: int,
    tokens_per_second: float,
    device: str,
    num_devices: int = 1,
    looped: bool = True,
) -> float | None:
    """Model FLOP utilization: the share of the peak that training uses; None for an unknown device."""
    peak = peak_flops(device)
    return None if peak is None else tokens_per_second * flops_per_token(config, seq_len, looped) / (peak * num_devices)
