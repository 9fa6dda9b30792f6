"""How PR 1855 trains: Polar Express with row normalization in bf16, decay per group, the loop by the clock."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny_trainer import ALONE, SIZES, batch

from bitgolf.config import ModelConfig, TrainConfig, load_config
from bitgolf.config.train import MuonConfig
from bitgolf.data.loader import BatchShape
from bitgolf.model import GPT
from bitgolf.train.checkpoint import state_digest
from bitgolf.train.muon import Muon, orthogonalize
from bitgolf.train.schedule import StepSettings, lr_multiplier, muon_momentum
from bitgolf.train.trainer import Trainer

PRESET = load_config("pr-1855").train
MODEL = ModelConfig().updated(
    {
        "vocab_size": 260, "num_layers": 4, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "skip_gates": True,
        "attention.gate": True, "loop.repeats": 2, "loop.first": 1, "loop.last": 1, "lanes_from": 3, "smear.gate": "v2",
    }
)  # fmt: skip
COEFFICIENTS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def slow_direction(u: np.ndarray) -> np.ndarray:
    """Update of one matrix in float64: rows divided by their norms, then five polynomials of the singular values."""
    rows = np.stack([row / max(math.sqrt(sum(x * x for x in row)), 1e-7) for row in u])
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    values = values / (math.sqrt(float((rows**2).sum())) + 1e-7)
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20)])
def test_polar_express_with_row_norm_is_the_definition(shape: tuple[int, int]) -> None:
    u = np.random.default_rng(0).normal(size=shape) * np.linspace(0.01, 3, shape[0])[:, None]
    x = orthogonalize(torch.from_numpy(u)[None].float(), 5, True, True)[0].numpy()
    np.testing.assert_allclose(x, slow_direction(u), atol=1e-3)
    wide = shape[0] != shape[1]  # a square random matrix has tiny singular values, which stay small
    values = np.linalg.svd(x, compute_uv=False)
    assert values.max() < 1.15
    assert not wide or values.min() > 0.85


def test_muon_keeps_momentum_in_bf16_and_follows_its_formula() -> None:
    rng = np.random.default_rng(1)
    shapes = {"wide": (6, 12), "tall": (12, 6), "other": (12, 6)}
    weights = {name: torch.from_numpy(rng.normal(size=shape)).float() for name, shape in shapes.items()}
    expected = {name: w.double().numpy() for name, w in weights.items()}
    buffers = {name: np.zeros(shape) for name, shape in shapes.items()}
    muon = Muon(weights, ALONE, MuonConfig(polynomial="polar_express", row_norm=True, dtype="bf16", weight_decay=0.095))
    assert all(not buffer.any() and buffer.dtype == torch.bfloat16 for buffer in muon.state().values())
    for step in range(4):
        lr, m = 0.026 * (1 - step / 10), 0.92 + 0.01 * step
        for name, w in weights.items():
            g = rng.normal(size=shapes[name])
            w.grad = torch.from_numpy(g).float()
            buffers[name] = m * buffers[name] + g
            k = math.sqrt(max(1, shapes[name][0] / shapes[name][1]))
            direction = slow_direction(g + m * buffers[name])
            expected[name] = expected[name] * (1 - lr * 0.095) - lr * k * direction
        muon.step(lr, m)
    for name, w in weights.items():
        # Relative to the distance moved: bf16 gradients and momentum are rounded to three digits.
        np.testing.assert_allclose(w.numpy(), expected[name], atol=0.01 * 0.026 * 4 * 2)


def test_schedules_of_the_preset() -> None:
    for f in np.linspace(0, 1, 41):
        s = 1.0 if f < 0.15 else max((1 - f) / 0.85, 0.1)
        assert lr_multiplier(float(f), PRESET.warmdown, PRESET.min_lr) == pytest.approx(s)
    assert [muon_momentum(f, PRESET.muon) for f in (0.0, 0.12, 0.24, 1.0)] == pytest.approx([0.92, 0.945, 0.97, 0.97])


def make(changes: dict[str, object] | None = None) -> Trainer:
    """A trainer of the tiny looped model, with the dotted settings of `changes` of section `train`."""
    model = GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(0))
    config = TrainConfig().updated(SIZES | {"loop_start": 0.35} | (changes or {}))
    return Trainer(model, config, BatchShape(4, 4, 4), ALONE)


def test_tables_and_scalars_decay_by_their_own_rates() -> None:
    trainer = make({"adam.weight_decay": 0.02, "adam.table_weight_decay": 0.085, "embed_lr": 0.03, "scalar_lr": 0.02})
    trainer.step(*batch(0), StepSettings(1.0, 0.9, looped=False))
    model = trainer.model
    assert model.skip_weights is not None
    # Row 2 of the skip weights is not read before the loop is on: no gradient, so decay alone moves it.
    torch.testing.assert_close(model.skip_weights[2], torch.full((16,), 1 - 0.02 * 0.02))
    groups = trainer.optimizer.adam.param_groups
    assert [group["weight_decay"] for group in groups] == [0.085, 0.02]
    assert [group["weight_decay"] for group in make({"adam.weight_decay": 0.02}).optimizer.adam.param_groups] == [
        0.02,
        0.02,
    ]


def test_rows_that_only_the_loop_reads_decay_until_it_starts() -> None:
    trainer, scales = make({"adam.weight_decay": 0.02, "scalar_lr": 0.02}), (1.0, 0.9, 0.5, 0.25)
    for seed, scale in enumerate(scales):
        trainer.step(*batch(seed), StepSettings(scale, 0.9, looped=False))
    weights, gates = trainer.model.skip_weights, trainer.model.skip_gates
    assert weights is not None and gates is not None
    left = math.prod(1 - 0.02 * 0.02 * scale for scale in scales)
    torch.testing.assert_close(weights[2], torch.full((16,), left))
    assert not gates[2].any() and gates[0].any()
    # The preset, with the 1,090 steps that it makes before the loop starts in 300 s.
    rate = PRESET.scalar_lr * PRESET.adam.weight_decay
    fractions = np.linspace(0, PRESET.loop_start, 1090, endpoint=False)
    kept = math.prod(1 - rate * lr_multiplier(float(f), PRESET.warmdown, PRESET.min_lr) for f in fractions)
    assert kept == pytest.approx(0.67, abs=0.01)


def test_small_updates_of_bf16_tables_vanish_but_not_in_the_average() -> None:
    shares: dict[tuple[str, float], float] = {}
    for dtype, scale in itertools.product(("bf16", "fp32"), (1.0, 1e-3)):
        trainer = make({"table_dtype": dtype, "embed_lr": 0.03, "average.ema_decay": 0.9})
        for seed in range(3):
            trainer.step(*batch(seed), StepSettings(1.0, 0.9))
        before = trainer.model.embedding.detach().clone()
        ema = trainer.averages.ema
        assert ema is not None and ema.shadow["embedding"].dtype == torch.float32
        averaged = ema.shadow["embedding"].clone()
        trainer.step(*batch(3), StepSettings(scale, 0.9))
        shares[dtype, scale] = float((trainer.model.embedding != before).float().mean())
        assert (ema.shadow["embedding"] != averaged).float().mean() > 0.99
    assert shares["bf16", 1.0] > 0.95
    assert shares["bf16", 1e-3] < 0.3
    assert shares["fp32", 1e-3] > 0.99


def test_both_kinds_of_step_are_warmed_up_and_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make({"muon.dtype": "bf16", "average.ema_decay": 0.9, "average.ema_candidates": (0.5,)})
    before, kinds = state_digest(trainer.tensors()), []
    loss = trainer._loss
    monkeypatch.setattr(
        trainer, "_loss", lambda x, y, fake, looped: (kinds.append(looped), loss(x, y, fake, looped))[1]
    )
    trainer.warm_up()
    assert kinds == [False, True]
    assert state_digest(trainer.tensors()) == before
    assert all(not buffer.any() for buffer in trainer.optimizer.muon.buffers.values())


def test_the_step_uses_the_loop_it_is_told() -> None:
    losses = []
    for looped in (False, True):
        trainer = make()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
        x, y = batch(3)
        expected = float(trainer.model(x, y, None, looped).detach())
        losses.append(float(trainer.step(x, y, StepSettings(1.0, 0.9, looped=looped))[1]))
        assert losses[-1] == pytest.approx(expected, rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3
