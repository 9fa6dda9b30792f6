"""PR 1855's network against a slow definition in float64 numpy that shares no code with the package."""

import math

import numpy as np
import pytest
import torch
from slow_gpt import hidden_in_steps, row

from bitgolf.config import load_config
from bitgolf.model.gpt import GPT, count_parameters
from bitgolf.model.order import layer_order

PRESET = load_config("pr-1855").model
CUT = 5
TINY = PRESET.updated(
    {
        "vocab_size": 300,
        "model_dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "rope.dims": 4,
        "attention.document_tokens": CUT,
    }
)
# The decoder's positions: (layer, where its skip comes from as a position of the encoder, row of the skip weights).
DECODER = {
    False: [(5, 4, 0), (6, 3, 1), (7, 2, 2), (8, 1, 3), (9, 0, 4), (10, None, None)],
    True: [(5, 7, 0), (3, 6, 1), (4, 5, 2), (5, 4, 3), (6, 3, 4), (7, 2, 5), (8, 1, 6), (9, 0, 7), (10, None, None)],
}
ENCODER = {False: [0, 1, 2, 3, 4], True: [0, 1, 2, 3, 4, 5, 3, 4]}


def make(seed: int = 0) -> GPT:
    """A small model of the same layers whose every parameter is drawn at random."""
    model = GPT(TINY, 64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            matrix = name.endswith(".weight") or name == "embedding"
            parameter.normal_(0.0, 0.25 if matrix else 0.6, generator=generator)
    return model


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1.1920929e-07)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def segments(tokens: np.ndarray) -> list[int]:
    """Segment of every token: a new one at position 0, at each BOS, and CUT tokens after the last start."""
    number, start, out = -1, 0, []
    for t, token in enumerate(tokens):
        if t == 0 or token == 1 or t - start == CUT:
            number, start = number + 1, t
        out.append(number)
    return out


def attention(p: dict[str, np.ndarray], layer: int, z: np.ndarray, segment: list[int]) -> np.ndarray:
    """(T, D) of the normed, scaled input z (T, D)."""
    own = {name: p[f"blocks.{layer}.attention.{name}.weight"] for name in ("query", "key", "value", "out")}
    heads, groups, width, T = 4, 2, 8, len(z)

    def rotated(x: np.ndarray, position: int) -> np.ndarray:
        y = x.copy()
        for j in range(2):
            angle = position * 10000.0 ** (-2 * j / 4)
            y[j] = x[j] * math.cos(angle) + x[j + 2] * math.sin(angle)
            y[j + 2] = x[j + 2] * math.cos(angle) - x[j] * math.sin(angle)
        return y

    q = (z @ own["query"].T).reshape(T, heads, width)
    k = (z @ own["key"].T).reshape(T, groups, width)
    v = (z @ own["value"].T).reshape(T, groups, width)
    y = np.zeros((T, heads, width))
    for h in range(heads):
        g = h // 2
        for t in range(T):
            query = rotated(norm(q[t, h]), t) * p[f"blocks.{layer}.attention.q_gain"][h]
            seen = [s for s in range(t + 1) if segment[s] == segment[t]]
            scores = np.array([query @ rotated(norm(k[s, g]), s) / math.sqrt(width) for s in seen])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            y[t, h] = sum(w * v[s, g] for w, s in zip(weights, seen, strict=True))
            unit = v[t, g] / np.linalg.norm(v[t, g])
            y[t, h] -= (y[t, h] @ unit) * unit
            y[t, h] *= sigmoid(0.5 * (p[f"blocks.{layer}.attention.gate"][h] @ z[t, :12]))
    return y.reshape(T, -1) @ own["out"].T


def mlp(p: dict[str, np.ndarray], layer: int, z: np.ndarray) -> np.ndarray:
    a = z @ p[f"blocks.{layer}.mlp.up.weight"].T
    return np.where(a > 0, a * a, (a / 2) ** 2) @ p[f"blocks.{layer}.mlp.down.weight"].T


