"""bf16 tables: which tensors they are, Adam's state, the averages over them, what is shipped, and that they train."""

from __future__ import annotations

import math

import pytest
import torch

from bitgolf.config import ModelConfig, TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.model import GPT
from bitgolf.run.ranks import World
from bitgolf.train.checkpoint import copy_into_, state_digest
from bitgolf.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = ModelConfig(
    vocab_size=260, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, bigram_rows=20, bigram_dim=4,
    smear="v1", ve_layers=(1,), ve_dim=6,
)  # fmt: skip
TABLES = {"embedding", "bigram.table", "value_embedding.table"}


def make(seed: int = 0, **settings: object) -> Trainer:
    base: dict[str, object] = {"seq_len": 8, "batch_tokens": 32, "micro_batch_tokens": 32, "table_dtype": "bf16"}
    config = TrainConfig.model_validate(base | settings)
    model = GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(seed))
    return Trainer(model, config, BatchShape(4, 4, 4), World(0, 1, torch.device("cpu")))


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(260, (4, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def test_tables_and_their_adam_moments_are_bf16_and_nothing_else_is() -> None:
    trainer = make(ema_decay=0.9, swa_weight=0.5, swa_start=1.0)
    trainer.step(*batch(0), 0.5, 0.9)
    for name, tensor in trainer.tensors().items():
        kind, _, rest = name.partition(".")
        table = rest in TABLES or rest.removesuffix(".exp_avg").removesuffix(".exp_avg_sq") in TABLES
        if kind in ("model", "adam") and table and not name.endswith(".step"):
            assert tensor.dtype == torch.bfloat16, name
        else:
            assert tensor.dtype in (torch.float32, torch.float64), name


def test_fp32_is_the_default() -> None:
    assert {tensor.dtype for tensor in make(table_dtype="fp32").tensors().values()} == {torch.float32}


def test_the_first_step_is_adamw_rounded_to_bf16() -> None:
    """Against float64: the moments start at zero, so the step is lr * g / (|g| + eps), and decay is decoupled."""
    trainer = make(embed_lr=0.1, adam_weight_decay=0.25, grad_clip=0.0)
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
        now = trainer.optimizer.parameters[name].detach().double()
        # Unused rows have no gradient, and those of the least magnitude may round to either side.
        sure = (gradient.abs() > 1e-4) | (gradient == 0)
        assert sure.float().mean() > 0.9
        torch.testing.assert_close(now[sure], expected[sure], atol=2e-3, rtol=2**-7)
        measured = norms[trainer.optimizer.names.index(name)]
        assert float(measured) == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_the_averages_keep_what_bf16_would_lose() -> None:
    trainer = make(ema_decay=0.99, swa_weight=0.5, swa_start=1.0, swa_spacing=0.01)
    table = trainer.optimizer.parameters["embedding"]
    ema, total, count = table.detach().double(), torch.zeros_like(table, dtype=torch.float64), 0
    for number in range(6):
        trainer.step(*batch(number), 0.2, 0.9, fraction=number / 6)
        ema = 0.99 * ema + 0.01 * table.detach().double()
        total, count = total + table.detach().double(), count + 1
    assert trainer.averages.ema is not None
    assert trainer.averages.swa is not None
    torch.testing.assert_close(trainer.averages.ema.shadow["embedding"].double(), ema, atol=1e-7, rtol=1e-5)
    mean = trainer.averages.swa.mean()
    assert mean is not None
    torch.testing.assert_close(mean["embedding"].double(), total / count, atol=1e-7, rtol=1e-5)
    assert not torch.equal(ema.float(), ema.bfloat16().float())


def test_what_is_shipped_is_fp32_and_is_what_the_model_then_holds() -> None:
    trainer = make(ema_decay=0.9)
    for number in range(3):
        trainer.step(*batch(number), 1.0, 0.9)
    weights, _ = trainer.averages.shipped()
    expected = {name: tensor.clone() for name, tensor in weights.items()}
    trainer.install_(weights)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, expected[name])
    assert math.isfinite(float(trainer.model(*batch(9)).detach()))


def test_the_warm_up_and_a_restart_leave_every_bit_as_it_was() -> None:
    trainer, untouched = make(ema_decay=0.9), make(ema_decay=0.9)
    trainer.warm_up()
    assert state_digest(trainer.tensors()) == state_digest(untouched.tensors())
    trainer.step(*batch(0), 1.0, 0.9)
    saved = {name: tensor.detach().clone() for name, tensor in trainer.tensors().items()}
    resumed = make(seed=5, ema_decay=0.9)
    copy_into_(resumed.tensors(), saved)
    for other in (trainer, resumed):
        other.step(*batch(1), 1.0, 0.9)
    assert state_digest(resumed.tensors()) == state_digest(trainer.tensors())


def test_bf16_tables_train_as_far_as_fp32_ones() -> None:
    losses = {}
    for dtype in ("fp32", "bf16"):
        trainer = make(table_dtype=dtype)
        losses[dtype] = [float(trainer.step(*batch(0), 1.0, 0.9)[1]) for _ in range(25)]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][-1] < 0.5 * losses["bf16"][0]
    assert losses["bf16"][-1] == pytest.approx(losses["fp32"][-1], rel=0.2)
