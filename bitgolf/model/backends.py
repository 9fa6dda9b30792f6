"""The implementation of attention: chosen by name or by trial, and recorded in the run.

`auto` takes the first backend that works for the device, dtype and head width, in the order of speed measured on
Hopper (FlashAttention 3, cuDNN, flash, memory-efficient, math). A backend that is asked for by name is used or refused,
never replaced. With `model.attention.within_documents` or `model.attention.window` the choice is among
`DOCUMENT_BACKENDS` of `document_borders`, in the order of published figures (not measured here). Such a backend must
also give the results and gradients of `math`, because a kernel that ignored borders or windows would run as well.

Legend: B batch, T time, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitgolf.errors import ConfigError
from bitgolf.model.document_borders import BOS, DOCUMENT_BACKENDS, document_backend

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

_SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = ("fa3", "cudnn", "flash", "efficient", "math")
_NEED_GPU = ("fa3", "fa4", "cudnn", "flex", "varlen")
# Largest difference from `math` that rounding explains in `_try_masked`: four times the one measured on a CPU.
# Attention to one token of another document changes results by more than 1.
_ROUNDING = {torch.float32: 2e-2, torch.bfloat16: 0.15, torch.float16: 2e-2}


def attention_function(backend: str) -> AttentionFunction:
    """Causal attention by one named backend.

    Returns:
        f(q, k, v) -> y with q (B, T, H, K), k and v (B, T, G, K), y (B, T, H, K). The scale is 1/sqrt(K). Query head h
        reads key/value head h // (H / G).
    Raises:
        ConfigError: the name is unknown, or the package of FlashAttention 3 is not installed.
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


@dataclass(frozen=True)
class AttentionCase:
    """What a backend has to do: where, in which dtype, with which sizes and masks."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int = 64
    heads: int = 4
    kv_heads: int = 2
    documents: bool = False  # attention within documents
    window: int = 0  # tokens; 0 = all

    @property
    def is_masked(self) -> bool:
        return self.documents or bool(self.window)

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends to choose from, in order. With masks their results are checked too."""
        return DOCUMENT_BACKENDS if self.is_masked else BACKENDS


def available_backends(case: AttentionCase) -> dict[str, str]:
    """Every backend with '' if a small forward and backward pass works, else with the reason why it does not."""
    return {name: _problem(name, case) for name in case.backends}


def reproducible_backend(masked: bool) -> str:
    """The CUDA backend whose gradients are the same bits each time with deterministic algorithms.

    cuDNN and the memory-efficient backend have no deterministic gradients. flash supports no masks of documents and
    windows.
    """
    return "math" if masked else "flash"


def choose_backend(requested: str, case: AttentionCase) -> str:
    """The fastest backend that works for `auto`; a named one only after a check that it works.

    Raises ConfigError, with the reason, if the named backend does not work on this device, or not with attention within
    documents or with the window.
    """
    names = case.backends
    setting = "model.attention.within_documents" if case.documents else "model.attention.window"
    if requested not in ("auto", *names):
        problem = f"unknown attention backend {requested!r}"
        if requested in BACKENDS:
            problem = f"attention backend {requested!r} does not support {setting}"
        elif requested in DOCUMENT_BACKENDS:
            problem = (
                f"attention backend {requested!r} is for model.attention.within_documents and model.attention.window "
                "only"
            )
        raise ConfigError(f"{problem}; allowed: auto, {', '.join(names)}")
    if requested == "auto":
        return next(name for name in names if not _problem(name, case))
    if reason := _problem(requested, case):
        working = [name for name in names if not _problem(name, case)]
        raise ConfigError(
            f"attention backend {requested!r} does not work on {case.device}"
            f"{f' with {setting}' if case.is_masked else ''}: {reason}; working here: {', '.join(working)}"
        )
    return requested


@torch.enable_grad()
def _problem(backend: str, case: AttentionCase) -> str:
    """The reason why a backend does not work here; '' if it works."""
    if backend == "fa3" and importlib.util.find_spec("flash_attn_interface") is None:
        return "package flash_attn_interface is not installed"
    if backend in _NEED_GPU and case.device.type != "cuda":
        return "needs an NVIDIA GPU"
    try:
        if not case.is_masked:
            _try(backend, case)
            return ""
        # The first token outside a window of 5 has a large effect. The last window has more than one tile of a kernel.
        trials = (_try_masked(backend, case, window) for window in {0, min(case.window, 5), min(case.window, 512)})
        return next(filter(None, trials), "")
    except (RuntimeError, ValueError) as error:  # ConfigError is a ValueError
        return (str(error).strip() or repr(error)).splitlines()[0]


def _try(backend: str, case: AttentionCase) -> None:
    """A forward and backward pass."""
    generator = torch.Generator().manual_seed(0)  # the global generator must not advance
    q, k = (
        torch.randn(1, 128, n, case.head_dim, generator=generator).to(case.device, case.dtype).requires_grad_()
        for n in (case.heads, case.kv_heads)
    )
    attention_function(backend)(q, k, k).sum().backward()


def _try_masked(backend: str, case: AttentionCase, window: int) -> str:
    """A forward and backward pass over two rows in six documents, against `math` in float32."""
    H, G, K, T = case.heads, case.kv_heads, case.head_dim, 160 + window
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((2, T), BOS + 1)
    for row, position in ((0, 0), (0, 7), (0, 130), (1, 64), (1, 65)):
        tokens[row, position] = BOS
    drawn = [torch.randn(2, T, n, K, generator=generator).to(case.dtype) for n in (H, G, G, H)]

    def run(name: str, dtype: torch.dtype) -> list[Tensor]:
        q, k, v, upstream = (tensor.to(case.device, dtype, copy=True) for tensor in drawn)
        implementation = document_backend(name)
        inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
        layout = implementation.layouts(tokens.to(case.device), (window, window))[0]
        y = implementation.attend(q, k, v, layout, window)
        return [y.detach(), *torch.autograd.grad(y, inputs, upstream)]

    difference = max(
        float((ours.float() - theirs).abs().max())
        for ours, theirs in zip(run(backend, case.dtype), run("math", torch.float32), strict=True)
    )
    if not difference <= _ROUNDING[case.dtype]:
        return f"its result differs from attention within documents by {difference:.3g} (window {window})"
    return ""
