"""Measured curvature against exact second derivatives, and its noise against the errors that GPTQ leaves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from grid_gptq import gptq

from bitgolf.config import ModelConfig
from bitgolf.grids.grid import Grid
from bitgolf.measure import curvature as curvature_module
from bitgolf.measure.curvature import TrialNoise, curvature_from_gradient, measure_curvature, shaped_noise
from bitgolf.measure.fisher import FisherCollector
from bitgolf.measure.inverse_factor import inverse_factor
from bitgolf.model import GPT
from bitgolf.quantize.gptq import output_error
from bitgolf.run.ranks import World

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = ModelConfig().updated(
    {"vocab_size": 260, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "bigram.rows": 20}
)


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
    noise = step * shaped_noise((3000, columns), factor, rng, column_steps=False, device=torch.device("cpu"))
    assert float(output_error(noise, hessian)) == pytest.approx(left, rel=0.03)
    conditional = factor.pivots.double() ** -2
    for column_steps, mean in ((False, conditional.mean()), (True, conditional.log().mean().exp())):
        noise = shaped_noise((3000, columns), factor, rng, column_steps=column_steps, device=torch.device("cpu"))
        damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(columns)
        expected = float(mean) * columns * 3000 / 12
        assert float(output_error(noise.double(), damped)) == pytest.approx(expected, rel=0.03)


def test_dead_inputs_get_no_noise() -> None:
    hessian = correlated(8, 0)
    hessian[3], hessian[:, 3] = 0, 0
    factor = inverse_factor(hessian, 0.01, torch.float32)
    for column_steps in (False, True):
        noise = shaped_noise(
            (5, 8), factor, torch.Generator().manual_seed(0), column_steps=column_steps, device=torch.device("cpu")
        )
        assert (noise[:, 3] == 0).all() and (noise[:, :3] != 0).all() and bool(torch.isfinite(noise).all())
    dead = inverse_factor(torch.zeros(4, 4), 0.01, torch.float32)
    cpu = torch.device("cpu")
    assert not shaped_noise((2, 4), dead, torch.Generator(), column_steps=True, device=cpu).any()


def test_the_increase_is_half_the_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(CONFIG, 8).initialize_(torch.Generator().manual_seed(0)).double()
    model.compute_dtype = torch.float64
    # In fp32 the rounding errors of the head are larger than this increase.
    monkeypatch.setattr(model, "logits", lambda hidden, tokens: 30 * torch.tanh(hidden @ model.embedding.T / 30))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rows = torch.randint(260, (6, 9), generator=torch.Generator().manual_seed(2))
    name = "blocks.1.mlp.up.weight"
    hessian = correlated(16, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    curvature = measure_curvature(
        model, {name: hessian, "bigram.table": None}, rows, TrialNoise(1e-3, 0.01, True), seed=7, world=ALONE
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert list(curvature) == [name, "bigram.table"] and curvature[name].error_nats > 0
    rng = torch.Generator().manual_seed(7)
    factor = inverse_factor(hessian, 0.01, torch.float32)
    parameters = dict(model.named_parameters())
    for key, shaped in ((name, factor), ("bigram.table", None)):
        weight = parameters[key]
        shape = (weight.size(0), weight.size(1))
        step = 1e-3 * float(weight.detach().square().mean().sqrt())
        noise = step * shaped_noise(shape, shaped, rng, column_steps=True, device=torch.device("cpu")).double()
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (product,) = torch.autograd.grad((gradient * noise).sum(), weight)
        assert curvature[key].increase_nats == pytest.approx(float((product * noise).sum()) / 2, rel=1e-3)
        assert curvature[key].nats_per_squared_step == curvature[key].increase_nats / curvature[key].step ** 2


def test_unused_tables_and_tensors_after_the_deadline_are_left_out() -> None:
    model = GPT(CONFIG, 8).initialize_(torch.Generator().manual_seed(0))  # bigram table and outputs are zero
    rows = torch.randint(260, (2, 9), generator=torch.Generator().manual_seed(2))
    names = {"bigram.table": None, "embedding": None, "blocks.0.mlp.up.weight": None}
    answers = iter([True, False])  # the first tensor is measured without asking
    curvature = measure_curvature(
        model, names, rows, TrialNoise(0.1, 0.01, False), seed=0, world=ALONE, another_fits=lambda: next(answers)
    )
    assert list(curvature) == ["embedding"]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_error_is_the_standard_error_over_the_rows_of_all_ranks(num_ranks: int) -> None:
    class Ranks(World):
        """Ranks with equal rows, so that the mean over ranks is that of one."""

        def mean_(self, tensors: list[torch.Tensor]) -> None: ...

    increases = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    mean, error = curvature_module._mean_and_error(increases, Ranks(0, num_ranks, torch.device("cpu")))
    assert mean == 3.0
    assert error == pytest.approx((14 / 3 / (3 * num_ranks)) ** 0.5)  # the variance of the rows is 14 / 3


def test_time_is_reserved_for_every_tensor_as_wide_as_the_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(CONFIG, 8)
    widths: list[list[tuple[str, int]]] = []
    monkeypatch.setattr(curvature_module, "seconds_of_second_run", lambda work, world: (work(), 0.5)[1])
    monkeypatch.setattr(
        curvature_module,
        "measure_curvature",
        lambda model, hessians, *_, **__: widths.append([(name, len(h)) for name, h in hessians.items()]),
    )
    names = ["bigram.project.weight", "blocks.0.mlp.down.weight", "embedding"]
    noise = TrialNoise(0.1, 0.01, False)
    rows = torch.zeros(2, 9, dtype=torch.int64)
    assert curvature_module.curvature_seconds(model, names, rows, noise, ALONE) == pytest.approx(2 * 1.15 * 4 * 0.5)
    assert widths == [[("bigram.project.weight", 128)]]
    assert curvature_module.curvature_seconds(model, [], rows, noise, ALONE) == 0


@pytest.mark.parametrize("column_steps", [False, True])
@pytest.mark.parametrize("shaped", [False, True])
def test_a_gradient_predicts_the_mean_cost_of_the_noise(column_steps: bool, shaped: bool) -> None:
    hessian = correlated(8, 3)
    hessian[2], hessian[:, 2] = 0, 0  # an input that was always zero
    rng = torch.Generator().manual_seed(4)
    weight, gradient = torch.randn(5, 8, generator=rng), torch.randn(5, 8, generator=rng)
    noise = TrialNoise(0.5, 0.01, column_steps)
    curvature = curvature_from_gradient(weight, gradient, hessian if shaped else None, noise)
    factor = inverse_factor(hessian, 0.01, torch.float32) if shaped else None
    draws = [
        curvature.step * shaped_noise((5, 8), factor, rng, column_steps=column_steps, device=torch.device("cpu"))
        for _ in range(5_000)
    ]
    costs = torch.stack([(gradient * draw).sum() for draw in draws]).double().square() / 2
    assert curvature.step == pytest.approx(0.5 * float(weight.square().mean().sqrt()))
    assert curvature.increase_nats == pytest.approx(float(costs.mean()), rel=0.08)
    assert curvature.error_nats == 0


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
        curvature = curvature_from_gradient(weight, gradients[name], hessian, TrialNoise(0.1, 0.01, True))
        factor = None if hessian is None else inverse_factor(hessian, 0.01, torch.float32)
        divergences = []
        for _ in range(4):
            shape = (weight.size(0), weight.size(1))
            noise = shaped_noise(shape, factor, rng, column_steps=True, device=torch.device("cpu"))
            float_weight = weight.clone()
            weight.add_(curvature.step * noise)
            with torch.no_grad():
                after = model(tokens).log_softmax(-1)
            weight.copy_(float_weight)
            divergences.append(float((before.exp() * (before - after)).sum(-1).double().mean()))
        assert curvature.increase_nats == pytest.approx(sum(divergences) / 4, rel=0.25), name
