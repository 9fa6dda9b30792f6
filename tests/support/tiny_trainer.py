"""A trainer of a tiny model on batches of 4 rows of 8 random tokens; shared by the tests of training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitgolf.config import ModelConfig, TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.model import GPT
from bitgolf.run.ranks import World
from bitgolf.train.schedule import StepSettings
from bitgolf.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
MODEL = ModelConfig().updated(
    {
        "vocab_size": 260, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1,
        "bigram.rows": 20, "bigram.dim": 4, "smear.gate": "v1",
        "value_embedding.layers": (1,), "value_embedding.dim": 6,
    }
)  # fmt: skip
SIZES = {"seq_len": 8, "batch_tokens": 32, "micro_batch_tokens": 32, "warmup_steps": 1}


def make_trainer(changes: Mapping[str, object] | None = None, seed: int = 0, micro_rows: int = 4) -> Trainer:
    """The trainer with the dotted settings of `changes` of section `train`."""
    config = TrainConfig().updated(SIZES | dict(changes or {}))
    model = GPT(MODEL, 8).initialize_(torch.Generator().manual_seed(seed))
    return Trainer(model, config, BatchShape(4, 4, micro_rows), ALONE)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (4, 8) int64 each."""
    tokens = torch.randint(260, (4, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def make_steps(trainer: Trainer, first: int, last: int) -> list[Tensor]:
    """Steps on the batches first .. last - 1; the metrics of each."""
    return [trainer.step(*batch(seed), StepSettings(1.0, 0.9)) for seed in range(first, last)]
