"""The MLP with its activation inside the matrix products, against float64: output and all gradients. Needs Hopper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("quack")
if not (torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9):
    pytest.skip("needs a Hopper GPU", allow_module_level=True)


@pytest.mark.gpu
@pytest.mark.parametrize("slope", [0.5, 0.0])
@pytest.mark.parametrize(("rows", "width", "hidden"), [(300, 64, 256), (1000, 512, 2048)])
def test_output_and_gradients(rows: int, width: int, hidden: int, slope: float) -> None:
    from bitgolf.model.mlp_quack import mlp

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, rows // 2, width), (hidden, width), (width, hidden))
    inputs = [
        (torch.randn(s, generator=generator) * k).to("cuda", torch.bfloat16)
        for s, k in zip(shapes, (1, 0.1, 0.1), strict=True)
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    x, up, down = (tensor.detach().double().requires_grad_() for tensor in inputs)
    ours, theirs = mlp(*inputs, slope), F.leaky_relu(x @ up.T, slope).square() @ down.T
    upstream = torch.randn(ours.shape, generator=generator).to("cuda")
    mine = (ours, *torch.autograd.grad(ours, inputs, upstream.bfloat16()))
    exact = (theirs, *torch.autograd.grad(theirs, (x, up, down), upstream.bfloat16().double()))
    for a, b in zip(mine, exact, strict=True):
        assert float((a.detach().double() - b.detach()).norm()) <= 1e-2 * float(b.detach().norm())
