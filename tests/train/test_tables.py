"""Tables in bf16: what is halved, what is not, and that the rounded training is AdamW."""

from __future__ import annotations

import pytest
import torch
from tiny_trainer import MODEL, batch, make_steps, make_trainer

from bitgolf.model import GPT

pytestmark = pytest.mark.usefixtures("one_thread")
TABLES = {"embedding", "bigram.table", "value_embedding.table"}
BF16 = {"table_dtype": "bf16"}


def test_tables_and_their_adam_moments_are_bf16_and_nothing_else_is() -> None:
    trainer = make_trainer(BF16 | {"average.ema_decay": 0.9, "average.swa_weight": 0.5, "average.swa_start": 1.0})
    trainer.step(*batch(0), 0.5, 0.9)
    for name, tensor in trainer.tensors().items():
        kind, _, rest = name.partition(".")
        table = rest in TABLES or rest.removesuffix(".exp_avg").removesuffix(".exp_avg_sq") in TABLES
        if kind in ("model", "adam") and table and not name.endswith(".step"):
            assert tensor.dtype == torch.bfloat16, name
        else:
            assert tensor.dtype in (torch.float32, torch.float64), name


def test_fp32_is_the_default() -> None:
    assert {tensor.dtype for tensor in make_trainer().tensors().values()} == {torch.float32}


def test_the_first_step_is_adamw_rounded_to_bf16() -> None:
    """Against float64: the moments start at zero, so the step is lr * g / (|g| + eps), and decay is decoupled."""
    trainer = make_trainer(BF16 | {"embed_lr": 0.1, "adam.weight_decay": 0.25})
    reference = GPT(MODEL, 8)
    reference.load_state_dict(trainer.model.state_dict())  # the same rounded tables, in fp32
    reference(*batch(1)).backward()
    before = {name: trainer.optimizer.parameters[name].detach().double() for name in TABLES}
    norms = trainer.step(*batch(1), 0.5, 0.9)[2:-1]
    for name in TABLES:
        gradient = reference.get_parameter(name).grad
        assert gradient is not None
        gradient = gradient.bfloat16().double()
        expected = before[name] * (1 - 0.05 * 0.25) - 0.05 * gradient / (gradient.abs() + 1e-8)
        current = trainer.optimizer.parameters[name].detach().double()
        # Unused rows have no gradient, and gradients near zero may round to either sign.
        clear = (gradient.abs() > 1e-4) | (gradient == 0)
        assert clear.float().mean() > 0.9
        torch.testing.assert_close(current[clear], expected[clear], atol=2e-3, rtol=2**-7)
        norm = norms[trainer.optimizer.names.index(name)]
        assert float(norm) == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_the_averages_keep_what_bf16_would_lose() -> None:
    trainer = make_trainer(
        BF16
        | {"average.ema_decay": 0.99, "average.swa_weight": 0.5, "average.swa_start": 1.0, "average.swa_spacing": 0.01}
    )
    table = trainer.optimizer.parameters["embedding"]
    ema, total = table.detach().double(), torch.zeros_like(table, dtype=torch.float64)
    for number in range(6):
        trainer.step(*batch(number), 0.2, 0.9, fraction=number / 6)
        ema = 0.99 * ema + 0.01 * table.detach().double()
        total = total + table.detach().double()
    averages = trainer.averages
    assert averages.ema is not None and averages.swa is not None
    torch.testing.assert_close(averages.ema.shadow["embedding"].double(), ema, atol=1e-7, rtol=1e-5)
    mean = averages.swa.mean()
    assert mean is not None
    torch.testing.assert_close(mean["embedding"].double(), total / 6, atol=1e-7, rtol=1e-5)
    assert not torch.equal(ema.float(), ema.bfloat16().float())


def test_shipped_weights_are_fp32_and_are_put_into_the_model() -> None:
    trainer = make_trainer(BF16 | {"average.ema_decay": 0.9})
    make_steps(trainer, 0, 3)
    weights = {name: tensor.clone() for name, tensor in trainer.averages.shipped()[0].items()}
    trainer.install_(weights)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, weights[name])
    assert torch.isfinite(trainer.model(*batch(9)))


def test_bf16_tables_train_as_far_as_fp32_ones() -> None:
    losses = {}
    for dtype in ("fp32", "bf16"):
        trainer = make_trainer({"table_dtype": dtype})
        losses[dtype] = [float(trainer.step(*batch(0), 1.0, 0.9)[1]) for _ in range(25)]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][-1] < 0.5 * losses["bf16"][0]
    assert losses["bf16"][-1] == pytest.approx(losses["fp32"][-1], rel=0.2)
