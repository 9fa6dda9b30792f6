"""The network against a slow definition in float64 numpy, its counts, its causality and its cache."""

import math

import numpy as np
import pytest
import torch

from bitgolf.config import ModelConfig, load_config
from bitgolf.errors import ConfigError
from bitgolf.model import GPT, count_parameters
from bitgolf.model.backends import available_backends, choose_backend
from bitgolf.model.gpt import GenerationCache
from bitgolf.model.rotary import rotary_base

TINY = {"vocab_size": 300, "num_layers": 3, "model_dim": 24, "num_heads": 4, "num_kv_heads": 2, "mlp_multiple": 2.5}


def make(seed: int = 0, context: int = 16, **changes: object) -> GPT:
    """A tiny model whose every parameter is drawn at random, so that no term hides behind a zero or a one."""
    model = GPT(ModelConfig(**(TINY | changes)), context)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(
                0, 0.5 if parameter.ndim == 1 or "skip" in name or "mix" in name else 0.2, generator=generator
            )
    model.set_attention_backend("math")
    return model


def slow_logits(model: GPT, tokens: np.ndarray) -> np.ndarray:
    """Logits (T, V) of one sequence by explicit loops in float64, written from techniques.md section 2."""
    c = model.config
    p = {name: t.detach().double().numpy() for name, t in model.named_parameters()}
    eps = np.finfo(np.float32).eps

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)

    base = rotary_base(c, model.context_length)
    r, width = c.rope_dims or c.head_dim, c.head_dim

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        y = x.copy()
        for i in range(r // 2):
            angle = position * base ** (-2 * i / r)
            a, b = x[i], x[i + r // 2]
            y[i] = a * math.cos(angle) + b * math.sin(angle)
            y[i + r // 2] = b * math.cos(angle) - a * math.sin(angle)
        return y

    x, T, kept = p["embedding"][tokens], len(tokens), []
    if c.bigram_rows:
        for t in range(T):
            row = c.bigram_rows - 1
            if t:
                row = ((36313 * int(tokens[t])) ^ (27191 * int(tokens[t - 1]))) % (c.bigram_rows - 1)
            x[t] += p["bigram.scale"] * (p["bigram.project.weight"] @ p["bigram.table"][row])
    if c.smear == "v2":
        raw = x.copy()
        for t in range(1, T):
            if not (c.smear_document_mask and tokens[t] == 1):
                gate = 1 / (1 + np.exp(-(raw[t, : p["smear.gate"].size] @ p["smear.gate"])))
                x[t] = raw[t] + p["smear.strength"] * gate * raw[t - 1]
    x = norm(x)
    if c.smear == "v1":
        gate, clean = 1 / (1 + np.exp(-p["smear.gate"])), x.copy()
        for t in range(T):
            before = clean[t - 1] if t and not (c.smear_document_mask and tokens[t] == 1) else 0.0
            x[t] = (1 - gate) * clean[t] + gate * before
    x0, first_values = x, None
    for layer in range(c.num_layers):
        q = f"blocks.{layer}."
        if layer >= c.num_layers // 2 and kept and c.skips:
            i = layer - c.num_layers // 2
            skip = p["skip_weights"][i] * kept.pop()
            gate = 1 / (1 + np.exp(-p["skip_gates"][i])) if c.skip_gates else None
            x = x + skip if gate is None else gate * x + (1 - gate) * skip
        x = p[q + "resid_mix"][0] * x + p[q + "resid_mix"][1] * x0
        scale = 1 / math.sqrt(layer + 1) if c.ln_scale else 1.0
        n = norm(x) * scale
        values = n @ p[q + "attention.value.weight"].T
        if layer in c.ve_layers:
            own = p["value_embedding.layer_scales"][c.ve_layers.index(layer)] * p["value_embedding.scale"]
            values = values + own * (p["value_embedding.table"][tokens] @ p["value_embedding.project.weight"].T)
        if c.value_residual and layer:
            mix = p[q + "attention.value_mix"]
            values = mix[0] * first_values + mix[1] * values
        if layer == 0:
            first_values = values
        out = np.zeros((T, c.num_heads, width))
        for h in range(c.num_heads):
            g = h // (c.num_heads // c.num_kv_heads)
            wq = p[q + "attention.query.weight"][h * width : (h + 1) * width]
            wk = p[q + "attention.key.weight"][g * width : (g + 1) * width]
            vs = values[:, g * width : (g + 1) * width]
            qs = [turn(norm(wq @ n[t]), t) * p[q + "attention.q_gain"][h] for t in range(T)]
            ks = [turn(norm(wk @ n[t]), t) for t in range(T)]
            for t in range(T):
                scores = np.array([qs[t] @ ks[s] / math.sqrt(width) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[t, h] = sum(w * vs[s] for s, w in enumerate(weights))
                if layer >= c.num_layers - c.xsa_layers:
                    unit = vs[t] / np.linalg.norm(vs[t])
                    out[t, h] -= (out[t, h] @ unit) * unit
        x = x + p[q + "attn_scale"] * (out.reshape(T, -1) @ p[q + "attention.out.weight"].T)
        u = (norm(x) * scale) @ p[q + "mlp.up.weight"].T
        slope = c.leaky_slope if c.activation == "leaky_relu2" else 0.0
        x = x + p[q + "mlp_scale"] * (np.where(u > 0, u, slope * u) ** 2 @ p[q + "mlp.down.weight"].T)
        if layer < c.num_layers // 2:
            kept.append(x)
    return c.logit_softcap * np.tanh(norm(x) @ p["embedding"].T / c.logit_softcap)


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
        ({"bigram_rows": 1}, "bigram_rows 1"),
        ({"xsa_layers": 12}, "xsa_layers 12 is more than the 9"),
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
