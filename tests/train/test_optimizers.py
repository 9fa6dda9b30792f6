"""Muon, AdamW, the clip, the schedules and the averages, each against its published formula in float64."""

import math

import numpy as np
import pytest
import torch
from tiny_trainer import ALONE

from bitgolf.config import ModelConfig, TrainConfig
from bitgolf.config.train import MuonConfig
from bitgolf.model import GPT
from bitgolf.train.average import EMA, SWA
from bitgolf.train.muon import Muon, orthogonalize
from bitgolf.train.optimizer import ModelOptimizer
from bitgolf.train.schedule import lr_multiplier, muon_momentum

TINY = {"vocab_size": 300, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}


def newton_schulz(x: np.ndarray, steps: int) -> np.ndarray:
    """Jordan et al. 2024: X <- a X + b (X X^T) X + c (X X^T)^2 X, from X / |X|, by singular values in float64."""
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ vt


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20)])
@pytest.mark.parametrize("steps", [1, 5])
def test_orthogonalization_is_the_published_iteration(shape: tuple[int, int], steps: int) -> None:
    stack = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, result in zip(stack, orthogonalize(stack, steps), strict=True):
        np.testing.assert_allclose(result.numpy(), newton_schulz(matrix.numpy(), steps), atol=2e-4)
    values = torch.linalg.svdvals(orthogonalize(stack, 5))
    assert values.min() > 0.5 and values.max() < 1.35


def test_a_tall_matrix_costs_no_more_than_a_wide_one() -> None:
    """The Gram matrix is that of the shorter side."""
    from torch.utils.flop_counter import FlopCounterMode

    flops = []
    for shape in ((8, 64), (64, 8)):
        with FlopCounterMode(display=False) as counter:
            orthogonalize(torch.ones(1, *shape), 3)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] == 3 * (2 * 8 * 8 * 64 + 2 * 8 * 8 * 8 + 2 * 8 * 8 * 64)


def test_muon_is_its_formula() -> None:
    """buf = mu buf + g, u = g + mu buf, p = p (1 - lr wd) - lr max(1, rows / cols)^0.5 NS(u)."""
    rng = torch.Generator().manual_seed(1)
    shapes = {"tall": (12, 6), "wide": (6, 12), "tall too": (12, 6), "square": (8, 8)}
    weights = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    expected = {name: w.double().numpy() for name, w in weights.items()}
    buffers = {name: np.zeros(shape) for name, shape in shapes.items()}
    muon = Muon(weights, ALONE, MuonConfig(weight_decay=0.3))
    for lr, mu in ((0.1, 0.8), (0.05, 0.9), (0.02, 0.95)):
        for name, w in weights.items():
            w.grad = torch.randn(w.shape, generator=rng)
            gradient = w.grad.double().numpy()
            buffers[name] = mu * buffers[name] + gradient
            direction = newton_schulz(gradient + mu * buffers[name], 5)
            scale = math.sqrt(max(1.0, w.size(0) / w.size(1)))
            expected[name] = expected[name] * (1 - lr * 0.3) - lr * scale * direction
        muon.step(lr, mu)
    for name, w in weights.items():
        np.testing.assert_allclose(w.numpy(), expected[name], atol=2e-4)


def test_every_parameter_is_in_exactly_one_group_and_changes() -> None:
    model = GPT(ModelConfig().updated(TINY), 8).initialize_(torch.Generator().manual_seed(0))
    optimizer = ModelOptimizer(model, TrainConfig(), ALONE)
    grouped = list(optimizer.muon.parameters) + [n for group in optimizer.adam_names for n in group]
    assert sorted(grouped) == sorted(dict(model.named_parameters()))
    assert optimizer.adam_names[0] == ["embedding"]
    assert all(name.endswith(".weight") for name in optimizer.muon.parameters)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step(1.0, 0.9)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_tables_and_scalars_follow_adamw_with_their_own_rates() -> None:
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p = p (1 - lr wd) - lr m' / (v'^0.5 + eps), ' bias-corrected."""
    model = GPT(ModelConfig().updated(TINY), 8).initialize_(torch.Generator().manual_seed(0))
    config = TrainConfig().updated(
        {
            "embed_lr": 0.03, "scalar_lr": 0.07, "muon.weight_decay": 0.9,
            "adam.beta1": 0.6, "adam.beta2": 0.8, "adam.eps": 1e-3, "adam.weight_decay": 0.2,
        }
    )  # fmt: skip
    optimizer = ModelOptimizer(model, config, ALONE)
    rng = torch.Generator().manual_seed(1)
    rates = {"embedding": 0.03, "blocks.0.attention.q_gain": 0.07, "blocks.1.resid_mix": 0.07}
    expected = {name: model.get_parameter(name).detach().double() for name in rates}
    m, v = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for step, lr_scale in enumerate((1.0, 0.5, 0.25), 1):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
            if name in rates:
                g, lr = parameter.grad.double(), rates[name] * lr_scale
                m[name], v[name] = 0.6 * m[name] + 0.4 * g, 0.8 * v[name] + 0.2 * g**2
                update = (m[name] / (1 - 0.6**step)) / ((v[name] / (1 - 0.8**step)).sqrt() + 1e-3)
                expected[name] = expected[name] * (1 - lr * 0.2) - lr * update
        optimizer.step(lr_scale, 0.9)
    for name, values in expected.items():
        torch.testing.assert_close(model.get_parameter(name).detach().double(), values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 5])
