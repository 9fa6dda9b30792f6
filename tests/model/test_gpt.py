"""The network against a slow definition in float64 numpy, its counts, its causality and its cache."""

import numpy as np
import pytest
import torch
from slow_gpt import make, slow_logits

from bitgolf.config import ModelConfig, load_config
from bitgolf.errors import ConfigError
from bitgolf.model import GPT, count_parameters
from bitgolf.model.backends import available_backends, choose_backend
from bitgolf.model.cache import GenerationCache


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 4, "activation": "leaky_relu2", "leaky_slope": 0.5},
        {"rope_dims": 4, "rope_train_length": 8, "num_kv_heads": 4},
        {"skips": False, "num_kv_heads": 1, "logit_softcap": 5.0},
        {"num_layers": 1},
        {"bigram_rows": 40, "bigram_dim": 6, "smear": "v1"},
        {"bigram_rows": 7, "bigram_dim": 6, "smear": "v2", "smear_document_mask": True},
        {"smear": "v1", "smear_document_mask": True, "skip_gates": True, "num_layers": 5},
        {"ve_layers": (1, 2), "ve_dim": 5, "value_residual": True, "ln_scale": True},
        {"xsa_layers": 2, "value_residual": True, "ve_layers": (0,), "ve_dim": 5},
        {"xsa_layers": 3, "num_kv_heads": 4, "rope_dims": 2, "ln_scale": True},
    ],
)
def test_forward_equals_the_slow_definition(changes: dict[str, object]) -> None:
    model = make(**changes)
    tokens = np.random.default_rng(1).integers(0, 300, 11)
    tokens[[0, 6]] = 1
    fast = model(torch.from_numpy(tokens)[None])[0].detach().numpy()
    np.testing.assert_allclose(fast, slow_logits(model, tokens), rtol=2e-4, atol=2e-4)


def test_loss_is_the_mean_negative_log_softmax() -> None:
    model = make()
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(3))
    log_probs = torch.log_softmax(model(tokens[:, :-1]).double(), -1)
    expected = -log_probs.gather(-1, tokens[:, 1:, None]).mean()
    assert model(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_baseline_has_the_published_number_of_parameters() -> None:
    assert count_parameters(load_config("baseline").model) == 17_059_912


SEED_585 = {
    "num_layers": 11,
    "num_kv_heads": 8,
    "mlp_multiple": 3.5,
    "rope_dims": 16,
    "ln_scale": True,
    "xsa_layers": 11,
    "bigram_rows": 8192,
    "smear": "v1",
    "ve_layers": (9, 10),
    "init": "orthogonal",
}
SEED_693 = SEED_585 | {
    "num_kv_heads": 4,
    "mlp_multiple": 3.0,
    "bigram_rows": 3072,
    "xsa_layers": 4,
    "value_residual": True,
}
SEED_348 = {"num_layers": 10, "mlp_multiple": 3.0, "bigram_rows": 12_288, "smear": "v1"}


@pytest.mark.parametrize(
    ("sizes", "published"), [(SEED_585, 33_580_124), (SEED_693, 27_124_848), (SEED_348, 25_779_281)]
)
def test_the_seed_systems_have_the_published_number_of_parameters(sizes: dict[str, object], published: int) -> None:
    assert count_parameters(ModelConfig(**sizes)) == published


def test_projections_of_bigram_and_value_embedding_start_as_in_the_seeds() -> None:
    model = GPT(ModelConfig(**SEED_585), 2048).initialize_(torch.Generator().manual_seed(0))
    for weight in (model.bigram.project.weight, model.value_embedding.project.weight):
        values = torch.linalg.svdvals(weight)
        assert values.min().item() == pytest.approx(0.2132, abs=2e-4)
        assert values.max().item() == pytest.approx(0.2132, abs=2e-4)
    assert model.bigram.table.abs().max() == 0
    assert model.value_embedding.table.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bigram_rows": 1}, "bigram.rows 1"),
        ({"xsa_layers": 12}, "xsa_layers 12 is above num_layers 9"),
        ({"ve_layers": (8, 9)}, "from 0 to 8"),
        ({"ve_layers": (2, 2)}, "different layers"),
        ({"skip_gates": True, "skips": False}, "skip_gates need skips"),
    ],
)
def test_impossible_components_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**changes)


def test_initialization_follows_the_catalogue() -> None:
    config = load_config("baseline").model
    model = GPT(config, 1024).initialize_(torch.Generator().manual_seed(0))
    assert model.embedding.std().item() == pytest.approx(0.005, rel=0.02)
    weights = dict(model.named_parameters())
    assert weights["blocks.0.attention.out.weight"].abs().max() == 0
    assert weights["blocks.8.mlp.down.weight"].abs().max() == 0
    up = weights["blocks.4.mlp.up.weight"]
    assert up.abs().max().item() == pytest.approx(512**-0.5, rel=1e-3)
    assert weights["blocks.4.attention.q_gain"].tolist() == [1.5] * 8
    orthogonal = GPT(ModelConfig(init="orthogonal"), 1024).initialize_(torch.Generator().manual_seed(0))
    query = dict(orthogonal.named_parameters())["blocks.2.attention.query.weight"]
    torch.testing.assert_close(query @ query.T, torch.eye(512), atol=1e-4, rtol=0)
    again = GPT(config, 1024).initialize_(torch.Generator().manual_seed(0))
    assert torch.equal(again.embedding, model.embedding)


def test_later_tokens_never_reach_earlier_logits() -> None:
    model = make()
    model.set_attention_backend("flash")
    tokens = torch.randint(300, (1, 16), generator=torch.Generator().manual_seed(5))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 17) % 300
    assert torch.equal(model(tokens)[:, :9], model(changed)[:, :9])
    assert not torch.equal(model(tokens)[:, 9:], model(changed)[:, 9:])


def test_cached_generation_gives_the_logits_of_the_whole_sequence() -> None:
    model = make(
        num_layers=4,
        bigram_rows=40,
        bigram_dim=6,
        smear="v1",
        value_residual=True,
        ve_layers=(3,),
        ve_dim=5,
        xsa_layers=2,
    )
    tokens = torch.randint(300, (2, 14), generator=torch.Generator().manual_seed(7))
    cache = GenerationCache(len(model.blocks))
    pieces = [model.hidden(tokens[:, :5], cache)]
    pieces += [model.hidden(tokens[:, t : t + 1], cache) for t in range(5, 14)]
    torch.testing.assert_close(model.logits(torch.cat(pieces, 1)), model(tokens), atol=1e-4, rtol=1e-4)


def test_backends_are_tried_and_a_named_one_is_never_replaced() -> None:
    cpu = torch.device("cpu")
    found = available_backends(cpu, torch.float32)
    assert found["math"] == ""
    assert found["cudnn"] == "needs an NVIDIA GPU"
    with pytest.raises(ConfigError, match=r"'cudnn' does not work on cpu.*math"):
        choose_backend("cudnn", cpu, torch.float32, 64, heads=4, kv_heads=2)
    with pytest.raises(ConfigError, match="unknown attention backend 'fast'"):
        choose_backend("fast", cpu, torch.float32, 64, heads=4, kv_heads=2)
    model = make()
    tokens = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(5))
    reference = model(tokens)
    for name in [name for name, reason in found.items() if not reason]:
        model.set_attention_backend(name)
        torch.testing.assert_close(model(tokens), reference, atol=1e-5, rtol=1e-5)
