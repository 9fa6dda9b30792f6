"""Attention windows: what a token may depend on, the caches, the choice of a kernel, and the settings."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from slow_gpt import hidden_in_steps, make, slow_logits
from torch import Tensor

from bitgolf.config import ModelConfig
from bitgolf.errors import ConfigError
from bitgolf.model.backends import AttentionCase, available_backends, choose_backend, reproducible_backend
from bitgolf.model.cache import FixedCache, GenerationCache
from bitgolf.model.document_borders import BOS, DocumentBackend, document_backend
from bitgolf.model.flops import flops_per_token

CPU = torch.device("cpu")
BACKENDS = [
    name for name, reason in available_backends(AttentionCase(CPU, torch.float32, window=4)).items() if not reason
] + ["flex"]
DOCUMENTS = {"attention.within_documents": True}
OFFSET = {"attention.key_offset": True, "rope.dims": 2}
LOOP = {"num_layers": 4, "loop.repeats": 2, "loop.first": 1, "loop.last": 2, "attention.full_layers": (2,)}


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Tokens without a BOS but at a few places of the first row."""
    drawn = np.random.default_rng(seed).integers(2, 300, shape)
    drawn[0, [0, 6, 7]] = BOS
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("documents", [{}, DOCUMENTS], ids=["rows", "documents"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_every_backend_computes_the_slow_definition(backend: str, documents: dict) -> None:
    model = make({"attention.window": 4, "attention.full_layers": (0,), "num_layers": 4} | documents)
    model.set_attention_backend(backend)
    row = tokens(1, 13)
    with torch.no_grad():
        logits = model(row)[0].numpy()
    parts = [(0, 6), (6, 7), (7, 13)] if documents else [(0, 13)]
    expected = np.concatenate([slow_logits(model, row[0, start:stop].numpy()) for start, stop in parts])
    np.testing.assert_allclose(logits, expected, rtol=3e-4, atol=3e-4)


def test_flex_attention_skips_blocks_out_of_the_window() -> None:
    blocks = document_backend("flex").layout(torch.full((1, 640), 5), window=100).to_dense()[0, 0]  # (5, 5)
    assert blocks.tolist() == [[int(0 <= row - column <= 1) for column in range(5)] for row in range(5)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_window_of_the_whole_row_changes_no_bit(backend: str) -> None:
    row = tokens(2, 20)
    results = []
    for window in (0, 20, 21, 1 << 24):
        model = make(DOCUMENTS | {"attention.window": window})
        model.set_attention_backend(backend)
        with torch.set_grad_enabled(backend != "flex"):  # on a CPU it has no backward pass
            loss = model(row[:, :-1], row[:, 1:])
        gradients = torch.autograd.grad(loss, list(model.parameters())) if loss.requires_grad else ()
        results.append([loss.detach(), *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    rows = make({"attention.window": 20})(row), make()(row)
    torch.testing.assert_close(*rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loop", [{}, LOOP | {"attention.full_layers": ()}], ids=["plain", "loop"])
def test_a_token_further_back_than_all_windows_reach_has_no_effect(loop: dict) -> None:
    """L passes of W tokens reach L (W - 1) tokens back, and every token so far back does have an effect."""
    window = 3
    model = make({"attention.window": window, "num_layers": 3} | loop)
    reach = model.num_positions * (window - 1)
    row = tokens(1, reach + 5, seed=2)
    x = model.embed(row, row).detach().requires_grad_()
    model.embed = lambda tokens, borders, fake=None: x  # type: ignore[method-assign]
    (gradient,) = torch.autograd.grad(model.hidden(row)[0, -1].sum(), x)
    has_effect = gradient[0].abs().amax(-1) > 0
    assert has_effect.tolist() == [False] * 4 + [True] * (reach + 1)


@pytest.mark.parametrize("steps", [(5, 1, 1, 1, 1, 1, 4), (1,) * 14, (14,), (3, 4, 7)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [LOOP, LOOP | OFFSET, LOOP | DOCUMENTS | {"attention.document_tokens": 5}, LOOP | OFFSET | DOCUMENTS],
    ids=["rows", "offset", "pieces", "offset in documents"],
)
def test_cached_generation_is_the_full_pass(changes: dict, steps: tuple[int, ...]) -> None:
    model, rows = make(changes | {"attention.window": 3}), tokens(2, 14)
    torch.testing.assert_close(hidden_in_steps(model, rows, steps), model.hidden(rows), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        DOCUMENTS,
        DOCUMENTS | {"attention.document_tokens": 5},
        DOCUMENTS | {"attention.document_tokens": 4},
        OFFSET,
        OFFSET | DOCUMENTS,
        OFFSET | DOCUMENTS | {"attention.document_tokens": 4},
    ],
    ids=["rows", "documents", "pieces of 5", "pieces of 4", "offset", "offset in documents", "offset in pieces"],
)
@pytest.mark.parametrize("window", [3, 5, 40])
@pytest.mark.parametrize("rings", [True, False])
def test_a_cache_of_fixed_size_is_the_full_pass(changes: dict, window: int, rings: bool) -> None:
    """Rings of the window, also those that are full at the beginning, and passes that reach few positions."""
    model, rows = make(LOOP | changes | {"attention.window": window}), tokens(2, 14)
    cache: FixedCache | None = None
    with torch.no_grad():
        expected = model.hidden(rows)
        for first in (2, 8, 5):
            beginning = GenerationCache(model.num_positions)
            model.hidden(rows[:, :first], beginning)
            if cache is None:
                cache = FixedCache(beginning, 16, model.config, rings)
            cache.load(beginning)
            for position in range(first, 14):
                cache.reach = next(reach for reach in (4, 8, 16) if reach > position)
                token = rows[:, position : position + 1]
                output = model.hidden(token, cache)[:, 0]
                torch.testing.assert_close(output, expected[:, position], atol=1e-4, rtol=1e-4)
                cache.advance(token)
    sizes = {layer.size for layer in cache.fixed}
    assert sizes == ({16, window} if rings and window < 16 else {16})


def _ignores_the_window(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, window: int) -> Tensor:
    return document_backend("math").attend(q, k, v, _layout(q, 0))


def _sees_one_token_more(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, window: int) -> Tensor:
    return document_backend("math").attend(q, k, v, _layout(q, window + 1))


def _sees_one_token_less(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, window: int) -> Tensor:
    return document_backend("math").attend(q, k, v, _layout(q, max(1, window - 1)))


def _skips_a_tile(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, window: int) -> Tensor:
    return document_backend("math").attend(q, k, v, _layout(q, window - 64 if window > 64 else window))


def _layout(q: Tensor, window: int) -> Tensor:
    """The right layout of the trial of `backends`, with another window."""
    rows = torch.full(q.shape[:2], BOS + 1)
    for row, position in ((0, 0), (0, 7), (0, 130), (1, 64), (1, 65)):
        rows[row, position] = BOS
    return document_backend("math").layout(rows, window=window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrong", [_ignores_the_window, _sees_one_token_more, _sees_one_token_less, _skips_a_tile])
def test_a_kernel_with_another_window_is_rejected(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    real = document_backend

    def tampered(name: str) -> DocumentBackend:
        return DocumentBackend(real("math").layout, wrong) if name == "flash" else real(name)

    assert available_backends(AttentionCase(CPU, dtype, 16, window=256))["flash"] == ""
    monkeypatch.setattr("bitgolf.model.backends.document_backend", tampered)
    reasons = available_backends(AttentionCase(CPU, dtype, 16, window=256))
    assert "its result differs from attention within documents" in reasons["flash"] and reasons["math"] == ""


def test_backends_without_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cudnn' does not support model.attention.window; allowed: auto, fa3, fa4"):
        choose_backend("cudnn", AttentionCase(CPU, torch.float32, window=8))
    with pytest.raises(ConfigError, match=r"'flex' does not work on cpu with model.attention.window"):
        choose_backend("flex", AttentionCase(CPU, torch.float32, window=8))
    assert choose_backend("auto", AttentionCase(CPU, torch.float32, window=8)) == "flash"
    assert reproducible_backend(ModelConfig().updated({"attention.window": 8}).attention.is_masked) == "math"


@pytest.mark.filterwarnings("ignore")  # of torch, while it traces
def test_a_compiled_model_is_one_graph_with_both_masks() -> None:
    model = make({"num_layers": 2, "attention.window": 3, "attention.full_layers": (1,)} | DOCUMENTS)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        rows = tokens(2, 12, seed=seed)
        ours, theirs = compiled(rows[:, :-1], rows[:, 1:]), model(rows[:, :-1], rows[:, 1:])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_copy_and_a_model_of_earlier_settings_have_their_own_windows() -> None:
    model, row = make({"attention.window": 3}), tokens(1, 12)
    assert torch.equal(copy.deepcopy(model)(row), model(row))
    saved = ModelConfig().model_dump(mode="json")
    del saved["attention"]["window"], saved["attention"]["full_layers"]  # an artifact of an earlier version
    assert ModelConfig.model_validate(saved) == ModelConfig()


def test_operations_count_the_pairs_within_the_window() -> None:
    config = ModelConfig().updated({"num_layers": 4, "loop.repeats": 1, "loop.first": 1, "loop.last": 2})
    windows = {"attention.window": 10, "attention.full_layers": (1,)}
    T, D = 64, config.model_dim
    pairs = [sum(min(t, 10) - 0.5 for t in range(1, T + 1)), sum(t - 0.5 for t in range(1, T + 1))]  # the own one half
    expected = 4 * (pairs[1] - pairs[0]) * 12 * D / T  # the layers 0, 2, 2 and 3 have windows
    saved = flops_per_token(config, T) - flops_per_token(config.updated(windows), T)
    assert saved == pytest.approx(expected, rel=0.02)
    assert flops_per_token(config.updated({"attention.window": 64}), T) == flops_per_token(config, T)
