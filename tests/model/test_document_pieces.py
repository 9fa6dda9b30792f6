"""Documents that attention cuts after so many tokens, and FlashAttention 4 with a slow stand-in for its kernels."""

import itertools
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_gpt import make, packed_attention, seen
from torch import Tensor

from bitgolf.errors import ConfigError
from bitgolf.model.document_borders import BOS, document_backend, document_borders, document_ids, document_mask

ATTENTION = {"attention.within_documents": True, "attention.document_tokens": 4, "num_layers": 2}


def pieces(rows: np.ndarray, longest: int) -> list[int]:
    """First tokens of the pieces of rows laid end to end, by a loop."""
    out, start = [], 0
    for r, row in enumerate(rows):
        for t, token in enumerate(row):
            if t == 0 or token == BOS or t - start == longest:
                start = t
                out.append(r * len(row) + t)
    return out


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(1, 14), st.integers(1, 6), st.data())
def test_layouts_are_the_definition(num_rows: int, length: int, longest: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=num_rows * length, max_size=num_rows * length))
    rows = np.array(drawn).reshape(num_rows, length)
    batch, expected = torch.from_numpy(rows), pieces(rows, longest)
    borders = document_borders(batch, longest)
    assert borders.dtype == torch.int32
    assert borders.tolist() == expected + [rows.size] * (len(borders) - len(expected))
    number = np.zeros(rows.size, int)
    number[expected] = 1
    number = number.cumsum().reshape(rows.shape)
    ids = document_ids(batch, longest).numpy()
    assert ((ids[:, :, None] == ids[:, None, :]) == (number[:, :, None] == number[:, None, :])).all()
    allowed = (number[:, :, None] == number[:, None, :]) & np.tri(length, dtype=bool)
    assert document_mask(batch, 0, longest)[:, 0].tolist() == allowed.tolist()


def test_long_rows_have_room_for_257_pieces() -> None:
    tokens = torch.full((1, 98_304), 5)
    tokens[0, torch.arange(0, 98_304, 1000)] = BOS
    assert len(document_borders(tokens, 2048)) == 258
    tokens[0, torch.arange(0, 98_304, 200)] = BOS
    with pytest.raises(RuntimeError, match="more than 257 documents"):
        document_borders(tokens, 2048)
    few = torch.full((1, 98_304), 5)
    assert document_borders(few, 2048)[:49].tolist() == list(range(0, 98_305, 2048))


def test_pieces_of_long_documents_count_as_documents_do() -> None:
    """Two rows of 1,000 tokens have room for 2 + 2,000 // 512 + 64 pieces; a row has 34 pieces of 30 tokens."""
    tokens = torch.full((2, 1000), 5)
    tokens[0, 999] = BOS
    borders = document_borders(tokens, 30).tolist()
    assert borders == [*range(0, 1000, 30), 999, *range(1000, 2000, 30), 2000] and len(borders) == 69 + 1
    tokens[1, 999] = BOS
    with pytest.raises(RuntimeError, match="a batch of 2 x 1000 tokens has more than 69 documents"):
        document_borders(tokens, 30)


def packed_gradients(
    q: Tensor, k: Tensor, v: Tensor, dy: Tensor, borders: Tensor, left: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `packed_attention` by their formulas: dS = P (dP - sum_j P dP), head by head."""
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    scale, group = q.size(2) ** -0.5, q.size(1) // k.size(1)
    for start, stop in itertools.pairwise(borders.tolist()):
        part = slice(start, stop)
        for h in range(q.size(1) if start < stop else 0):
            g = h // group
            scores = scale * q[part, h] @ k[part, g].T
            p = scores.masked_fill(~seen(stop - start, left), -torch.inf).softmax(1)
            dp = dy[part, h] @ v[part, g].T
            ds = p * (dp - (p * dp).sum(1, keepdim=True))
            dq[part, h] += scale * ds @ k[part, g]
            dk[part, g] += scale * ds.T @ q[part, h]
            dv[part, g] += p.T @ dy[part, h]
    return dq, dk, dv


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The options of every call of a module that stands for the real one and takes its arguments."""
    calls: list[dict] = []

    def _flash_attn_fwd(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple:
        calls.append(options)
        borders, left = options["cu_seqlens_q"], options["window_size_left"]
        assert isinstance(borders, Tensor) and isinstance(left, int | None)
        return packed_attention(q, k, v, borders.tolist(), left), torch.zeros(q.size(1), q.size(0)), None, None, None

    def _flash_attn_bwd(
        q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, lse: Tensor, **options: object
    ) -> tuple:
        calls.append(options)
        assert lse.shape == (q.size(1), q.size(0)) and y.shape == dy.shape == q.shape
        borders, left = options["cu_seqlens_q"], options["window_size_left"]
        assert isinstance(borders, Tensor) and isinstance(left, int | None)
        return packed_gradients(q, k, v, dy, borders, left)

    interface = types.ModuleType("flash_attn.cute.interface")
    interface._flash_attn_fwd = _flash_attn_fwd  # type: ignore[attr-defined]
    interface._flash_attn_bwd = _flash_attn_bwd  # type: ignore[attr-defined]
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["flash_attn"], "cute", sys.modules["flash_attn.cute"], raising=False)
    monkeypatch.setattr(sys.modules["flash_attn.cute"], "interface", interface, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    return calls


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("window", [0, 3])
def test_flash_attention_4_is_told_the_borders_and_gives_gradients(
    calls: list[dict], window: int, compiled: bool
) -> None:
    settings = ATTENTION | {"attention.window": window, "attention.full_layers": (1,) if window else ()}
    model, reference = make(settings), make(settings)
    model.set_attention_backend("fa4")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(model, backend="aot_eager", dynamic=False) if compiled else model
    for seed in range(2):
        tokens = torch.from_numpy(np.random.default_rng(seed).integers(2, 300, (2, 31)))
        tokens[0, [5, 9]], tokens[1, 20] = BOS, BOS
        loss, expected = (f(tokens[:, :-1], tokens[:, 1:]) for f in (step, reference))
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        ours = torch.autograd.grad(loss, list(model.parameters()))
        theirs = torch.autograd.grad(expected, list(reference.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert len(calls) == 2 * 2 * 2
    assert {(call["causal"], call["max_seqlen_q"], call["max_seqlen_k"]) for call in calls} == {(True, 4, 4)}
    lefts = [2, None, None, 2] if window else [None] * 4  # forward through both layers, then backward
    assert [call["window_size_left"] for call in calls] == lefts * 2
    if compiled:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_without_its_package_it_says_so() -> None:
    with pytest.raises(ConfigError, match="needs the package flash-attn-4"):
        document_backend("fa4")
