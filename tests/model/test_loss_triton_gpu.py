"""The loss as a Triton kernel against the plain definition, in fp32 and bf16, with one and several targets.

Without a GPU it runs in Triton's interpreter: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICE, DTYPES

from bitgolf.model import cross_entropy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab", "weights"), [(64, (1.0,)), (100, (1.0,)), (1024, (1.0, 0.5, 0.25))])
def test_loss_and_gradients(vocab: int, weights: tuple[float, ...], dtype: torch.dtype) -> None:
    from bitgolf.model.loss_triton import softcapped_cross_entropy

    generator = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(37, 16, generator=generator)).to(DEVICE, dtype).requires_grad_()
    embedding = torch.randn(vocab, 16, generator=generator).to(DEVICE, dtype).requires_grad_()
    targets = torch.randint(vocab, (37, len(weights)), generator=generator).to(DEVICE)
    targets[5, 1:] = -1
    rest = (targets, 15.0, torch.tensor(weights, device=DEVICE))
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, embedding)]
    ours = 3 * softcapped_cross_entropy(hidden, embedding, *rest)
    theirs = 3 * cross_entropy.softcapped_cross_entropy(*wide, *rest)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    gradients = zip(torch.autograd.grad(ours, (hidden, embedding)), torch.autograd.grad(theirs, wide), strict=True)
    for mine, plain in gradients:
        assert mine.dtype == dtype
        assert float((mine.double() - plain).norm()) <= tolerance * float(plain.norm())