def reference(model: GPT, tokens: np.ndarray, looped: bool, dropped_row: int | None = None) -> np.ndarray:
    """Logits (T, V) of one row."""
    p = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
    segment = segments(tokens)
    raw = p["embedding"][tokens]
    x = raw.copy()
    for t in range(1, len(tokens)):
        if tokens[t] != 1:
            x[t] += p["smear.strength"] * sigmoid(p["smear.gate"] @ raw[t, :12]) * raw[t - 1]
    x = x0 = norm(x)

    def block(i: int, x: np.ndarray) -> np.ndarray:
        mix, c = p[f"blocks.{i}.resid_mix"], 1 / math.sqrt(i + 1)
        u = mix[0] * x + mix[1] * x0
        u = u + p[f"blocks.{i}.attn_scale"] * attention(p, i, norm(u) * c, segment)
        return u + p[f"blocks.{i}.mlp_scale"] * mlp(p, i, norm(u) * c)

    kept = []
    for i in ENCODER[looped]:
        x = block(i, x)
        kept.append(x)
    lane0, lane1 = x, x
    for i, source, weight in DECODER[looped]:
        if i == 8:
            lane0 = lane1 = x
        if weight is not None and weight != dropped_row:
            gate = sigmoid(p["skip_gates"][weight])
            mixed = gate * (lane0 if i >= 8 else x) + (1 - gate) * p["skip_weights"][weight] * kept[source]
            x, lane0 = (x, mixed) if i >= 8 else (mixed, lane0)
        if i < 8:
            x = block(i, x)
            continue
        mix, c = p[f"blocks.{i}.resid_mix"], 1 / math.sqrt(i + 1)
        r, a = p[f"blocks.{i}.lane_keep"], p[f"blocks.{i}.lane_add"]
        A = p[f"blocks.{i}.attn_scale"] * attention(p, i, norm(mix[0] * lane0 + mix[1] * x0) * c, segment)
        M = p[f"blocks.{i}.mlp_scale"] * mlp(p, i, norm(lane1) * c)
        lane0, lane1 = r[0] * lane0 + a[0, 0] * A + a[1, 0] * M, r[1] * lane1 + a[0, 1] * A + a[1, 1] * M
    z = norm((lane0 + lane1) / 2) @ p["embedding"].T
    return 30 * np.tanh(z / 30)


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("starts", [(), (0, 4, 5), (7,)], ids=str)
def test_logits_are_those_of_the_definition(starts: tuple[int, ...], looped: bool) -> None:
    model, tokens = make().double(), row(13, starts)
    model.compute_dtype = torch.float64
    with torch.no_grad():
        hidden = model.hidden(torch.from_numpy(tokens)[None], looped=looped)
        logits = 30 * torch.tanh(hidden @ model.embedding.T / 30)
    # The package's rotary frequencies are fp32.
    np.testing.assert_allclose(logits[0].numpy(), reference(model, tokens, looped), rtol=1e-5, atol=1e-5)


def test_the_loop_is_a_switch_that_is_on_unless_training_turns_it_off() -> None:
    model, tokens = make(), torch.from_numpy(row(12, (0,)))[None]
    with torch.no_grad():
        on, off = model.hidden(tokens, looped=True), model.hidden(tokens, looped=False)
        assert torch.equal(model.hidden(tokens), on)
        assert (on - off).abs().max() > 0.1
        torch.testing.assert_close(model(tokens), model.logits(on, tokens))
        assert torch.equal(model(tokens, tokens), model(tokens, tokens, None, True))


@pytest.mark.parametrize("looped", [False, True])
def test_skips_join_the_pairs_of_the_table(looped: bool) -> None:
    order = layer_order(PRESET, looped)
    encoder = ENCODER[looped]
    assert [(p.layer, p.keeps, p.row) for p in order[: len(encoder)]] == [(layer, True, -1) for layer in encoder]
    kept, pairs = list(range(len(encoder))), []
    for position in order[len(encoder) :]:
        source = kept.pop() if position.row >= 0 else None
        pairs.append((position.layer, source, None if source is None else position.row))
        assert not position.keeps
    assert pairs == DECODER[looped] and not kept


