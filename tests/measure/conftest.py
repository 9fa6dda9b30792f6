"""A tiny model with every kind of layer, in which no parameter is zero; not to be changed."""

import pytest
import torch

from bitgolf.config import ModelConfig
from bitgolf.model import GPT

CONFIG = ModelConfig().updated(
    {
        "vocab_size": 260, "num_layers": 3, "model_dim": 16, "num_heads": 4, "num_kv_heads": 2,
        "bigram.rows": 20, "bigram.dim": 4, "smear.gate": "v2", "attention.value_residual": True,
        "attention.xsa_layers": 1, "value_embedding.layers": (1, 2), "value_embedding.dim": 6,
    }
)  # fmt: skip


@pytest.fixture(scope="session")
def model() -> GPT:
    model = GPT(CONFIG, 8).initialize_(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model
