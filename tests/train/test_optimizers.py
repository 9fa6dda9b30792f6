"""Muon, the optimizer groups, the schedules and the average against plain definitions."""

import math

import numpy as np
import pytest
import torch

from bitgolf.config import ModelConfig, TrainConfig, load_config
from bitgolf.config.train import AverageConfig, MuonConfig
from bitgolf.errors import ConfigError
from bitgolf.model import GPT
from bitgolf.run.ranks import World
from bitgolf.train.average import EMA, SWA, Averages
from bitgolf.train.muon import Muon, orthogonalize
from bitgolf.train.optimizer import ModelOptimizer
from bitgolf.train.schedule import lr_multiplier, muon_momentum

ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 20, 20)])
def test_newton_schulz_gives_singular_values_near_one_with_the_same_singular_vectors(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = orthogonalize(x, 5).float()
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.5
    assert values.max() < 1.35
    for a, b in zip(x, y, strict=True):
        u, _, vh = torch.linalg.svd(a, full_matrices=False)
        polar = u @ vh
        cosine = (polar * b).sum() / (polar.norm() * b.norm())
        assert cosine > 0.97


def test_muon_follows_its_formula_step_by_step() -> None:
    rng = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(shape, generator=rng) for name, shape in {"a": (12, 6), "b": (6, 12), "c": (12, 6)}.items()
    }
    lr, wd, mu = 0.1, 0.3, 0.9
    expected = {name: w.clone() for name, w in weights.items()}
    buffers = {name: torch.zeros_like(w) for name, w in weights.items()}
    muon = Muon(weights, ALONE, weight_decay=wd)
    for _ in range(3):
        for name, w in weights.items():
            w.grad = torch.randn(w.shape, generator=rng)
            buffers[name] = mu * buffers[name] + w.grad
            update = orthogonalize((w.grad + mu * buffers[name])[None], 5)[0].float()
            scale = math.sqrt(max(1.0, w.size(0) / w.size(1)))
            expected[name] = expected[name] * (1 - lr * wd) - lr * scale * update
        muon.step(lr, mu)
    for name, w in weights.items():
        torch.testing.assert_close(w, expected[name], atol=2e-3, rtol=2e-3)


def test_every_parameter_is_in_exactly_one_group_and_moves() -> None:
    model = GPT(ModelConfig(vocab_size=300, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1), 8)
    model.initialize_(torch.Generator().manual_seed(0))
    optimizer = ModelOptimizer(model, TrainConfig(), ALONE)
    grouped = list(optimizer.muon.parameters) + [n for group in optimizer.adam_names for n in group]
    assert sorted(grouped) == sorted(dict(model.named_parameters()))
    assert optimizer.adam_names[0] == ["embedding"]
    assert all(name.endswith(".weight") for name in optimizer.muon.parameters)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        norms = optimizer.step(1.0, 0.9)
    assert norms.shape == (len(before) + 1,)
    assert norms[-1] == pytest.approx(norms[:-1].norm().item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_clipping_scales_all_gradients_to_the_limit() -> None:
    model = GPT(ModelConfig(vocab_size=300, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1), 8)
    model.initialize_(torch.Generator().manual_seed(0))
    optimizer = ModelOptimizer(model, TrainConfig(grad_clip=0.5, muon_momentum=0.0, muon_momentum_start=0.0), ALONE)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    total = math.sqrt(9.0 * sum(p.numel() for p in model.parameters()))
    norms = optimizer.step(1.0, 0.0)
    assert norms[-1] == pytest.approx(total, rel=1e-5)
    buffers = torch.cat([b.flatten() for b in optimizer.muon.buffers.values()])
    assert buffers.abs().max().item() == pytest.approx(3.0 * 0.5 / total, rel=1e-4)


def test_schedules() -> None:
    assert [lr_multiplier(f, 0.5, 0.1) for f in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.1]
    assert lr_multiplier(1.0, 0.0, 0.0) == 1.0
    config = MuonConfig(momentum_start=0.8, momentum=0.9, momentum_warmup=0.1)
    assert muon_momentum(0.0, config) == pytest.approx(0.8)
    assert muon_momentum(0.05, config) == pytest.approx(0.85)
    assert muon_momentum(0.7, config) == pytest.approx(0.9)


def test_swa_is_the_mean_of_snapshots_at_even_fractions_below_the_start() -> None:
    parameter = torch.zeros(2)
    swa = SWA({"p": parameter}, spacing=0.1, start_lr_scale=0.5)
    seen = []
    for step in range(100):
        fraction, lr_scale = step / 100, 1 - step / 100
        parameter.copy_(torch.tensor([float(step), step**2.0]))
        before = float(swa.count)
        swa.update(fraction, lr_scale)
        if float(swa.count) > before:
            seen.append((step, parameter.clone()))
    assert [step for step, _ in seen] == [51, 60, 70, 80, 90]
    torch.testing.assert_close(swa.mean()["p"], torch.stack([value for _, value in seen]).mean(0))


def test_blend_ships_the_configured_mixture_and_survives_a_restart() -> None:
    config = AverageConfig(ema_decay=0.5, swa_weight=0.25, swa_start=0.9, swa_spacing=0.5)
    parameter = torch.zeros(1)
    averages = Averages({"p": parameter}, config)
    for step in range(4):
        parameter.fill_(step + 1.0)
        averages.update(step / 4, 0.1)
    ema = 0.0
    for value in (1.0, 2.0, 3.0, 4.0):
        ema = 0.5 * ema + 0.5 * value
    swa = (1.0 + 3.0) / 2
    weights, told = averages.shipped()
    assert weights["p"].item() == pytest.approx(0.75 * ema + 0.25 * swa)
    assert told == "0.75 x ema 0.5 + 0.25 x swa of 2"
    again = Averages({"p": parameter}, config)
    for name, tensor in again.state().items():
        tensor.copy_(averages.state()[name])
    assert torch.equal(again.shipped()[0]["p"], weights["p"])


def test_averages_and_late_phases_that_never_start_are_refused() -> None:
    for overrides, words in [
        (
            {"train.average.swa_weight": "0.5", "train.average.swa_start": "0.2", "train.min_lr": "0.2"},
            "swa_start 0.2 is never reached",
        ),
        ({"qat.mode": "ste"}, "qat never starts"),
        ({"qat.crown.weight": "0.01", "qat.start_lr_scale": "0.1", "train.warmdown": "0"}, "qat never starts"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_config("demo", overrides)


def test_ema_equals_the_weighted_sum_of_all_weights() -> None:
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
