"""The network against a slow definition in float64 numpy, its counts, its causality and its cache."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from slow_gpt import make, slow_logits

from bitgolf.config import ModelConfig, load_config
from bitgolf.errors import ConfigError
from bitgolf.model import GPT, count_parameters
from bitgolf.model.backends import AttentionCase, available_backends, choose_backend
from bitgolf.model.layers import Linear


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 4, "mlp.activation": "leaky_relu2", "mlp.leaky_slope": 0.5},
        {"rope.dims": 4, "rope.train_length": 8, "num_kv_heads": 4},
        {"rope.train_length": 12, "rope.base": 500.0},
        {"skips": False, "num_kv_heads": 1, "logit_softcap": 5.0},
        {"num_layers": 1},
        {"bigram.rows": 40, "bigram.dim": 6, "smear.gate": "v1"},
        {"bigram.rows": 7, "bigram.dim": 6, "smear.gate": "v2", "smear.document_mask": True},
        {"smear.gate": "v1", "smear.document_mask": True, "skip_gates": True, "num_layers": 5},
        {
            "value_embedding.layers": (1, 2),
            "value_embedding.dim": 5,
            "attention.value_residual": True,
            "ln_scale": True,
        },
        {
            "attention.xsa_layers": 2,
            "attention.value_residual": True,
            "value_embedding.layers": (0,),
            "value_embedding.dim": 5,
        },
        {"value_embedding.layers": (0, 2), "value_embedding.gated": True, "attention.xsa_layers": 3, "ln_scale": True},
        {"bigram.rows": 9, "bigram.dim": 10, "bigram.every_layer": True, "num_layers": 5, "smear.gate": "v1"},
        {"attention.xsa_layers": 3, "num_kv_heads": 4, "rope.dims": 2, "ln_scale": True},
        {"attention.window": 1, "attention.value_residual": True},
        {"attention.window": 4, "attention.full_layers": (1,), "num_layers": 4},
        {"attention.key_offset": True, "rope.dims": 2},
        {"attention.key_offset": True, "rope.dims": 2, "attention.window": 4, "attention.full_layers": (0, 2)},
    ],
)
def test_forward_equals_the_slow_definition(changes: dict[str, object]) -> None:
    model = make(changes)
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
    "mlp.multiple": 3.5,
    "rope.dims": 16,
    "ln_scale": True,
    "attention.xsa_layers": 11,
    "bigram.rows": 8192,
    "smear.gate": "v1",
    "value_embedding.layers": (9, 10),
    "init": "orthogonal",
}
SEED_693 = SEED_585 | {
    "num_kv_heads": 4,
    "mlp.multiple": 3.0,
    "bigram.rows": 3072,
    "attention.xsa_layers": 4,
    "attention.value_residual": True,
}
SEED_348 = {"num_layers": 10, "mlp.multiple": 3.0, "bigram.rows": 12_288, "smear.gate": "v1"}


@pytest.mark.parametrize(
    ("sizes", "published"), [(SEED_585, 33_580_124), (SEED_693, 27_124_848), (SEED_348, 25_779_281)]
)
def test_the_seed_systems_have_the_published_number_of_parameters(sizes: dict[str, object], published: int) -> None:
    assert count_parameters(ModelConfig().updated(sizes)) == published


def test_projections_of_bigram_and_value_embedding_start_as_in_the_seeds() -> None:
    sizes = {"model_dim": 64, "num_heads": 1, "num_kv_heads": 1, "bigram.dim": 64, "value_embedding.dim": 64}
    model = GPT(ModelConfig().updated(SEED_585 | sizes), 2048).initialize_(torch.Generator().manual_seed(0))
    for weight in (model.bigram.project.weight, model.value_embedding.project.weight):
        values = torch.linalg.svdvals(weight)
        assert values.tolist() == pytest.approx([0.2132] * 64, abs=2e-4)  # 1 / sqrt(2 * 11 layers)
    assert model.bigram.table.abs().max() == 0
    assert (model.bigram.scale.item(), model.value_embedding.scale.item()) == pytest.approx((0.05, 0.1))
    mixed = GPT(ModelConfig().updated({"attention.value_residual": True, "num_layers": 2, "model_dim": 64}), 8)
    assert mixed.blocks[1].attention.value_mix.tolist() == pytest.approx([0.01, 0.99])  # PR 693
    assert mixed.blocks[0].attention.value_mix is None
    assert model.value_embedding.table.std().item() == pytest.approx(0.01, rel=0.02)


def test_tables_of_gated_values_and_signed_bigrams_start_as_published() -> None:
    sizes = {"value_embedding.layers": (1, 8), "value_embedding.gated": True, "bigram.rows": 99}
    model = GPT(ModelConfig().updated(sizes | {"bigram.every_layer": True}), 16)
    weights = dict(model.initialize_(torch.Generator().manual_seed(0)).named_parameters())
    assert weights["value_embedding.8.table"].shape == (1024, 256)
    assert weights["value_embedding.8.table"].std().item() == pytest.approx(0.01, rel=0.02)
    assert weights["blocks.8.attention.value_gate"].shape == (4, 32)
    assert not weights["blocks.8.attention.value_gate"].any() and not weights["bigram.table"].any()
    assert weights["bigram.layer_scales"].tolist() == pytest.approx([0.05] * 9)
    assert model.blocks[2].attention.value_gate is None
    assert model.bigram.signs.abs().eq(1).all() and abs(model.bigram.signs.mean()) < 0.005
    correlation = model.bigram.signs[:4096].T @ model.bigram.signs[:4096] / 4096  # (128, 128)
    assert (correlation - torch.eye(128)).abs().max() < 0.1


def test_initialization_is_that_of_the_published_systems() -> None:
    config = load_config("baseline").model.updated({"num_layers": 2, "model_dim": 128})
    model = GPT(config, 1024).initialize_(torch.Generator().manual_seed(0))
    assert model.embedding.std().item() == pytest.approx(0.005, rel=0.02)
    weights = dict(model.named_parameters())
    assert weights["blocks.0.attention.out.weight"].abs().max() == 0
    assert weights["blocks.1.mlp.down.weight"].abs().max() == 0
    up = weights["blocks.1.mlp.up.weight"]
    assert up.abs().max().item() == pytest.approx(128**-0.5, rel=1e-3)
    assert weights["blocks.1.attention.q_gain"].tolist() == [1.5] * 8
    again = GPT(config, 1024).initialize_(torch.Generator().manual_seed(0))
    assert torch.equal(again.embedding, model.embedding)


def test_orthogonal_matrices_are_those_of_pytorch_with_any_number_of_threads() -> None:
    changes = {"num_layers": 2, "model_dim": 128, "value_embedding.layers": [1], "attention.xsa_layers": 2}
    config = load_config("seed-693").model.updated(changes)
    draws, before = torch.Generator().manual_seed(3), torch.get_num_threads()
    models = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        models.append(GPT(config, 1024).initialize_(torch.Generator().manual_seed(3)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    torch.empty(config.vocab_size, 128).normal_(0.0, 0.005, generator=draws)
    torch.empty(config.vocab_size, config.value_embedding.dim).normal_(0.0, 0.01, generator=draws)
    weights, others = (dict(model.named_parameters()) for model in models)
    gains = {"bigram": 0.5, "value_embedding": 0.5}  # (2 L)^-0.5
    for name in [name for name, parameter in weights.items() if parameter.dim() == 2 and name.endswith(".weight")]:
        if name.endswith(("out.weight", "down.weight")):
            continue
        expected = torch.empty(weights[name].shape)
        torch.nn.init.orthogonal_(expected, gains.get(name.partition(".")[0], 1.0), generator=draws)
        torch.testing.assert_close(weights[name].detach(), expected, atol=1e-5, rtol=0)
        assert torch.equal(weights[name], others[name])


def test_later_tokens_never_change_earlier_logits() -> None:
    model = make()
    model.set_attention_backend("flash")
    tokens = torch.randint(300, (1, 16), generator=torch.Generator().manual_seed(5))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 17) % 300
    assert torch.equal(model(tokens)[:, :9], model(changed)[:, :9])
    assert not torch.equal(model(tokens)[:, 9:], model(changed)[:, 9:])


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError(" no kernel\nat line 1"), "no kernel"), (ValueError(""), "ValueError('')")],
)
def test_the_reason_against_a_backend_is_the_first_line_of_its_error(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("bitgolf.model.backends._try", fail)
    monkeypatch.setattr("bitgolf.model.backends._try_masked", fail)
    for documents in (False, True):
        case = AttentionCase(torch.device("cpu"), torch.float32, documents=documents)
        assert available_backends(case)["math"] == reason


def test_every_working_backend_gives_the_same_logits_and_a_named_one_is_never_replaced() -> None:
    cpu = torch.device("cpu")
    reasons = available_backends(AttentionCase(cpu, torch.float32))
    assert reasons["math"] == ""
    assert reasons["cudnn"] == "needs an NVIDIA GPU"
    with pytest.raises(ConfigError, match=r"'cudnn' does not work on cpu.*math"):
        choose_backend("cudnn", AttentionCase(cpu, torch.float32))
    with pytest.raises(ConfigError, match="unknown attention backend 'fast'"):
        choose_backend("fast", AttentionCase(cpu, torch.float32))
    model = make()
    tokens = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(5))
    reference = model(tokens)
    for name in [name for name, reason in reasons.items() if not reason]:
        model.set_attention_backend(name)
        torch.testing.assert_close(model(tokens), reference, atol=1e-5, rtol=1e-5)


def test_the_rotary_base_grows_with_the_published_exponent() -> None:
    """PR 585 trains 2,048 tokens on base 10,000 for 1,024 with 16 rotated channels: base 10,000 * 2^(16/14)."""
    config = ModelConfig().updated({"rope.dims": 16, "rope.train_length": 1024})
    frequencies = GPT(config, 2048).frequencies
    assert frequencies.tolist() == pytest.approx([22081.9 ** (-i / 8) for i in range(8)], rel=1e-4)
    assert GPT(config, 1024).frequencies.tolist() == pytest.approx([10_000 ** (-i / 8) for i in range(8)], rel=1e-5)


def test_fake_quantization_reaches_every_linear_layer() -> None:
    """Each layer in turn gets a faker that doubles its weight; the logits are those of a model with that weight."""
    changes = {
        "bigram.rows": 20, "bigram.dim": 6, "value_embedding.layers": (1,), "value_embedding.dim": 5, "num_layers": 2
    }  # fmt: skip
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(3))
    sharpness = torch.tensor(1.0)
    layers = [name for name, module in make(changes).named_modules() if isinstance(module, Linear)]
    assert len(layers) == 2 * 6 + 2

    class Doubler(torch.nn.Module):
        def forward(self, weight: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    for name in layers:
        faked, doubled = make(changes), make(changes)
        faked.get_submodule(name).faker = Doubler()
        with torch.no_grad():
            doubled.get_submodule(name).weight.mul_(2)
        torch.testing.assert_close(faked(tokens, fake=sharpness), doubled(tokens), atol=1e-5, rtol=1e-5, msg=name)
        torch.testing.assert_close(faked(tokens), make(changes)(tokens), atol=0, rtol=0)


def test_every_layer_uses_the_kernels_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the Triton kernels, which need a GPU."""
    kernels = SimpleNamespace(rotate_normed=object(), exclude_and_gate=object())
    loss = SimpleNamespace(softcapped_cross_entropy=object())
    monkeypatch.setitem(sys.modules, "bitgolf.model.attention_triton", kernels)
    monkeypatch.setitem(sys.modules, "bitgolf.model.loss_triton", loss)
    shape = {"vocab_size": 300, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1}
    model = GPT(ModelConfig(model_dim=16, **shape), 8)
    model.use_kernels()
    assert [block.attention.kernels for block in model.blocks] == [(*vars(kernels).values(),)] * 3
    assert model.loss_kernel is loss.softcapped_cross_entropy
    with pytest.raises(ConfigError, match="a power of two, not 12"):
        GPT(ModelConfig(model_dim=24, **shape), 8).use_kernels()


