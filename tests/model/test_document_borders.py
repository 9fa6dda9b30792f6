"""Attention within documents: every document is computed as in a row of its own, and nothing else affects it."""

import os
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_gpt import hidden_in_steps, make, packed_attention, row, slow_logits
from torch import Tensor

from bitgolf.errors import ConfigError
from bitgolf.model.backends import AttentionCase, available_backends, choose_backend
from bitgolf.model.document_borders import (
    BOS,
    DOCUMENT_BACKENDS,
    DocumentBackend,
    document_backend,
    document_borders,
    document_ids,
    document_mask,
)
from bitgolf.model.embeddings import bigram_rows
from bitgolf.model.flash4 import keep_kernels

CPU = torch.device("cpu")
EVERYTHING = {
    "attention.within_documents": True,
    "num_layers": 4,
    "bigram.rows": 40,
    "bigram.dim": 6,
    "smear.gate": "v1",
    "smear.document_mask": True,
    "attention.value_residual": True,
    "value_embedding.layers": (1, 3),
    "value_embedding.dim": 5,
    "attention.xsa_layers": 2,
    "rope.dims": 4,
    "ln_scale": True,
}


def pieces(tokens: np.ndarray) -> list[tuple[int, int]]:
    """Documents [start, stop) of a row, by a loop."""
    starts = [0] + [i for i in range(1, len(tokens)) if tokens[i] == BOS]
    return list(zip(starts, [*starts[1:], len(tokens)], strict=True))


def borders_of(rows: np.ndarray) -> list[int]:
    """Document starts of rows laid end to end, by a loop."""
    return [r * rows.shape[1] + start for r in range(len(rows)) for start, _ in pieces(rows[r])]


@pytest.mark.parametrize("starts", [(), (0,), (0, 5), (4, 5, 9), (10,)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING,
        EVERYTHING | {"smear.gate": "v2", "skip_gates": True, "rope.train_length": 8},
        {"attention.within_documents": True, "num_kv_heads": 1, "bigram.rows": 7, "bigram.dim": 6},
        EVERYTHING | {"bigram.every_layer": True, "value_embedding.gated": True},
        EVERYTHING | {"attention.key_offset": True, "rope.dims": 2},
    ],
    ids=["v1", "v2", "plain", "tables in many layers", "key offset"],
)
def test_every_document_is_computed_as_in_a_row_of_its_own(changes: dict, starts: tuple[int, ...]) -> None:
    model, tokens = make(changes), row(11, starts)
    logits = model(torch.from_numpy(tokens)[None])[0].detach().numpy()
    expected = np.concatenate([slow_logits(model, tokens[start:stop]) for start, stop in pieces(tokens)])
    np.testing.assert_allclose(logits, expected, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, EVERYTHING | {"smear.gate": "v2", "bigram.every_layer": True, "value_embedding.gated": True}],
    ids=["v1", "v2, tables in many layers"],
)
def test_a_marked_token_begins_a_document_and_keeps_its_embedding(changes: dict) -> None:
    model, tokens = make(changes), row(12, (7,))
    model.has_marks = True
    marked = tokens.copy()
    marked[[0, 3, 7]] += model.config.vocab_size
    logits = model(torch.from_numpy(marked)[None])[0].detach().numpy()
    expected = np.concatenate([slow_logits(model, tokens[start:stop]) for start, stop in ((0, 3), (3, 7), (7, 12))])
    np.testing.assert_allclose(logits, expected, rtol=3e-4, atol=3e-4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=10), st.integers(0, 99))
