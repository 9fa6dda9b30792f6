"""Parts of a layer in few passes over memory, for training on a CPU, where nothing fuses operations.

Each function is one of `layers` with a backward pass of its own. PyTorch's backward pass through the plain operations
makes up to four times as many passes over the activations. GPUs use the compiler or the kernels of `attention_triton`.

Legend: B batch, T time, H heads, K head width, D width, r rotated channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, scale: float | Tensor) -> Tensor:
    """x (..., D) divided by its root mean square, times `scale`."""
    y: Tensor = _Norm.apply(x, scale)
    return y


def squared_relu(x: Tensor, slope: float) -> Tensor:
    """The square of a (leaky) ReLU whose slope left of 0 is `slope`, 0 or more."""
    y: Tensor = _SquaredReLU.apply(x, slope)
    return y


def rotate_normed(x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, K) normalized, rotated by angles with this cos and sin, (T, r/2), and times gain (H,)."""
    y: Tensor = _RotateNormed.apply(x, gain, cos, sin)
    return y


def _inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean of the squares of the last axis + eps), (..., 1)."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return (squares / x.size(-1)).add_(torch.finfo(x.dtype).eps).rsqrt_()


def _unscaled(dy: Tensor, x: Tensor, inverse: Tensor, along: Tensor, factor: Tensor) -> Tensor:
    """Gradient of x / rms(x) * factor / inverse, in place of dy; `along` (..., 1) is the sum of dy times x."""
    return dy.mul_(factor).addcmul_(x, along * factor * inverse.square(), value=-1 / x.size(-1))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float | Tensor) -> Tensor:
        inverse = _inverse_rms(x)
        ctx.save_for_backward(x, inverse)
        ctx.scale = scale
        return x * (inverse * scale)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(upstream[0], x)[..., None]
        return _unscaled(upstream[0].clone(), x, inverse, along, inverse * ctx.scale), None


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        bent = torch.nn.functional.leaky_relu(x, slope) if slope else x.relu()
        ctx.save_for_backward(bent)
        ctx.slope = slope
        return bent * bent

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (bent,) = ctx.saved_tensors
        dx = (upstream[0] * bent).mul_(2)
        return dx.mul_(torch.where(bent > 0, 1.0, ctx.slope)) if ctx.slope else dx, None


class _RotateNormed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        inverse = _inverse_rms(x)
        ctx.save_for_backward(x, gain, cos, sin, inverse)
        return _turn(x, cos, sin).mul_(inverse if gain is None else inverse * gain[:, None])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, cos, sin, inverse = ctx.saved_tensors
        dx = _turn(upstream[0], cos, -sin)
        along = torch.linalg.vecdot(dx, x)[..., None]  # (B, T, H, 1)
        d_gain = None if gain is None else (along * inverse).sum((0, 1, 3))
        return (
            _unscaled(dx, x, inverse, along, inverse if gain is None else inverse * gain[:, None]),
            d_gain,
            None,
            None,
        )


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x rotated; with -sin back."""
    half = cos.size(-1)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    y = x.clone()
    y[..., :half].mul_(cos).addcmul_(x2, sin)
    y[..., half : 2 * half].mul_(cos).addcmul_(x1, sin, value=-1)
    return y
