"""The network of a bitgolf model in plain PyTorch, without bitgolf: tokens in, logits out.

It computes what `bitgolf/model/gpt.py` computes, from the same tensors under the same names. `bitgolf export` copies
this file beside the weights, and makes the ONNX file from it. The settings have the names of a bitgolf configuration,
`[model]`.

Legend: B batch, T time, D model width, V vocabulary, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOS = 1  # the token that begins a document
BUFFERS = {"forbidden": torch.uint8, "bigram.signs": torch.int8}
_GATE_SCALE = 0.5


class Network(nn.Module):
    """The model.

    Args:
        settings: the nested settings of `[model]`.
        window: tokens of context that the model was trained for.
        shapes: shape of every tensor by its dotted name.
    """

    def __init__(self, settings: dict[str, Any], window: int, shapes: dict[str, list[int]]) -> None:
        super().__init__()
        self.settings, self.window = _namespace(settings), window
        for name, shape in shapes.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            if name in BUFFERS:
                module.register_buffer(last, torch.empty(shape, dtype=BUFFERS[name]))
            else:
                module.register_parameter(last, nn.Parameter(torch.empty(shape)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of tokens (B, T) int64."""
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        forbidden = tensors.pop("forbidden", None)  # (V, V / 8): a bit for each pair of tokens
        z = logits(tensors, self.settings, self.window, tokens)
        if forbidden is None:
            return z
        bits = forbidden[tokens].int()[..., None] // 2 ** torch.arange(8, device=tokens.device) % 2
        return z.masked_fill(bits.flatten(-2)[..., : z.size(-1)].bool(), -2 * self.settings.logit_softcap)


def _namespace(value: Any) -> Any:
    return SimpleNamespace(**{k: _namespace(v) for k, v in value.items()}) if isinstance(value, dict) else value


def logits(w: dict[str, Tensor], c: Any, window: int, tokens: Tensor) -> Tensor:
    """Logits (B, T, V) from tensors by name and the settings."""
    x = _embed(w, c, tokens)
    mask = near = _mask(c, tokens)
    if c.attention.window:
        places = torch.arange(tokens.size(1), device=tokens.device)
        near = mask & (places[:, None] - places < c.attention.window)
    cos, sin = _rotations(c, window, tokens)
    tables: Any = None
    pairs = _signed_pairs(w, c, tokens) if c.bigram.every_layer else None
    if c.value_embedding.layers and not c.value_embedding.gated:
        rows = w["value_embedding.table"][tokens]
        tables = w["value_embedding.scale"] * F.linear(rows, w["value_embedding.project.weight"])
    x0 = x
    kept: list[Tensor] = []
    lane: Tensor | None = None
    first: Tensor | None = None
    for place, (layer, keeps, row) in enumerate(_order(c)):
        name = f"blocks.{layer}."
        if pairs is not None:
            x = x + w["bigram.layer_scales"][layer] * pairs
        if c.lanes_from and layer == c.lanes_from:
            lane = x
        if row >= 0:
            skip = w["skip_weights"][row] * kept.pop()
            if c.skip_gates:
                gate = torch.sigmoid(w["skip_gates"][row])
                x = gate * x + (1 - gate) * skip
            else:
                x = x + skip
        scale = (layer + 1) ** -0.5 if c.ln_scale else 1.0
        mix = w[name + "resid_mix"]
        mixed = mix[0] * x + mix[1] * x0
        extra = None
        if layer in c.value_embedding.layers and c.value_embedding.gated:
            gate_in = (_norm(mixed) * scale)[..., : w[name + "attention.value_gate"].size(1)]
            opened = 2 * torch.sigmoid(F.linear(gate_in, w[name + "attention.value_gate"]))[..., None]  # (B, T, G, 1)
            rows = w[f"value_embedding.{layer}.table"][tokens]
            extra = (rows.unflatten(-1, (c.num_kv_heads, -1)) * opened).flatten(-2)
        elif layer in c.value_embedding.layers:
            extra = w["value_embedding.layer_scales"][c.value_embedding.layers.index(layer)] * tables
        is_full = layer in c.attention.full_layers or not c.attention.window
        seen, earlier = (mask, mask) if is_full else (near, None)
        y, values = _attention(w, c, layer, _norm(mixed) * scale, seen, earlier, cos, sin, extra, first)
        if place == 0 and c.attention.value_residual:
            first = values
        y = w[name + "attn_scale"] * y
        if lane is None:
            x = mixed + y
            x = x + w[name + "mlp_scale"] * _mlp(w, c, name, _norm(x) * scale)
        else:
            z = w[name + "mlp_scale"] * _mlp(w, c, name, _norm(lane) * scale)
            keep, add = w[name + "lane_keep"], w[name + "lane_add"]
            x = keep[0] * x + add[0, 0] * y + add[1, 0] * z
            lane = keep[1] * lane + add[0, 1] * y + add[1, 1] * z
        if keeps:
            kept.append(x)
    hidden = _norm(x if lane is None else 0.5 * (x + lane))
    return c.logit_softcap * torch.tanh(F.linear(hidden, w["embedding"]).float() / c.logit_softcap)


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