def test_documents_with_random_borders_are_computed_as_alone(marks: list[bool], seed: int) -> None:
    model = make(EVERYTHING)
    tokens = row(len(marks), tuple(np.flatnonzero(marks)), seed)
    batch = torch.from_numpy(np.stack([tokens, row(len(marks), (), seed)]))
    with torch.no_grad():
        together = model(batch)[0]
        alone = torch.cat([model(batch[:1, start:stop])[0] for start, stop in pieces(tokens)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_without_the_setting_documents_affect_each_other() -> None:
    model = make(EVERYTHING | {"attention.within_documents": False})
    tokens = row(11, (0, 5))
    logits = model(torch.from_numpy(tokens)[None])[0, 5:].detach().numpy()
    assert np.abs(logits - slow_logits(model, tokens[5:])).max() > 0.1


@pytest.mark.parametrize("smear", ["v1", "v2"])
@pytest.mark.parametrize("backend", ["math", "flash"])
def test_tokens_of_one_document_change_no_bit_of_another(backend: str, smear: str) -> None:
    model = make(EVERYTHING | {"smear.gate": smear})
    model.set_attention_backend(backend)
    tokens = torch.from_numpy(np.stack([row(200, (0, 3, 64, 65, 130), 1), row(200, (100,), 2)]))
    with torch.no_grad():
        base = model(tokens)
        for start, stop in pieces(tokens[0].numpy()):
            changed = tokens.clone()
            own = changed[0, start:stop]
            own[own != BOS] = (own[own != BOS] + 41) % 250 + 2
            logits = model(changed)
            differs = (logits != base).any(-1)
            assert not differs[1].any() and not differs[0, :start].any() and not differs[0, stop:].any()
            assert differs[0, start + 1 : stop].all()


def test_gradients_are_those_of_the_documents_one_by_one() -> None:
    model, tokens = make(EVERYTHING), row(24, (0, 7, 8, 15))
    inputs, targets = torch.from_numpy(tokens[:-1])[None], torch.from_numpy(tokens[1:])[None]
    parameters = list(model.parameters())
    together = torch.autograd.grad(model(inputs, targets), parameters)
    alone = sum(
        (stop - start) / 23 * model(inputs[:, start:stop], targets[:, start:stop])
        for start, stop in pieces(tokens[:-1])
    )
    assert isinstance(alone, Tensor)
    for name, ours, theirs in zip(
        dict(model.named_parameters()), together, torch.autograd.grad(alone, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("steps", [(5, 1, 1, 1, 1, 1, 1, 1, 1, 1), (1,) * 14, (8, 6), (14,), (3, 4, 7)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bigram.every_layer": True, "value_embedding.gated": True},
        {"attention.within_documents": False, "smear.document_mask": False},
    ],
)
def test_cached_generation_is_the_full_pass(changes: dict, steps: tuple[int, ...]) -> None:
    model = make(EVERYTHING | changes)
    tokens = torch.from_numpy(np.stack([row(14, (0, 6, 7)), row(14, (8, 13), 3)]))
    torch.testing.assert_close(hidden_in_steps(model, tokens, steps), model.hidden(tokens), atol=1e-5, rtol=1e-5)


def test_a_row_with_one_document_is_computed_as_without_the_setting() -> None:
    tokens = torch.from_numpy(np.stack([row(20, (0,)), row(20, ())]))
    plain, aware = make(EVERYTHING | {"attention.within_documents": False}), make(EVERYTHING)
    torch.testing.assert_close(aware(tokens), plain(tokens), atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.data())
def test_layouts_equal_their_definition(num_rows: int, length: int, data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, 3), min_size=num_rows * length, max_size=num_rows * length)))
    rows = tokens.reshape(num_rows, length)
    batch = torch.from_numpy(rows)
    last = data.draw(st.integers(1, length))
    of = np.array([[sum(t == BOS for t in r[: i + 1]) for i in range(length)] for r in rows])
    assert document_ids(batch).tolist() == of.tolist()
    allowed = [
        [[of[r][i] == of[r][j] and j <= i for j in range(length)] for i in range(length)] for r in range(len(rows))
    ]
    assert document_mask(batch)[:, 0].tolist() == allowed
    assert document_mask(batch, last)[:, 0].tolist() == [r[-last:] for r in allowed]
    borders = document_borders(batch)
    expected = borders_of(rows)
    assert borders.dtype == torch.int32 and len(borders) > len(expected)
    assert borders.tolist() == expected + [rows.size] * (len(borders) - len(expected))
    previous = [i == 0 or r[i] == BOS for r in rows for i in range(length)]
    assert ((bigram_rows(batch, 50, batch) == 49).flatten().tolist()) == previous


def test_borders_have_one_size_and_too_many_documents_are_refused() -> None:
    few, many = torch.full((4, 1024), 5), torch.full((4, 1024), 5)
    many[:, ::32] = BOS
    assert document_borders(few).shape == document_borders(many).shape == (4 + 32 + 128 + 1,)
    assert document_borders(many).tolist()[:130] == [*range(0, 4096, 32), 4096, 4096]
    many[:] = 5
    many[:, :41] = BOS
    assert document_borders(many).unique().tolist() == [*(1024 * r + t for r in range(4) for t in range(41)), 4096]
    many[0, 41] = BOS
    with pytest.raises(RuntimeError, match=r"a batch of 4 x 1024 tokens has more than 164 documents.*flex"):
        document_borders(many)


def fake_flash_attention(calls: list[dict]) -> types.ModuleType:
    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, None]:
        calls.append(options)
        borders, window = options["cu_seqlens_q"], options["window_size"]
        assert isinstance(borders, Tensor) and isinstance(window, tuple)
        return packed_attention(q, k, v, borders.tolist(), window[0]), None

    package = types.ModuleType("flash_attn_interface")
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return package


