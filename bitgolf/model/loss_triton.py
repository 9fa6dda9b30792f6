"""Cross entropy of softcapped logits on GPUs: loss and gradient in one pass over the logits, as one Triton kernel.

The function is that of `cross_entropy`, with the same targets and weights. One program reads a row of raw logits and
writes the gradient into its place, so the logits are read once and written once. The three matrix products around it
are PyTorch's.

Legend: N rows, D model width, V vocabulary, K targets per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _loss_kernel(  # type: ignore[no-untyped-def]
    z_ptr,  # (N, V) raw logits; replaced by the gradient of the mean loss
    targets_ptr,  # (N, K) int64, -1 for none
    weights_ptr,  # (K,) fp32
    losses_ptr,  # (N,) fp32, written
    num_rows,
    cap,
    V: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,  # power of two, at least V
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < V
    raw = tl.load(z_ptr + row * V + column, mask=inside, other=0.0).to(tl.float32)
    # tanh by exp, which every version of Triton has; exp may become infinite, and tanh is 1 then.
    capped = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * (raw / cap)))
    logits = tl.where(inside, cap * capped, -float("inf"))
    top = tl.max(logits, 0)
    p = tl.exp(logits - top)
    total = tl.sum(p, 0)
    loss = 0.0
    share = 0.0
    gradient = tl.zeros([WIDTH], dtype=tl.float32)
    for k in tl.static_range(K):
        target = tl.load(targets_ptr + row * K + k)
        weight = tl.where(target >= 0, tl.load(weights_ptr + k), 0.0)
        if k == 0:
            loss = top + tl.log(total) - tl.sum(tl.where(column == target, logits, 0.0), 0)
        share += weight
        gradient -= tl.where(column == target, weight, 0.0)
    gradient = (gradient + p * (share / total)) * (1.0 - capped * capped) / num_rows
    tl.store(losses_ptr + row, loss)
    tl.store(z_ptr + row * V + column, gradient.to(z_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("bitgolf::softcapped_cross_entropy", mutates_args=())
def _loss_and_gradient(
    hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """The mean loss, a scalar in fp32, and its gradient by the raw logits, (N, V) in the dtype of `hidden`."""
    z = hidden @ embedding.T
    losses = torch.empty(len(z), dtype=torch.float32, device=z.device)
    width = triton.next_power_of_2(z.size(1))
    _loss_kernel[(len(z),)](
        z, targets.contiguous(), weights, losses, len(z), cap,
        V=z.size(1), K=targets.size(1), WIDTH=width, num_warps=4 if width <= 2048 else 8,
    )  # fmt: skip
    return losses.mean(), z


@_loss_and_gradient.register_fake
def _(hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    return hidden.new_empty((), dtype=torch.float32), hidden.new_empty(hidden.size(0), embedding.size(0))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx, upstream, _):  # type: ignore[no-untyped-def]
    hidden, embedding, dz = ctx.saved_tensors
    factor = upstream.to(hidden.dtype)
    return (dz @ embedding) * factor, (dz.T @ hidden) * factor, None, None, None


_loss_and_gradient.register_autograd(_gradients, setup_context=_save)


def softcapped_cross_entropy(
    hidden: Tensor,  # (N, D)
    embedding: Tensor,  # (V, D) of the dtype of `hidden`
    targets: Tensor,  # (N, K) int64
    cap: float,
    weights: Tensor,  # (K,) fp32, the first one 1
) -> Tensor:
    """The loss, an fp32 scalar in nats."""
    loss: Tensor = _loss_and_gradient(hidden, embedding, targets, weights, cap)[0]
    return loss
