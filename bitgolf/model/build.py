"""From a configuration to a model on a device, with its dtype and attention backend decided and named."""

from __future__ import annotations

import torch

from bitgolf.config import ModelConfig
from bitgolf.model.backends import choose_backend
from bitgolf.model.gpt import GPT


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs, fp32 on CPUs (which have no fast bf16 everywhere, and where results must be bit-exact)."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build_model(
    config: ModelConfig, context_length: int, device: torch.device, attention: str = "auto"
) -> tuple[GPT, str]:
    """An uninitialized model on `device` and the name of the attention backend it uses.

    Args:
        config: sizes and components.
        context_length: tokens of a full window.
        attention: a backend name or `auto`.
    Raises:
        ConfigError: the backend asked for does not work here.
    """
    dtype = compute_dtype(device)
    backend = choose_backend(
        attention,
        device,
        dtype,
        config.head_dim,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        documents=config.document_attention,
    )
    model = GPT(config, context_length, compute_dtype=dtype).to(device)
    model.set_attention_backend(backend)
    return model, backend