@pytest.mark.parametrize("windows", [{}, {"attention.window": 4, "attention.full_layers": (1, 3)}], ids=str)
def test_packed_kernels_get_the_borders(monkeypatch: pytest.MonkeyPatch, windows: dict) -> None:
    """FlashAttention 3 and PyTorch's varlen call, as slow functions with the arguments of the real ones."""
    tokens = torch.from_numpy(np.stack([row(30, (0, 4, 5)), row(30, (17, 29), 3)]))
    model = make(EVERYTHING | windows)
    expected = model(tokens)
    calls: list[dict] = []
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake_flash_attention(calls))
    model.set_attention_backend("fa3")
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 4 and all(call["cu_seqlens_q"] is call["cu_seqlens_k"] for call in calls)
    assert {(call["causal"], call["max_seqlen_q"], call["max_seqlen_k"]) for call in calls} == {(True, 30, 30)}
    assert [call["window_size"] for call in calls] == ([(3, 0), (-1, -1)] * 2 if windows else [(-1, -1)] * 4)

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert enable_gqa and window_size[1] == 0 and scale is None and max_q == max_k == 30
        return packed_attention(q, k, v, cu_q.tolist(), window_size[0])

    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="PyTorch before 2.10 has no varlen attention")
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    model.set_attention_backend("varlen")
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False: q)
    with pytest.raises(ConfigError, match=r"varlen needs .* window_size"):
        model.set_attention_backend("varlen")


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_computes_the_same() -> None:
    """Its forward pass, without its kernel (which needs a GPU); the row spans two blocks of 128."""
    tokens = torch.from_numpy(np.stack([row(160, (0, 40, 41, 130)), row(160, (), 3)]))
    blocks = document_backend("flex").layout(tokens)
    allowed = document_mask(tokens)[:, 0]
    computed = blocks.to_dense()[:, 0]  # (B, 2, 2) blocks with anything in them
    for b, i, j in np.ndindex(2, 2, 2):
        part = allowed[b, 128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
        assert bool(computed[b, i, j]) == bool(part.any()), (b, i, j)
    model = make(EVERYTHING, context=160)
    with torch.no_grad():
        expected = model(tokens)
        model.set_attention_backend("flex")
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


def test_auto_takes_the_first_backend_with_right_results() -> None:
    reasons = available_backends(AttentionCase(CPU, torch.float32, documents=True))
    assert tuple(reasons) == DOCUMENT_BACKENDS
    assert reasons["math"] == "" and "GPU" in reasons["flex"] and "GPU" in reasons["varlen"]
    chosen = choose_backend("auto", AttentionCase(CPU, torch.float32, documents=True))
    assert chosen == next(name for name in DOCUMENT_BACKENDS if not reasons[name])
    assert choose_backend("math", AttentionCase(CPU, torch.float32, documents=True)) == "math"


@pytest.mark.parametrize(
    "requested, aware, words",
    [
        (
            "cudnn",
            True,
            ["'cudnn' does not support model.attention.within_documents", "flex", "efficient"],
        ),
        ("flex", True, ["'flex' does not work on cpu", "within_documents", "needs an NVIDIA GPU", "here: ", "math"]),
        ("flex", False, ["'flex' is for model.attention.within_documents", "allowed: auto, fa3, cudnn"]),
        ("varlen", False, ["'varlen' is for model.attention.within_documents"]),
        ("fast", True, ["unknown attention backend 'fast'", "flex"]),
    ],
)
def test_unsuitable_backends_are_refused(requested: str, aware: bool, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        choose_backend(requested, AttentionCase(CPU, torch.float32, documents=aware))
    for word in words:
        assert word in str(error.value)


def _ignores_borders(q: Tensor, k: Tensor, v: Tensor, layout: object, window: int) -> Tensor:
    everything = torch.ones(q.size(1), q.size(1), dtype=torch.bool).tril()
    return document_backend("math").attend(q, k, v, everything)


def _misses_the_last_border(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, window: int) -> Tensor:
    layout = layout.clone()
    layout[1, :, 65, 64] = True
    return document_backend("math").attend(q, k, v, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wrong", [_ignores_borders, _misses_the_last_border])
def test_a_kernel_that_ignores_a_border_is_rejected(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    real = document_backend

    def tampered(name: str) -> DocumentBackend:
        return DocumentBackend(document_mask, wrong) if name == "flash" else real(name)

    for sizes in ({"heads": 4, "kv_heads": 2}, {"heads": 1, "kv_heads": 1}):
        assert available_backends(AttentionCase(CPU, dtype, 16, documents=True, **sizes))["math"] == ""
        with monkeypatch.context() as patch:
            patch.setattr("bitgolf.model.backends.document_backend", tampered)
            reasons = available_backends(AttentionCase(CPU, dtype, 16, documents=True, **sizes))
        assert "its result differs from attention within documents" in reasons["flash"] and reasons["math"] == ""


@pytest.mark.filterwarnings("ignore")  # of torch, while it traces
def test_a_compiled_model_is_one_graph_for_all_borders() -> None:
    """Traced forward and backward as on a GPU; run by PyTorch itself, since compiling C++ takes half a minute."""
    model = make({"num_layers": 1, "attention.within_documents": True, "bigram.rows": 40, "bigram.dim": 6})
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    for seed, starts in enumerate([(0, 5), (), (1, 2, 3, 9), (10,)]):
        tokens = torch.from_numpy(row(12, starts, seed))[None]
        ours, theirs = compiled(tokens[:, :-1], tokens[:, 1:]), model(tokens[:, :-1], tokens[:, 1:])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(loss, model.blocks[0].attention.key.weight)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_kernels_of_flash_attention_4_are_kept_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
    for before, after in ((None, "1"), ("0", "0")):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
        keep_kernels()
        assert os.environ[name] == after
