"""The Triton kernels around attention against the plain definitions, in fp32 and bf16, forward and backward.

Without a GPU they run in Triton's interpreter: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, DTYPES

from bitgolf.model.layers import remove_own_value, rms_norm
from bitgolf.model.rotary import rotate


def draw(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(DEVICE, dtype).requires_grad_()


def check(ours: Tensor, theirs: Tensor, inputs: list[Tensor], wide: list[Tensor]) -> None:
    """Results and gradients against those of float64; relative to their size."""
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    pairs = zip(
        (ours, *torch.autograd.grad(ours, inputs, upstream.to(ours.dtype))),
        (theirs, *torch.autograd.grad(theirs, wide, upstream.to(ours.dtype).double())),
        strict=True,
    )
    for a, b in pairs:
        assert a.shape == b.shape
        assert float((a.detach().double() - b.detach()).norm()) <= (1e-5 if a.dtype == torch.float32 else 5e-3) * float(
            b.detach().norm()
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gained", [True, False])
@pytest.mark.parametrize("shape", [(2, 13, 4, 16, 8), (1, 37, 8, 64, 16), (3, 7, 2, 32, 32)])
def test_rotate_normed(shape: tuple[int, int, int, int, int], gained: bool, dtype: torch.dtype) -> None:
    from bitgolf.model.attention_triton import rotate_normed

    B, T, H, K, r = shape
    x, gain = draw(0, B, T, H, K, dtype=dtype), draw(1, H if gained else 0, dtype=torch.float32)
    angles = torch.arange(T)[:, None] * torch.rand(r // 2, generator=torch.Generator().manual_seed(2))
    cos, sin = angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)
    wide_x, wide_gain = x.detach().double().requires_grad_(), gain.detach().double().requires_grad_()
    theirs = rotate(rms_norm(wide_x), cos.double(), sin.double())
    if gained:
        check(rotate_normed(x, gain, cos, sin), theirs * wide_gain[:, None], [x, gain], [wide_x, wide_gain])
    else:
        check(rotate_normed(x, gain, cos, sin), theirs, [x], [wide_x])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", [(2, 13, 4, 2, 16), (1, 37, 8, 4, 64), (1, 7, 3, 1, 32), (2, 5, 2, 2, 8)])
def test_exclude_and_gate(shape: tuple[int, int, int, int, int], gated: bool, dtype: torch.dtype) -> None:
    from bitgolf.model.attention_triton import exclude_and_gate

    B, T, H, G, K = shape
    y, v = draw(0, B, T, H, K, dtype=dtype), draw(1, B, T, G, K, dtype=dtype)
    logits = draw(2, B, T, H, dtype=dtype) if gated else torch.zeros(0, device=DEVICE, dtype=dtype)
    wide = [t.detach().double().requires_grad_() for t in (y, v, logits)]
    theirs = remove_own_value(wide[0], wide[1])
    if gated:
        gate = torch.sigmoid(0.5 * wide[2])[..., None]
        check(exclude_and_gate(y, v, logits, 0.5), theirs * gate, [y, v, logits], wide)
    else:
        check(exclude_and_gate(y, v, logits, 0.5), theirs, [y, v], wide[:2])
