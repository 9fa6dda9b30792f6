"""FlashAttention 4 (package `flash-attn-4`) as operators that `torch.compile` does not look into.

The package compiles its kernels in CuTe DSL at the first call and has no operators of PyTorch's own. Here its forward
and backward functions become custom operators with fake versions, which tell the compiler shapes and dtypes. The kernel
takes sequences laid end to end and their borders. It runs on Hopper and later GPUs, in bf16 and fp16.

Legend: N tokens of all sequences, H query heads, G key/value heads, K head width, S sequences.
"""

import os

import torch
from torch import Tensor


def keep_kernels() -> None:
    """Have the package keep compiled kernels on disk, unless the user has decided. Call it before the first kernel.

    The warm-up of a second training took 14 to 19 s with kept kernels on an H200, and 27 to 29 s without.
    """
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")


@torch.library.custom_op("bitgolf::fa4_forward", mutates_args=())
def fa4_forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, window: int) -> tuple[Tensor, Tensor]:
    """Causal attention within sequences.

    Args:
        q: (N, H, K).
        k, v: (N, G, K).
        borders: (S + 1,) int32, first token of each sequence and N; empty sequences are allowed.
        longest: no sequence has more tokens.
        window: most tokens that a token attends to, itself included; 0 = all before it.
    Returns:
        y (N, H, K) in the dtype of q, and the log-sum-exp of the scores (H, N) fp32.
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    y, lse = _flash_attn_fwd(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_seqlens_q=borders,
        cu_seqlens_k=borders,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=True,
        window_size_left=window - 1 if window else None,  # tokens before itself
        return_lse=True,
    )[:2]
    return y, lse


@fa4_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, window: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.size(1), q.size(0)), dtype=torch.float32)


@torch.library.custom_op("bitgolf::fa4_backward", mutates_args=())
def fa4_backward(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, lse: Tensor, borders: Tensor, longest: int, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of y; see `fa4_forward`."""
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = _flash_attn_bwd(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        y,
        dy.contiguous(),
        lse,
        causal=True,
        window_size_left=window - 1 if window else None,
        cu_seqlens_q=borders,
        cu_seqlens_k=borders,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
    )[:3]
    return dq, dk, dv


@fa4_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, lse: Tensor, borders: Tensor, longest: int, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, borders, *sizes = inputs
    ctx.save_for_backward(q, k, v, *output, borders)
    ctx.sizes = sizes  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, y, lse, borders = ctx.saved_tensors  # type: ignore[attr-defined]
    dq, dk, dv = fa4_backward(q, k, v, y, dy, lse, borders, *ctx.sizes)  # type: ignore[attr-defined]
    return dq, dk, dv, None, None, None


fa4_forward.register_autograd(_backward, setup_context=_keep)