@pytest.mark.parametrize("looped", [False, True])
def test_the_first_skip_is_the_stream_itself(looped: bool) -> None:
    """At the start row 0 mixes the stream with itself; row 1 mixes it with another layer's output."""
    model, tokens = make().double(), row(10, (0, 6))
    model.compute_dtype = torch.float64
    with torch.no_grad():
        assert model.skip_weights is not None and model.skip_gates is not None
        model.skip_weights.fill_(1.0)
        model.skip_gates.zero_()
    base = reference(model, tokens, looped)
    np.testing.assert_allclose(reference(model, tokens, looped, dropped_row=0), base, atol=1e-12)
    assert np.abs(reference(model, tokens, looped, dropped_row=1) - base).max() > 1e-3


def test_the_tensors_are_those_of_the_original() -> None:
    # The original keeps 48 lane weights more, of the layers without lanes, which it never reads.
    assert count_parameters(PRESET) == 35_945_671 - 8 * 6
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in GPT(PRESET, 8).named_parameters()}
    assert shapes["skip_weights"] == shapes["skip_gates"] == (8, 512)
    assert shapes["blocks.10.attention.gate"] == (8, 12)
    assert [name for name in shapes if "lane" in name] == [
        f"blocks.{layer}.lane_{what}" for layer in (8, 9, 10) for what in ("keep", "add")
    ]
    assert (shapes["smear.gate"], shapes["smear.strength"]) == ((12,), (1,))


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    model = GPT(TINY.updated({"vocab_size": 8192}), 64).initialize_(torch.Generator().manual_seed(0))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 8192, (4, 65)))
    for looped in (False, True):
        loss = model(tokens[:, :-1], tokens[:, 1:], None, looped)
        assert float(loss.detach()) == pytest.approx(math.log(8192), abs=0.02)


def test_the_stream_is_bf16_in_every_layer() -> None:
    """A norm that returned fp32 would make the layers after it compute, and their matrices be read, in fp32."""
    model, dtypes = GPT(TINY, 64, compute_dtype=torch.bfloat16).initialize_(torch.Generator().manual_seed(0)), []
    for block in model.blocks:
        for part in (block.attention, block.mlp):
            part.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
            part.register_forward_hook(
                lambda _, inputs, out: dtypes.append((out[0] if isinstance(out, tuple) else out).dtype)
            )
    tokens = torch.from_numpy(row(20, (0, 7)))[None]
    hidden = model.hidden(tokens)
    assert len(dtypes) == 17 * 2 * 2
    assert set(dtypes) == {hidden.dtype} == {torch.bfloat16}
    assert model.logits(hidden, tokens).dtype == torch.float32


def test_gates_start_at_their_constants() -> None:
    model = GPT(TINY, 64).initialize_(torch.Generator().manual_seed(0))
    p = dict(model.named_parameters())
    for name, value in {
        "blocks.3.attention.gate": 0.0,
        "skip_gates": 0.0,
        "skip_weights": 1.0,
        "smear.gate": 0.0,
        "smear.strength": 0.0,
        "blocks.9.lane_keep": 1.1,
        "blocks.9.lane_add": 1.0,
        "blocks.0.attention.q_gain": 5.0,
        "blocks.0.attention.out.weight": 0.0,
        "blocks.0.mlp.down.weight": 0.0,
    }.items():
        assert torch.equal(p[name], torch.full_like(p[name], value)), name


@pytest.mark.parametrize("steps", [(5, 1, 1, 1, 1, 1), (1,) * 11, (11,), (3, 4, 4)], ids=str)
def test_cached_generation_is_the_full_pass(steps: tuple[int, ...]) -> None:
    model, tokens = make(), torch.from_numpy(np.stack([row(sum(steps), (0, 6)), row(sum(steps), (), 3)]))
    torch.testing.assert_close(hidden_in_steps(model, tokens, steps), model.hidden(tokens), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("looped", [False, True])
def test_every_parameter_that_is_read_gets_a_gradient(looped: bool) -> None:
    model, tokens = make(), torch.from_numpy(row(41, (0, 6)))[None]
    model(tokens[:, :-1], tokens[:, 1:], None, looped).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert model.skip_weights is not None and model.skip_weights.grad is not None
    read = model.skip_weights.grad.any(1).tolist()
    assert read == [True] * 8 if looped else read == [True] * 5 + [False] * 3
