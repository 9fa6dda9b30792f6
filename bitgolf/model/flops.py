"""Floating-point operations of training, for predicted speed and for model FLOP utilization (MFU).

    operations per token = 6 N + 6 L D T

N counts the weights that a token is multiplied with (linear layers and the output head; a looped layer counts each
time that it runs). A multiplication and an addition are two operations, and the backward pass costs twice the forward
pass. 6 L D T is attention over T tokens in L layers of width D: scores and outputs, with half of the pairs masked.
Source: PaLM (arXiv 2204.02311), appendix B, which counts masked pairs too.
"""

from __future__ import annotations

from bitgolf.config import ModelConfig
from bitgolf.model.order import layer_order


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Operations of forward and backward pass per training token, with the loop on."""
    width, passes = config.model_dim, len(layer_order(config, True))
    attention = width * (2 * width + 2 * config.kv_dim)
    block = attention + 2 * width * config.mlp_dim
    tables = config.vocab_size * width + (
        config.bigram.dim * width if config.bigram.rows and not config.bigram.every_layer else 0
    )
    return 6.0 * (passes * block + tables) + 6.0 * passes * width * seq_len
