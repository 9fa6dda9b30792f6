"""Which implementation computes attention: found by trying, chosen by name, recorded in the run.

`auto` takes the fastest that works for the device, dtype and head width, in the order measured on Hopper
(FlashAttention 3, cuDNN, flash, memory-efficient, math). A backend asked for by name is used or refused,
never replaced.

Legend: B batch, T time, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitgolf.errors import ConfigError

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

_SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = ("fa3", "cudnn", "flash", "efficient", "math")


def attention_function(backend: str) -> AttentionFunction:
    """Causal attention by one named backend.

    Returns:
        f(q, k, v) -> y with q (B, T, H, K), k and v (B, T, G, K), y (B, T, H, K); scale 1/sqrt(K), query head
        h reads key/value head h // (H / G).
    Raises:
        ConfigError: the name is unknown, or FlashAttention 3 is asked for and not installed.
    """
    if backend == "fa3":
        try:
            from flash_attn_interface import flash_attn_func
        except ImportError as error:
            raise ConfigError(
                "attention backend fa3 needs the package flash_attn_interface (FlashAttention 3), "
                "which is not installed; use auto, cudnn, flash, efficient or math"
            ) from error

        def fa3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            y = flash_attn_func(q, k, v, causal=True)
            return y[0] if isinstance(y, tuple) else y

        return fa3
    if backend not in _SDPA:
        raise ConfigError(f"unknown attention backend {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    kind = _SDPA[backend]

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.size(2) != k.size(2)
        with sdpa_kernel(kind):
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=grouped
            )
        return y.transpose(1, 2)

    return sdpa


def available_backends(
    device: torch.device, dtype: torch.dtype, head_dim: int = 64, *, heads: int = 4, kv_heads: int = 2
) -> dict[str, str]:
    """Every backend with '' when a small forward and backward pass works there, else the reason it does not."""
    found: dict[str, str] = {}
    for backend in BACKENDS:
        if backend == "fa3" and importlib.util.find_spec("flash_attn_interface") is None:
            found[backend] = "package flash_attn_interface is not installed"
            continue
        if backend in ("fa3", "cudnn") and device.type != "cuda":
            found[backend] = "needs an NVIDIA GPU"
            continue
        try:
            q = torch.randn(1, 128, heads, head_dim, device=device, dtype=dtype, requires_grad=True)
            k = torch.randn(1, 128, kv_heads, head_dim, device=device, dtype=dtype, requires_grad=True)
            attention_function(backend)(q, k, k).sum().backward()
            found[backend] = ""
        except (RuntimeError, ConfigError) as error:
            found[backend] = str(error).strip().splitlines()[0]
    return found


def choose_backend(
    requested: str, device: torch.device, dtype: torch.dtype, head_dim: int, *, heads: int, kv_heads: int
) -> str:
    """Resolve `auto` to the fastest backend that works here; check that a named one does.

    Raises ConfigError with the reason when the named backend does not work on this device.
    """
    if requested != "auto" and requested not in BACKENDS:
        raise ConfigError(f"unknown attention backend {requested!r}; allowed: auto, {', '.join(BACKENDS)}")
    found = available_backends(device, dtype, head_dim, heads=heads, kv_heads=kv_heads)
    working = [name for name, reason in found.items() if not reason]
    if requested == "auto":
        return working[0]
    if found[requested]:
        raise ConfigError(
            f"attention backend {requested!r} does not work on {device}: {found[requested]}; "
            f"working here: {', '.join(working)}"
        )
    return requested