def _embed(w: dict[str, Tensor], c: Any, tokens: Tensor) -> Tensor:
    """(B, T, D): the token embedding, hashed bigrams, and the smear of the previous token."""
    x = w["embedding"][tokens]
    if c.bigram.rows and not c.bigram.every_layer:
        x = x + w["bigram.scale"] * F.linear(_pairs(w, c, tokens), w["bigram.project.weight"])
    if c.smear.gate != "v2":
        x = _norm(x)
    if c.smear.gate == "none":
        return x
    previous = F.pad(x[:, :-1], (0, 0, 1, 0))
    if c.smear.document_mask:
        previous = previous * (tokens != BOS)[..., None].to(x.dtype)
    gate = w["smear.gate"]
    if c.smear.gate == "v1":
        gate = torch.sigmoid(gate)
        return (1 - gate) * x + gate * previous
    return _norm(x + w["smear.strength"] * torch.sigmoid(x[..., : gate.numel()] @ gate)[..., None] * previous)


def _pairs(w: dict[str, Tensor], c: Any, tokens: Tensor) -> Tensor:
    """(B, T, b): the rows of hashed pairs of tokens."""
    rows = (36313 * tokens[:, 1:] ^ 27191 * tokens[:, :-1]) % (c.bigram.rows - 1)
    if c.attention.within_documents:
        rows = torch.where(tokens[:, 1:] == BOS, c.bigram.rows - 1, rows)
    return w["bigram.table"][F.pad(rows, (1, 0), value=c.bigram.rows - 1)]


def _signed_pairs(w: dict[str, Tensor], c: Any, tokens: Tensor) -> Tensor:
    """(B, T, D): the rows of hashed pairs with hashed signs, zero in the last channels."""
    before = F.pad(tokens[:, :-1], (1, 0))
    if c.attention.within_documents:
        before = torch.where(tokens == BOS, 0, before)
    signs = w["bigram.signs"]
    signed = _pairs(w, c, tokens) * signs[(before ^ tokens) % len(signs)]
    return F.pad(signed, (0, c.model_dim - signed.size(-1)))


def _mask(c: Any, tokens: Tensor) -> Tensor:
    """True where a position may attend to another: (1 or B, 1, T, T)."""
    places = torch.arange(tokens.size(1), device=tokens.device)
    causal = (places[:, None] >= places[None, :])[None]  # (1, T, T)
    if not c.attention.within_documents:
        return causal[:, None]
    begins = (tokens == BOS)[:, None, :] & causal  # (B, T, T)
    start = torch.where(begins, places, 0).amax(-1)  # (B, T) of the document; 0 before the first BOS of a row
    if c.attention.document_tokens:
        start = start + (places - start) // c.attention.document_tokens * c.attention.document_tokens
    return ((start[:, :, None] == start[:, None, :]) & causal)[:, None]


