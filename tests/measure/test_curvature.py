"""Curvature against the cost of drawn noise, and that noise against the errors that GPTQ leaves."""

import pytest
import torch
from grid_gptq import gptq

from bitgolf.config import ModelConfig
from bitgolf.grids.grid import Grid
from bitgolf.measure.curvature import Curvature, curvature_from_gradient
from bitgolf.measure.fisher import FisherCollector
from bitgolf.measure.inverse_factor import InverseFactor, inverse_factor
from bitgolf.model import GPT
from bitgolf.quantize.gptq import output_error
from bitgolf.run.ranks import World

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = ModelConfig().updated(
    {"vocab_size": 260, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "bigram.rows": 20}
)


def shaped_noise(
    shape: tuple[int, int], factor: InverseFactor | None, generator: torch.Generator, *, column_steps: bool
) -> torch.Tensor:
    """Rounding errors of step 1 as GPTQ distributes them over the weights; plain uniform noise without a factor.

    With `column_steps` the step of column j is proportional to its pivot 1 / sqrt(D_j), with geometric mean 1.
    """
    errors = torch.rand(shape, generator=generator) - 0.5
    if factor is None:
        return errors
    live = ~factor.dead[factor.order]
    pivots = factor.pivots.float()  # in rounding order, proportional to the step per column
    scaled = errors / pivots[live].log().mean().exp() if column_steps else errors / pivots
    noise = (scaled * live) @ factor.upper.float()
    return torch.zeros_like(noise).index_copy_(1, factor.order, noise).masked_fill_(factor.dead, 0.0)


def correlated(columns: int, seed: int) -> torch.Tensor:
    """A Hessian whose inputs depend on each other."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=rng) @ torch.randn(columns, columns, generator=rng)
    return x.T @ x


@pytest.mark.parametrize("columns", [24, 40])
def test_noise_costs_what_rounding_costs(columns: int) -> None:
    hessian = correlated(columns, columns)
    weight = torch.randn(3000, columns, generator=torch.Generator().manual_seed(1))
    grid, step = Grid(12), 0.01
    _, rounded = gptq(weight, hessian, grid, torch.full((3000,), step).half().float(), damping=0.01)
    left = float(output_error(weight - rounded, hessian))
    factor = inverse_factor(hessian, 0.01, torch.float32)
    rng = torch.Generator().manual_seed(2)
    noise = step * shaped_noise((3000, columns), factor, rng, column_steps=False)
    assert float(output_error(noise, hessian)) == pytest.approx(left, rel=0.03)
    conditional = factor.pivots.double() ** -2
    for column_steps, mean in ((False, conditional.mean()), (True, conditional.log().mean().exp())):
        noise = shaped_noise((3000, columns), factor, rng, column_steps=column_steps)
        damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(columns)
        expected = float(mean) * columns * 3000 / 12
        assert float(output_error(noise.double(), damped)) == pytest.approx(expected, rel=0.03)


def test_a_matrix_whose_inputs_were_all_zero_costs_nothing() -> None:
    weight = torch.ones(2, 4)
    assert curvature_from_gradient(weight, weight, torch.zeros(4, 4), 0.01, column_steps=True) == Curvature(1.0, 0.0)


@pytest.mark.parametrize("column_steps", [False, True])
@pytest.mark.parametrize("shaped", [False, True])
def test_a_gradient_predicts_the_mean_cost_of_the_noise(column_steps: bool, shaped: bool) -> None:
    hessian = correlated(8, 3)
    hessian[2], hessian[:, 2] = 0, 0  # an input that was always zero
    rng = torch.Generator().manual_seed(4)
    weight, gradient = torch.randn(5, 8, generator=rng), torch.randn(5, 8, generator=rng)
    used = hessian if shaped else None
    curvature = curvature_from_gradient(weight, gradient, used, 0.01, column_steps=column_steps)
    factor = inverse_factor(hessian, 0.01, torch.float32) if shaped else None
    draws = [curvature.step * shaped_noise((5, 8), factor, rng, column_steps=column_steps) for _ in range(5_000)]
    costs = torch.stack([(gradient * draw).sum() for draw in draws]).double().square() / 2
    assert curvature.step == pytest.approx(float(weight.square().mean().sqrt()))
    assert curvature.increase_nats == pytest.approx(float(costs.mean()), rel=0.08)


def test_gradients_predict_how_far_predictions_move() -> None:
    """The divergence of the predictions is the mean rise of the loss over the model's own labels."""
    model = GPT(CONFIG, 8).initialize_(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rng = torch.Generator().manual_seed(5)
    tokens = torch.randint(260, (512, 8), generator=rng)
    names = ["embedding", "bigram.table", "blocks.0.attention.value.weight", "blocks.1.mlp.down.weight"]
    collector = FisherCollector(model, rng, names)
    collector.add(tokens)
    fisher, gradients = collector.finish(ALONE)
    with torch.no_grad():
        before = model(tokens).log_softmax(-1)
    for name in names:
        weight = model.get_parameter(name).data
        hessian = fisher[name].inputs if name in fisher else None
        curvature = curvature_from_gradient(weight, gradients[name], hessian, 0.01, column_steps=True)
        factor = None if hessian is None else inverse_factor(hessian, 0.01, torch.float32)
        divergences = []
        for _ in range(4):
            shape = (weight.size(0), weight.size(1))
            noise = shaped_noise(shape, factor, rng, column_steps=True)
            float_weight = weight.clone()
            weight.add_(0.1 * curvature.step * noise)
            with torch.no_grad():
                after = model(tokens).log_softmax(-1)
            weight.copy_(float_weight)
            divergences.append(float((before.exp() * (before - after)).sum(-1).double().mean()))
        assert 0.1**2 * curvature.increase_nats == pytest.approx(sum(divergences) / 4, rel=0.25), name