def test_matrices_follow_muon_with_its_own_settings(steps: int) -> None:
    """The first step: p (1 - lr wd) - lr max(1, rows / cols)^0.5 NS(g + mu g), NS with the configured steps."""
    model = GPT(ModelConfig().updated(TINY), 8).initialize_(torch.Generator().manual_seed(0))
    settings = {"matrix_lr": 0.1, "muon.weight_decay": 0.5, "muon.steps": steps, "adam.weight_decay": 0.0}
    optimizer = ModelOptimizer(model, TrainConfig().updated(settings), ALONE)
    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    weight = model.get_parameter("blocks.0.mlp.up.weight")
    assert weight.grad is not None
    direction = newton_schulz(1.9 * weight.grad.numpy(), steps)
    expected = weight.detach().numpy() * (1 - 0.05 * 0.5) - 0.05 * math.sqrt(32 / 16) * direction
    optimizer.step(0.5, 0.9)
    np.testing.assert_allclose(weight.detach().numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3], ids=["off", "above the limit", "below the limit"])
def test_the_clip_scales_gradients_down_to_the_limit_and_never_up(limit: float) -> None:
    model = GPT(ModelConfig().updated(TINY), 8).initialize_(torch.Generator().manual_seed(0))
    optimizer = ModelOptimizer(model, TrainConfig().updated({"grad_clip": limit}), ALONE)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    sizes = [p.numel() for p in model.parameters()]
    total = 3.0 * math.sqrt(sum(sizes))
    norms = optimizer.step(1.0, 0.0)
    assert norms.tolist() == pytest.approx([3.0 * math.sqrt(size) for size in sizes] + [total], rel=1e-5)
    gradient = 3.0 * (limit / total if 0 < limit < total else 1.0)  # momentum 0: the buffers are the gradients
    for buffer in optimizer.muon.buffers.values():
        torch.testing.assert_close(buffer, torch.full_like(buffer, gradient), rtol=1e-4, atol=0)


def test_schedules() -> None:
    assert [lr_multiplier(f, 0.5, 0.1) for f in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.1]
    assert lr_multiplier(1.0, 0.0, 0.0) == 1.0
    config = MuonConfig(momentum_start=0.8, momentum=0.9, momentum_warmup=0.1)
    assert [muon_momentum(f, config) for f in (0.0, 0.05, 0.1, 0.7)] == pytest.approx([0.8, 0.85, 0.9, 0.9])
    assert muon_momentum(0.0, config.updated({"momentum_warmup": 0.0})) == 0.9


def test_swa_is_the_mean_of_snapshots_at_even_fractions_below_the_start() -> None:
    parameter = torch.zeros(2)
    swa = SWA({"p": parameter}, spacing=0.1, start_lr_scale=0.5)
    snapshots = []
    for step in range(100):
        parameter.copy_(torch.tensor([float(step), step**2.0]))
        before = float(swa.count)
        swa.update(step / 100, 1 - step / 100)
        if float(swa.count) > before:
            snapshots.append((step, parameter.clone()))
    assert [step for step, _ in snapshots] == [51, 60, 70, 80, 90]
    torch.testing.assert_close(swa.mean()["p"], torch.stack([value for _, value in snapshots]).mean(0))


def test_the_ema_is_the_weighted_sum_of_all_weights() -> None:
    parameter = torch.tensor([1.0, 5.0], dtype=torch.float32)
    ema = EMA({"p": parameter}, 0.8)
    history = [parameter.clone()]
    for step in range(1, 6):
        parameter.copy_(torch.tensor([1.0 + step, 5.0 * step]))
        ema.update()
        history.append(parameter.clone())
    weights = [0.8**5] + [0.2 * 0.8 ** (5 - i) for i in range(1, 6)]
    expected = sum(w * h for w, h in zip(weights, history, strict=True))
    np.testing.assert_allclose(ema.shadow["p"].numpy(), expected.numpy(), rtol=1e-5)


def test_cautious_decay_shrinks_only_weights_that_the_step_shrinks() -> None:
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 12, generator=rng)
    before = weight.double().numpy()
    weight.grad = torch.randn(6, 12, generator=rng)
    direction = newton_schulz(weight.grad.double().numpy(), 5)
    Muon({"w": weight}, ALONE, MuonConfig(weight_decay=9.0, cautious_decay=True)).step(0.1, 0.0, decay=0.5)
    expected = before * np.where(direction * before >= 0, 1 - 0.1 * 0.5, 1) - 0.1 * direction
    np.testing.assert_allclose(weight.numpy(), expected, atol=2e-4)


def test_two_rails_start_from_the_momentum_and_average_gradients() -> None:
    """Means of the gradients with decays 0.85 and 0.98, mixed 0.4385 to 0.5615, then Nesterov's mix (PR 340)."""
    rng = torch.Generator().manual_seed(1)
    weight, mu = torch.randn(6, 12, generator=rng), 0.9
    expected, buffer = weight.double().numpy(), np.zeros((6, 12))
    muon = Muon({"w": weight}, ALONE, MuonConfig(two_rails_from=0.5))
    fast = slow = buffer
    for step in range(6):
        weight.grad = torch.randn(6, 12, generator=rng)
        gradient = weight.grad.double().numpy()
        if step < 2:
            buffer = mu * buffer + gradient
            update, fast, slow = gradient + mu * buffer, (1 - mu) * buffer, (1 - mu) * buffer
        else:
            fast, slow = 0.85 * fast + 0.15 * gradient, 0.98 * slow + 0.02 * gradient
            update = (1 - mu) * gradient + mu * (0.4385 * fast + 0.5615 * slow)
        expected = expected - 0.1 * newton_schulz(update, 5)
        muon.step(0.1, mu, two_rails=step >= 2)
    np.testing.assert_allclose(weight.numpy(), expected, atol=2e-4)
    assert set(muon.state()) == {"muon.6x12", "muon.slow.6x12", "muon.on_rails"} and muon.on_rails
