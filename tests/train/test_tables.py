"""Tables in bf16: what is halved, what is not, and that the rounded training is AdamW."""

import pytest
import torch
from tiny_trainer import MODEL, batch, make_steps, make_trainer

from bitgolf.model import GPT
from bitgolf.train.schedule import StepSettings

TABLES = {"embedding", "bigram.table", "value_embedding.table"}
BF16 = {"table_dtype": "bf16"}


def test_tables_and_their_adam_moments_are_bf16_and_nothing_else_is() -> None:
    trainer = make_trainer(BF16 | {"average.ema_decay": 0.9, "average.swa_weight": 0.5, "average.swa_start": 1.0})
    trainer.step(*batch(0), StepSettings(0.5, 0.9))
    for name, tensor in trainer.tensors().items():
        kind, _, rest = name.partition(".")
        table = rest in TABLES or rest.removesuffix(".exp_avg").removesuffix(".exp_avg_sq") in TABLES
        if kind in ("model", "adam") and table and not name.endswith(".step"):
            assert tensor.dtype == torch.bfloat16, name
        else:
            assert tensor.dtype in (torch.float32, torch.float64), name


def test_the_first_step_is_adamw_rounded_to_bf16() -> None:
    """Against float64: the moments start at zero, so the step is lr * g / (|g| + eps), and decay is decoupled."""
    trainer = make_trainer(BF16 | {"embed_lr": 0.1, "adam.weight_decay": 0.25})
    reference = GPT(MODEL, 8)
    reference.load_state_dict(trainer.model.state_dict())  # the same rounded tables, in fp32
    reference(*batch(1)).backward()
    before = {name: trainer.optimizer.parameters[name].detach().double() for name in TABLES}
    norms = trainer.step(*batch(1), StepSettings(0.5, 0.9))[2:-1]
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


def test_shipped_weights_are_fp32_and_are_put_into_the_model() -> None:
    trainer = make_trainer(BF16 | {"average.ema_decay": 0.9})
    make_steps(trainer, 0, 3)
    weights = {name: tensor.clone() for name, tensor in trainer.averages.shipped()[0].items()}
    trainer.install_(weights)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, weights[name])
    assert torch.isfinite(trainer.model(*batch(9)))
