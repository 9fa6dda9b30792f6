"""Fake quantization changes the model as the artifact will, and passes gradients; formulas of the penalties."""

import math

import numpy as np
import pytest
import torch

from bitgolf.config import ModelConfig
from bitgolf.grids.grid import Grid
from bitgolf.model import GPT
from bitgolf.train.qat import WeightFaker, attach_fakers, crown_penalty, soft_round

SHARP = torch.tensor(1.0)


def tiny(seed: int = 0) -> GPT:
    config = ModelConfig().updated(
        {
            "vocab_size": 300,
            "num_layers": 1,
            "model_dim": 32,
            "num_heads": 2,
            "num_kv_heads": 1,
            "bigram.rows": 20,
            "bigram.dim": 8,
        }
    )
    model = GPT(config, 16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("soft", [False, True])
def test_the_argument_changes_the_compiled_forward_and_gradients_reach_the_weights(soft: bool) -> None:
    model = tiny()
    layers = attach_fakers(
        model, lambda name: Grid(3) if "attention" in name or "mlp" in name else None, (1.0,), soft=soft
    )
    assert len(layers) == 6
    assert model.bigram.project.faker is None
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    tokens = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    off, on, off_again = compiled(x, y), compiled(x, y, SHARP), compiled(x, y)
    assert off.item() == off_again.item()
    assert off.item() == pytest.approx(model(x, y).item(), abs=1e-6)
    assert abs(on.item() - off.item()) > 1e-3
    assert on.item() == pytest.approx(model(x, y, SHARP).item(), abs=1e-6)
    on.backward()
    for name, (layer, _) in layers.items():
        assert layer.weight.grad is not None, name
        assert layer.weight.grad.abs().sum() > 0, name


def test_the_straight_through_forward_is_the_packed_weight() -> None:
    weight = torch.randn(6, 400, generator=torch.Generator().manual_seed(0)) ** 3
    grid = Grid(4)
    faker = WeightFaker(grid, 6, (0.99, 1.0), soft=False)
    faker.refresh_(weight)
    assert faker.ratio.min() < 1
    scales = grid.scales(weight, grid.search_clip(weight, (0.99, 1.0)))
    assert torch.equal(faker(weight, SHARP), grid.dequantize(grid.quantize(weight, scales), scales))


def test_soft_rounding_goes_from_identity_to_rounding() -> None:
    y = torch.linspace(-3.4, 3.4, 35)
    torch.testing.assert_close(soft_round(y, torch.tensor(1e-2)), y, atol=1e-4, rtol=0)
    torch.testing.assert_close(soft_round(y, torch.tensor(200.0)), y.round(), atol=1e-3, rtol=0)
    for a in (1.0, 4.0, 16.0):
        expected = []
        for value in y.tolist():
            r = value - math.floor(value) - 0.5
            expected.append(math.floor(value) + 0.5 + 0.5 * math.tanh(a * r) / math.tanh(a / 2))
        np.testing.assert_allclose(soft_round(y, torch.tensor(a)).numpy(), expected, atol=1e-5)
    z = torch.tensor([0.3, 1.7], requires_grad=True)
    soft_round(z, torch.tensor(4.0)).sum().backward()
    assert (z.grad > 0).all()


def test_crown_penalty_is_its_formula_with_a_gradient_through_the_maximum() -> None:
    weights = [torch.randn(3, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    expected = 0.0
    for weight in weights:
        for row in weight.numpy():
            expected += (row**2).mean() * (np.abs(row).max() / 15) ** 2 / 12
    assert crown_penalty(weights).item() == pytest.approx(expected, rel=1e-6)
    weights[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda w: crown_penalty([w]).double(), weights[0], atol=1e-4)