def _rotations(c: Any, window: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (1, T, 1, r/2) of the rotary angles."""
    r = c.rope.dims or c.model_dim // c.num_heads
    base = c.rope.base
    if c.rope.train_length and window > c.rope.train_length:
        base *= (window / c.rope.train_length) ** (r / (r - 2))
    exponents = torch.arange(0, r, 2, dtype=torch.float32, device=tokens.device) / r
    places = torch.arange(tokens.size(1), dtype=torch.float32, device=tokens.device)
    angles = (places[:, None] * (1.0 / base**exponents))[None, :, None]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


def _attention(
    w: dict[str, Tensor],
    c: Any,
    layer: int,
    x: Tensor,  # (B, T, D)
    mask: Tensor,  # (1 or B, 1, T, T)
    # The mask if half of a key may be that of the token before; None in layers with a window.
    offset_mask: Tensor | None,
    cos: Tensor,  # (1, T, 1, r/2)
    sin: Tensor,
    extra: Tensor | None,  # (B, T, G * K), added to the values
    first: Tensor | None,  # (B, T, G, K), values of the first layer
) -> tuple[Tensor, Tensor]:
    """The output (B, T, D) and the values (B, T, G, K)."""
    name = f"blocks.{layer}.attention."
    B, T, D = x.shape
    H, G = c.num_heads, c.num_kv_heads
    q = F.linear(x, w[name + "query.weight"]).view(B, T, H, -1)
    k = F.linear(x, w[name + "key.weight"]).view(B, T, G, -1)
    flat = F.linear(x, w[name + "value.weight"])
    v = (flat if extra is None else flat + extra).view(B, T, G, -1)
    if c.attention.value_residual and layer and first is not None:
        mix = w[name + "value_mix"]
        v = mix[0] * first + mix[1] * v
    q = _rotate(_norm(q), cos, sin) * w[name + "q_gain"][:, None]
    k = _rotate(_norm(k), cos, sin)
    if c.attention.key_offset and offset_mask is not None and T > 1:
        low, own = k.chunk(2, dim=-1)
        sees = offset_mask.diagonal(-1, 2, 3)[:, 0, :, None, None]  # (1 or B, T - 1, 1, 1): the token before
        k = torch.cat((low, torch.cat((own[:, :1], torch.where(sees, own[:, :-1], own[:, 1:])), 1)), -1)
    keys, values = (_repeat(t, H // G).transpose(1, 2) for t in (k, v))  # (B, H, T, K)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask).transpose(1, 2)
    if layer >= c.num_layers - c.attention.xsa_layers:
        own = _repeat(v, H // G)
        own = own / own.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        y = y - (y * own).sum(-1, keepdim=True) * own
    if c.attention.gate:
        gate = w[name + "gate"]
        y = y * torch.sigmoid(_GATE_SCALE * F.linear(x[..., : gate.size(1)], gate))[..., None]
    return F.linear(y.reshape(B, T, D), w[name + "out.weight"]), v


def _repeat(x: Tensor, times: int) -> Tensor:
    """Each of the G heads of x (B, T, G, K) so many times in a row."""
    B, T, G, K = x.shape
    return x[:, :, :, None].expand(B, T, G, times, K).reshape(B, T, G * times, K)


def _mlp(w: dict[str, Tensor], c: Any, name: str, x: Tensor) -> Tensor:
    slope = c.mlp.leaky_slope if c.mlp.activation == "leaky_relu2" else 0.0
    return F.linear(F.leaky_relu(F.linear(x, w[name + "mlp.up.weight"]), slope).square(), w[name + "mlp.down.weight"])


def _order(c: Any) -> list[tuple[int, bool, int]]:
    """The layers in the order in which they run: the layer, whether its output is kept, and the row of its skip."""
    layers = list(range(c.num_layers))
    layers[c.loop.last + 1 : c.loop.last + 1] = layers[c.loop.first : c.loop.last + 1] * c.loop.repeats
    half = len(layers) // 2
    rows = half if c.skips else 0
    return [
        (layer, place < half and rows > 0, place - half if half <= place < half + rows else -1)
        for place, layer in enumerate(layers)
    ]