@pytest.mark.parametrize(
    ("generation", "installed", "reason"),
    [(8, True, ""), (9, False, ""), (9, True, ""), (9, True, "TypeError: no key"), (10, False, "")],
)
def test_the_mlp_has_a_kernel_of_its_own_on_hopper_gpus_alone(
    generation: int, installed: bool, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, functions in (("loss_triton", ["softcapped_cross_entropy"]), ("mlp_quack", ["mlp"])):
        module = SimpleNamespace(**{function: function for function in functions}, refusal=lambda device: reason)
        monkeypatch.setitem(sys.modules, f"bitgolf.model.{name}", module)
    attention = SimpleNamespace(rotate_normed=None, exclude_and_gate=None)
    monkeypatch.setitem(sys.modules, "bitgolf.model.attention_triton", attention)
    monkeypatch.setattr("bitgolf.model.gpt.find_spec", lambda name: installed or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    shape = {"vocab_size": 300, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    model = GPT(ModelConfig(model_dim=16, **shape), 8, compute_dtype=torch.bfloat16)
    del model.embedding
    for device in ("cuda", "cpu"):
        model.embedding = SimpleNamespace(device=torch.device(device))
        hopper = (device, generation) == ("cuda", 9)
        caplog.clear()
        works = hopper and installed and not reason
        assert model.use_kernels() == ("triton, quack" if works else "triton")
        assert {block.mlp.kernel for block in model.blocks} == {"mlp" if works else None}
        assert ("quack-kernels" in caplog.text) == (hopper and not works)
        assert (reason in caplog.text) == (hopper or not reason)
