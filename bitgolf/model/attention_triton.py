"""Two pieces of attention as single Triton kernels, forward and backward, for training on GPUs.

What the compiler makes of them takes several times as long as their bytes need: queries and keys (RMS norm, rotary
positions, gain), and the head outputs (the token's own value removed, gate). The definitions are those of `layers`;
arithmetic is fp32 throughout, results are rounded once.

Legend: B batch, T time, H query heads, G key/value heads, K head width, r rotated channels, N rows of K numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_EPS = torch.finfo(torch.float32).eps  # of F.rms_norm
_ROWS = 32  # rows of one program


@triton.jit
def _cos_sin(cos_ptr, sin_ptr, rows, inside, channel, length, HEADS, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Cosine and signed sine for every number of some rows; 1 and 0 where nothing is rotated."""
    at = ((rows // HEADS) % length)[:, None] * HALF + (channel % HALF)[None, :]
    mask = inside[:, None] & (channel < 2 * HALF)[None, :]
    cos = tl.load(cos_ptr + at, mask=mask, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return cos, tl.where((channel < HALF)[None, :], sin, -sin)


@triton.jit
def _rotate_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, K)
    gain_ptr,  # (H,); read only if GAINED
    cos_ptr,  # (T, r / 2)
    sin_ptr,
    y_ptr,  # (N, K), written
    num_rows,
    length,
    EPS,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    GAINED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, channel = rows < num_rows, tl.arange(0, WIDTH)
    partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
    rotated = inside[:, None] & (channel < 2 * HALF)[None, :]
    x = tl.load(x_ptr + rows[:, None].to(tl.int64) * WIDTH + channel[None, :], mask=inside[:, None], other=0.0).to(
        tl.float32
    )
    other = tl.load(x_ptr + rows[:, None].to(tl.int64) * WIDTH + partner[None, :], mask=rotated, other=0.0).to(
        tl.float32
    )
    cos, sin = _cos_sin(cos_ptr, sin_ptr, rows, inside, channel, length, HEADS, HALF)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)
    if GAINED:
        scale *= tl.load(gain_ptr + rows % HEADS).to(tl.float32)
    y = (x * cos + other * sin) * scale[:, None]
    tl.store(
        y_ptr + rows[:, None].to(tl.int64) * WIDTH + channel[None, :],
        y.to(y_ptr.dtype.element_ty),
        mask=inside[:, None],
    )


@triton.jit
def _rotate_backward_kernel(  # type: ignore[no-untyped-def]
    dy_ptr,  # (N, K)
    x_ptr,  # (N, K)
    gain_ptr,
    cos_ptr,
    sin_ptr,
    dx_ptr,  # (N, K), written
    dgain_ptr,  # (N,) fp32, written if GAINED: each row's share of its head's gradient
    num_rows,
    length,
    EPS,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    GAINED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, channel = rows < num_rows, tl.arange(0, WIDTH)
    partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
    rotated = inside[:, None] & (channel < 2 * HALF)[None, :]
    at = rows[:, None].to(tl.int64) * WIDTH + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    other = tl.load(dy_ptr + rows[:, None].to(tl.int64) * WIDTH + partner[None, :], mask=rotated, other=0.0).to(
        tl.float32
    )
    cos, sin = _cos_sin(cos_ptr, sin_ptr, rows, inside, channel, length, HEADS, HALF)
    dn = dy * cos - other * sin  # rotated back
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)
    n = x * scale[:, None]
    along = tl.sum(dn * n, axis=1)
    if GAINED:
        tl.store(dgain_ptr + rows, along, mask=inside)
        gain = tl.load(gain_ptr + rows % HEADS).to(tl.float32)
        scale *= gain
    dx = scale[:, None] * (dn - n * (along / WIDTH)[:, None])
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _exclude_kernel(  # type: ignore[no-untyped-def]
    y_ptr,  # (N * GROUP, K), the heads of a group one after the other
    v_ptr,  # (N, K)
    logit_ptr,  # (N * GROUP,); read only if GATED
    out_ptr,  # like y, written
    num_rows,
    SCALE,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, channel = rows < num_rows, tl.arange(0, WIDTH)
    v = tl.load(v_ptr + rows[:, None].to(tl.int64) * WIDTH + channel[None, :], mask=inside[:, None], other=0.0).to(
        tl.float32
    )
    n = v / tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)[:, None]
    for head in tl.static_range(GROUP):
        line = rows * GROUP + head
        at = line[:, None].to(tl.int64) * WIDTH + channel[None, :]
        y = tl.load(y_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        out = y - tl.sum(y * n, axis=1)[:, None] * n
        if GATED:
            logit = tl.load(logit_ptr + line, mask=inside, other=0.0).to(tl.float32)
            out *= tl.sigmoid(SCALE * logit)[:, None]
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _exclude_backward_kernel(  # type: ignore[no-untyped-def]
    dout_ptr,
    y_ptr,
    v_ptr,
    logit_ptr,
    dy_ptr,  # written
    dv_ptr,  # written
    dlogit_ptr,  # written if GATED
    num_rows,
    SCALE,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, channel = rows < num_rows, tl.arange(0, WIDTH)
    own = rows[:, None].to(tl.int64) * WIDTH + channel[None, :]
    v = tl.load(v_ptr + own, mask=inside[:, None], other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
    n = v / length[:, None]
    dn = tl.zeros((ROWS, WIDTH), tl.float32)
    for head in tl.static_range(GROUP):
        line = rows * GROUP + head
        at = line[:, None].to(tl.int64) * WIDTH + channel[None, :]
        y = tl.load(y_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        d = tl.load(dout_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        along = tl.sum(y * n, axis=1)
        if GATED:
            logit = tl.load(logit_ptr + line, mask=inside, other=0.0).to(tl.float32)
            gate = tl.sigmoid(SCALE * logit)
            dgate = tl.sum(d * (y - along[:, None] * n), axis=1)
            dlogit = SCALE * gate * (1 - gate) * dgate
            tl.store(dlogit_ptr + line, dlogit.to(dlogit_ptr.dtype.element_ty), mask=inside)
            d *= gate[:, None]
        back = tl.sum(d * n, axis=1)
        dy = d - back[:, None] * n
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside[:, None])
        dn -= along[:, None] * d + back[:, None] * y
    dv = (dn - tl.sum(dn * n, axis=1)[:, None] * n) / length[:, None]
    tl.store(dv_ptr + own, dv.to(dv_ptr.dtype.element_ty), mask=inside[:, None])


@torch.library.custom_op("bitgolf::rotate_normed", mutates_args=())
def rotate_normed(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm of each head, rotary positions, gain.

    Args:
        x: (B, T, H, K), K a power of two.
        gain: (H,) factors, or (0,) for none.
        cos, sin: (T, r / 2).
    Returns:
        (B, T, H, K) in the dtype of x.
    """
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows = x.numel() // x.size(3)
    _rotate_kernel[(triton.cdiv(num_rows, _ROWS),)](
        x, gain, cos.contiguous(), sin.contiguous(), y, num_rows, x.size(1), _EPS,
        HEADS=x.size(2), HALF=cos.size(1), WIDTH=x.size(3), GAINED=gain.numel() > 0, ROWS=_ROWS,
    )  # fmt: skip
    return y


@rotate_normed.register_fake
def _(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("bitgolf::rotate_normed_backward", mutates_args=())
def rotate_normed_backward(dy: Tensor, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and gain."""
    dy, x, dx = dy.contiguous(), x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, gained = x.numel() // x.size(3), gain.numel() > 0
    shares = torch.empty(num_rows if gained else 0, dtype=torch.float32, device=x.device)
    _rotate_backward_kernel[(triton.cdiv(num_rows, _ROWS),)](
        dy, x, gain, cos.contiguous(), sin.contiguous(), dx, shares, num_rows, x.size(1), _EPS,
        HEADS=x.size(2), HALF=cos.size(1), WIDTH=x.size(3), GAINED=gained, ROWS=_ROWS,
    )  # fmt: skip
    return dx, shares.view(-1, x.size(2)).sum(0).to(gain.dtype) if gained else torch.empty_like(gain)


@rotate_normed_backward.register_fake
def _(dy: Tensor, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), gain.new_empty(gain.shape)


def _rotate_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _rotate_gradients(ctx, dy):  # type: ignore[no-untyped-def]
    return (*rotate_normed_backward(dy, *ctx.saved_tensors), None, None)


rotate_normed.register_autograd(_rotate_gradients, setup_context=_rotate_save)


@torch.library.custom_op("bitgolf::exclude_and_gate", mutates_args=())
def exclude_and_gate(y: Tensor, v: Tensor, logits: Tensor, scale: float) -> Tensor:
    """Head outputs without their component along the token's own value, gated.

    Args:
        y: (B, T, H, K), K a power of two.
        v: (B, T, G, K) in the dtype of y.
        logits: (B, T, H), or (0,) for no gate; the gate is sigmoid(scale * logits).
    Returns:
        (B, T, H, K) in the dtype of y.
    """
    y, v, out = y.contiguous(), v.contiguous(), torch.empty(y.shape, dtype=y.dtype, device=y.device)
    num_rows = v.numel() // v.size(3)
    _exclude_kernel[(triton.cdiv(num_rows, _ROWS),)](
        y, v, logits.contiguous(), out, num_rows, scale,
        GROUP=y.size(2) // v.size(2), WIDTH=y.size(3), GATED=logits.numel() > 0, ROWS=_ROWS,
    )  # fmt: skip
    return out


@exclude_and_gate.register_fake
def _(y: Tensor, v: Tensor, logits: Tensor, scale: float) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("bitgolf::exclude_and_gate_backward", mutates_args=())
def exclude_and_gate_backward(
    dout: Tensor, y: Tensor, v: Tensor, logits: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, v and logits."""
    dout, y, v, logits = dout.contiguous(), y.contiguous(), v.contiguous(), logits.contiguous()
    dy, dv, dlogits = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (y, v, logits))
    num_rows = v.numel() // v.size(3)
    _exclude_backward_kernel[(triton.cdiv(num_rows, _ROWS),)](
        dout, y, v, logits, dy, dv, dlogits, num_rows, scale,
        GROUP=y.size(2) // v.size(2), WIDTH=y.size(3), GATED=logits.numel() > 0, ROWS=_ROWS,
    )  # fmt: skip
    return dy, dv, dlogits


@exclude_and_gate_backward.register_fake
def _(dout: Tensor, y: Tensor, v: Tensor, logits: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return y.new_empty(y.shape), v.new_empty(v.shape), logits.new_empty(logits.shape)


def _exclude_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _exclude_gradients(ctx, dout):  # type: ignore[no-untyped-def]
    return (*exclude_and_gate_backward(dout, *ctx.saved_tensors, ctx.scale), None)


exclude_and_gate.register_autograd(_exclude_gradients, setup_context=_exclude_save)
