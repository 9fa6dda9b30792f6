"""A tiny network, and its slow definition in float64 numpy, which shares no code with `bitgolf.model`."""

import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config import ModelConfig
from bitgolf.model import GPT
from bitgolf.model.cache import GenerationCache
from bitgolf.model.document_borders import BOS

TINY = {"vocab_size": 300, "num_layers": 3, "model_dim": 24, "num_heads": 4, "num_kv_heads": 2, "mlp.multiple": 2.5}


def make(changes: Mapping[str, object] | None = None, seed: int = 0, context: int = 16) -> GPT:
    """A tiny model with the dotted settings of `changes`; all parameters are random, so every term has an effect."""
    model = GPT(ModelConfig().updated(TINY | dict(changes or {})), context)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(
                0, 0.5 if parameter.ndim == 1 or "skip" in name or "mix" in name else 0.2, generator=generator
            )
    model.set_attention_backend("math")
    return model


def row(length: int, starts: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """(length,) random tokens with a BOS at `starts` and nowhere else."""
    tokens = np.random.default_rng(seed).integers(2, 300, length)
    tokens[list(starts)] = BOS
    return tokens


def hidden_in_steps(model: GPT, tokens: Tensor, steps: Iterable[int]) -> Tensor:
    """The final states of `tokens`, which a growing cache of generation gets in pieces of `steps` tokens."""
    cache = GenerationCache(model.num_positions)
    with torch.no_grad():
        return torch.cat([model.hidden(piece, cache) for piece in tokens.split(list(steps), 1)], 1)


def sign(position: int) -> int:
    """1 or -1 by a hash of 64 bits in Python's integers."""

    def wrapped(value: int) -> int:  # as a signed number of 64 bits
        return (value + 2**63) % 2**64 - 2**63

    first = wrapped(position * 0x9E3779B97F4A7C15)
    return -1 if wrapped((first ^ (first >> 31)) * 0xBF58476D1CE4E5B9) >> 40 & 1 else 1


def slow_logits(model: GPT, tokens: np.ndarray, windows: tuple[int, int] | None = None) -> np.ndarray:
    """Logits (T, V) of one sequence by explicit loops in float64, written from the definitions."""
    c = model.config
    p = {name: t.detach().double().numpy() for name, t in model.named_parameters()}
    eps = np.finfo(np.float32).eps

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)

    width = c.model_dim // c.num_heads
    r, base, longer = c.rope.dims or width, c.rope.base, model.context_length / (c.rope.train_length or math.inf)
    if longer > 1:
        base *= longer ** (r / (r - 2))  # NTK

    def rotated(x: np.ndarray, position: int) -> np.ndarray:
        y = x.copy()
        for i in range(r // 2):
            angle = position * base ** (-2 * i / r)
            a, b = x[i], x[i + r // 2]
            y[i] = a * math.cos(angle) + b * math.sin(angle)
            y[i + r // 2] = b * math.cos(angle) - a * math.sin(angle)
        return y

    x, T, kept = p["embedding"][tokens], len(tokens), []
    added = np.zeros((T, c.model_dim))
    if c.bigram.rows:
        for t in range(T):
            row = c.bigram.rows - 1
            if t:
                row = ((36313 * int(tokens[t])) ^ (27191 * int(tokens[t - 1]))) % (c.bigram.rows - 1)
            if c.bigram.every_layer:
                key = (int(tokens[t - 1]) if t else 0) ^ int(tokens[t])
                signs = [sign(key % 8192 * c.bigram.dim + channel) for channel in range(c.bigram.dim)]
                added[t, : c.bigram.dim] = signs * p["bigram.table"][row]
                continue
            x[t] += p["bigram.scale"] * (p["bigram.project.weight"] @ p["bigram.table"][row])
    if c.smear.gate == "v2":
        raw = x.copy()
        for t in range(1, T):
            if not (c.smear.document_mask and tokens[t] == 1):
                gate = 1 / (1 + np.exp(-(raw[t, : p["smear.gate"].size] @ p["smear.gate"])))
                x[t] = raw[t] + p["smear.strength"] * gate * raw[t - 1]
    x = norm(x)
    if c.smear.gate == "v1":
        gate, clean = 1 / (1 + np.exp(-p["smear.gate"])), x.copy()
        for t in range(T):
            before = clean[t - 1] if t and not (c.smear.document_mask and tokens[t] == 1) else 0.0
            x[t] = (1 - gate) * clean[t] + gate * before
    x0, first_values = x, None
    for layer in range(c.num_layers):
        q = f"blocks.{layer}."
        if c.bigram.every_layer:
            x = x + p["bigram.layer_scales"][layer] * added
        if layer >= c.num_layers // 2 and kept and c.skips:
            i = layer - c.num_layers // 2
            skip = p["skip_weights"][i] * kept.pop()
            gate = 1 / (1 + np.exp(-p["skip_gates"][i])) if c.skip_gates else None
            x = x + skip if gate is None else gate * x + (1 - gate) * skip
        x = p[q + "resid_mix"][0] * x + p[q + "resid_mix"][1] * x0
        scale = 1 / math.sqrt(layer + 1) if c.ln_scale else 1.0
        n = norm(x) * scale
        values = n @ p[q + "attention.value.weight"].T
        if layer in c.value_embedding.layers and c.value_embedding.gated:
            w = p[q + "attention.value_gate"]
            for t in range(T):
                for g in range(c.num_kv_heads):
                    at, gate = slice(g * width, (g + 1) * width), 2 / (1 + np.exp(-(w[g] @ n[t, : w.shape[1]])))
                    values[t, at] += gate * p[f"value_embedding.{layer}.table"][tokens[t], at]
        elif layer in c.value_embedding.layers:
            own = p["value_embedding.layer_scales"][c.value_embedding.layers.index(layer)] * p["value_embedding.scale"]
            values = values + own * (p["value_embedding.table"][tokens] @ p["value_embedding.project.weight"].T)
        if c.attention.value_residual and layer:
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
            qs = [rotated(norm(wq @ n[t]), t) * p[q + "attention.q_gain"][h] for t in range(T)]
            ks = [rotated(norm(wk @ n[t]), t) for t in range(T)]
            if c.attention.key_offset and not (c.attention.window and layer not in c.attention.full_layers):
                ks = [np.concatenate([ks[t][: width // 2], ks[max(0, t - 1)][width // 2 :]]) for t in range(T)]
            for t in range(T):
                near, full = windows or (c.attention.window, 0)
                window = (full if layer in c.attention.full_layers else near) or t + 1
                first = max(0, t + 1 - window)
                scores = np.array([qs[t] @ ks[s] / math.sqrt(width) for s in range(first, t + 1)])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[t, h] = sum(w * vs[s] for s, w in enumerate(weights, first))
                if layer >= c.num_layers - c.attention.xsa_layers:
                    unit = vs[t] / np.linalg.norm(vs[t])
                    out[t, h] -= (out[t, h] @ unit) * unit
        x = x + p[q + "attn_scale"] * (out.reshape(T, -1) @ p[q + "attention.out.weight"].T)
        u = (norm(x) * scale) @ p[q + "mlp.up.weight"].T
        slope = c.mlp.leaky_slope if c.mlp.activation == "leaky_relu2" else 0.0
        x = x + p[q + "mlp_scale"] * (np.where(u > 0, u, slope * u) ** 2 @ p[q + "mlp.down.weight"].T)
        if layer < c.num_layers // 2:
            kept.append(x)
    return c.logit_softcap * np.tanh(norm(x) @ p["embedding"].T / c.logit_softcap)


def seen(length: int, left: int | None) -> Tensor:
    """True where a token sees another, (length, length): itself and `left` tokens before it; None or -1 = all."""
    places = torch.arange(length)
    before = places[:, None] - places
    return (before >= 0) & (before <= (length if left in (None, -1) else left))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, borders: list[int], left: int | None = None) -> Tensor:
    """Causal attention of each sequence alone to `left` tokens before (see `seen`): q (N, H, K), k and v (N, G, K)."""
    parts = []
    for start, stop in itertools.pairwise(borders):
        if start < stop:
            part = (x[start:stop].transpose(0, 1) for x in (q, k, v))
            mask = seen(stop - start, left)
            parts.append(F.scaled_dot_product_attention(*part, attn_mask=mask, enable_gqa=True).transpose(0, 1))
    return torch.cat(parts)
