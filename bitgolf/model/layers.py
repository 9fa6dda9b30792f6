"""The layers of a block: grouped-query causal attention with normalized queries and keys, and the MLP.

Matrices are fp32 parameters that are cast to the dtype of the activations when they are used. Gains and scales stay
fp32 too. A new activation is a case in `activate`; a new part of attention goes into `Attention.forward`.
Source: the challenge's baseline (main:train_gpt.py).

Legend: B batch, T time, D model width, H query heads, G key/value heads, K head width, F MLP width, r rotated channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.config import ModelConfig
from bitgolf.config.model import MLPConfig
from bitgolf.model import few_passes
from bitgolf.model.cache import LayerCache, attend_to_cache
from bitgolf.model.document_borders import Layout
from bitgolf.model.rotary import rotate

_GATE_CHANNELS = 12  # channels of its input that the gate of attention reads (PR 1787)
_VALUE_GATE_CHANNELS = 32  # that the gates of value tables read (github.com/karpathy/autoresearch PR 44)
GATE_SCALE = 0.5  # factor on the gate's logits (PR 1855)


class Linear(nn.Linear):
    """Bias-free linear layer whose fp32 weight (out, in) is cast to the dtype of its input.

    Training may attach a `faker`, which maps the weight to the one that the artifact would give back. It is applied
    only in passes that get `fake`, its sharpness: an argument, because a compiler could remove a flag.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.faker: nn.Module | None = None

    def forward(self, x: Tensor, fake: Tensor | None = None) -> Tensor:
        weight = self.weight if fake is None or self.faker is None else self.faker(self.weight, fake)
        return F.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Root-mean-square normalization of the last axis, times `scale`; eps is the dtype's machine epsilon."""
    if learns_on_cpu(x):
        return few_passes.rms_norm(x, scale)
    normed = F.rms_norm(x, (x.size(-1),))
    return normed if isinstance(scale, float) and scale == 1 else normed * scale


def learns_on_cpu(x: Tensor) -> bool:
    """Whether gradients pass through x on a CPU; evaluation and GPUs take the plain operations."""
    return x.requires_grad and x.device.type == "cpu" and x.dtype == torch.float32


Delta = tuple[Tensor, Tensor, float]
"""A (B, r, D), B (B, outputs, r) and scale of a low-rank adapter, one A and B per row."""


def add_delta(y: Tensor, x: Tensor, delta: Delta | None) -> Tensor:
    """y + scale * B (A x) for y (B, T, outputs) and x (B, T, D), in the dtype of x."""
    if delta is None:
        return y
    a, b, scale = delta
    low = torch.bmm(x, a.to(x.dtype).mT)  # (B, T, r)
    return y + torch.bmm(scale * low, b.to(x.dtype).mT)


class Pass(NamedTuple):
    """What all layers of one forward pass share."""

    cos: Tensor  # (T, r/2) of the angles of these positions
    sin: Tensor  # (T, r/2)
    documents: Layout | None = None  # layout of the backend, or mask of the cache; None = every row is one document
    fake: Tensor | None = None  # sharpness of fake quantization, a scalar; None = the float weights
    near: Layout | None = None  # like `documents`, for the layers with a window
    windows: tuple[int, int] = (0, 0)  # of the layers with a window, and of the others; 0 = none
    deltas: Mapping[str, Delta] = {}  # by target (q, k, v, o, mlp), see `bitgolf.evaluate.lora`
    begins: Tensor | None = None  # where a document or piece begins, bool (B, T), for the key offset; None = nowhere

    def adapted(self, target: str, y: Tensor, x: Tensor) -> Tensor:
        """Output y of a target, with what adapters add to it for its input x."""
        return add_delta(y, x, self.deltas.get(target))


class Attention(nn.Module):
    """Causal self-attention with QK-norm, rotary positions, a learned gain per query head, grouped keys and values.

    Options, by `AttentionConfig`: a token embedding (VE) and the first layer's values (VRL) are added to the values;
    the component of a head's output along the token's own value is removed (XSA, PR 265); each head's output is
    multiplied by a gate that reads a few channels of the input (PR 1787); attention stays within documents and within
    a window (`bitgolf.model.document_borders`); half of a key is that of the token before (`offset_keys`).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.query = Linear(config.model_dim, config.model_dim)
        self.key = Linear(config.model_dim, config.kv_dim)
        self.value = Linear(config.model_dim, config.kv_dim)
        self.out = Linear(config.model_dim, config.model_dim)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.attention.qk_gain))
        self.exclude_self = layer >= config.num_layers - config.attention.xsa_layers
        self.value_mix = nn.Parameter(torch.tensor([0.01, 0.99])) if config.attention.value_residual and layer else None
        channels = min(_GATE_CHANNELS, config.model_dim)
        self.gate = nn.Parameter(torch.zeros(config.num_heads, channels)) if config.attention.gate else None
        ve, channels = config.value_embedding, min(_VALUE_GATE_CHANNELS, config.model_dim)
        has_gate = ve.gated and layer in ve.layers
        self.value_gate = nn.Parameter(torch.zeros(config.num_kv_heads, channels)) if has_gate else None
        self.has_window = config.attention.layer_window(layer) > 0
        self.key_offset = config.attention.key_offset and not self.has_window
        self.attend: Callable[..., Tensor]  # of the backend, see `GPT.set_attention_backend`
        self.kernels: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None

    def use_kernels(self) -> None:
        """Compute the parts around attention with the Triton kernels of `attention_triton` (NVIDIA GPUs only)."""
        from bitgolf.model.attention_triton import exclude_and_gate, rotate_normed

        self.kernels = rotate_normed, exclude_and_gate

    def forward(
        self,
        x: Tensor,  # (B, T, D) normalized input
        shared: Pass,
        value_embedding: Tensor | None = None,  # (B, T, G * K)
        first_value: Tensor | None = None,  # (B, T, G, K) of layer 0
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the output (B, T, D), and the values that were attended to (B, T, G, K)."""
        B, T, _ = x.shape
        cos, sin, documents, fake, near, windows, _, begins = shared
        layout, window = (near, windows[0]) if self.has_window else (documents, windows[1])
        q = shared.adapted("q", self.query(x, fake), x).view(B, T, self.num_heads, self.head_dim)
        k = shared.adapted("k", self.key(x, fake), x).view(B, T, self.num_kv_heads, self.head_dim)
        flat = shared.adapted("v", self.value(x, fake), x)
        if value_embedding is not None and self.value_gate is not None:
            opened = 2 * torch.sigmoid(F.linear(x[..., : self.value_gate.size(1)], self.value_gate.to(x.dtype)))
            value_embedding = (value_embedding.unflatten(-1, (self.num_kv_heads, -1)) * opened[..., None]).flatten(-2)
        if value_embedding is not None:
            flat = flat + value_embedding
        v = flat.view(B, T, self.num_kv_heads, self.head_dim)
        if self.value_mix is not None and first_value is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * first_value + mix[1] * v
        q, k = self._rotate(q, k, cos, sin)
        if self.key_offset:
            k = offset_keys(k, begins, None if cache is None else cache.hand_over(upper_half(k)))
        if cache is not None:
            y = attend_to_cache(q, *cache.extend(k, v), layout)
        elif layout is not None:
            y = self.attend(q, k, v, layout, window)
        else:
            y = self.attend(q, k, v)
        y = self._exclude_and_gate(y, v, x)
        return shared.adapted("o", self.out(y.reshape(B, T, -1), fake), x), v

    def _rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, T, H or G, K), normalized and rotated; the queries multiplied by their gain."""
        if self.kernels is not None:
            rotate_normed, _ = self.kernels
            return rotate_normed(q, self.q_gain, cos, sin), rotate_normed(k, self.q_gain[:0], cos, sin)
        if learns_on_cpu(q):
            return few_passes.rotate_normed(q, self.q_gain, cos, sin), few_passes.rotate_normed(k, None, cos, sin)
        if q.size(1) == 1:  # operations on one token take longer to start than to run, so there is one for both
            q, k = rotate(rms_norm(torch.cat((q, k), dim=2)), cos, sin).split((q.size(2), k.size(2)), dim=2)
        else:
            q, k = rotate(rms_norm(q), cos, sin), rotate(rms_norm(k), cos, sin)
        return q * self.q_gain.to(q.dtype)[:, None], k

    def _exclude_and_gate(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Head outputs y (B, T, H, K) after XSA and the gate, which reads the input x (B, T, D)."""
        logits = None
        if self.gate is not None:
            logits = F.linear(x[..., : self.gate.size(1)], self.gate.to(x.dtype))  # (B, T, H)
        if self.kernels is not None and self.exclude_self:
            _, exclude_and_gate = self.kernels
            return exclude_and_gate(y, v, y.new_empty(0) if logits is None else logits, GATE_SCALE)
        if self.exclude_self:
            y = remove_own_value(y, v)
        return y if logits is None else y * torch.sigmoid(GATE_SCALE * logits)[..., None]


def upper_half(k: Tensor) -> Tensor:
    """The channels of keys (B, T, G, K) that the offset moves, (B, T, G, K / 2). They are not rotated."""
    return k[..., k.size(-1) // 2 :]


def offset_keys(k: Tensor, begins: Tensor | None, before: Tensor | None) -> Tensor:
    """Keys (B, T, G, K) whose upper half is that of the token before: a query finds what follows a token like its own.

    The first token of a row, and one where `begins` (B, T) is true, keeps its own. `before` is the upper half of the
    token before the first, (B, 1, G, K / 2), which is then not the first of a row. Source: modded-nanogpt, record 49.
    """
    own = upper_half(k)
    earlier = torch.cat((own[:, :1] if before is None else before, own[:, :-1]), dim=1)
    if begins is not None:
        earlier = torch.where(begins[..., None, None], own, earlier)
    return torch.cat((k[..., : k.size(-1) // 2], earlier), dim=-1)


def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """XSA: y - (y . u) u per query head of y (B, T, H, K), with u the direction of the own value in v (B, T, G, K)."""
    B, T, H, K = y.shape
    direction = F.normalize(v, dim=-1)[:, :, :, None, :]
    grouped = y.view(B, T, v.size(2), H // v.size(2), K)
    return (grouped - (grouped * direction).sum(-1, keepdim=True) * direction).view(B, T, H, K)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.mlp
        self.up = Linear(config.model_dim, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.model_dim)
        self.kernel: Callable[..., Tensor] | None = None  # for both layers and the activation

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        """x (B, T, D) normalized input; returns (B, T, D)."""
        if self.kernel is not None and shared.fake is None:
            y = self.kernel(x, self.up.weight.to(x.dtype), self.down.weight.to(x.dtype), self.config.slope)
        else:
            y = self.down(activate(self.up(x, shared.fake), self.config), shared.fake)
        return shared.adapted("mlp", y, x)


def activate(x: Tensor, config: MLPConfig) -> Tensor:
    """The activation of the MLP, element by element, (B, T, F)."""
    if learns_on_cpu(x):
        return few_passes.squared_relu(x, config.slope)
    match config.activation:
        case "relu2":
            return F.relu(x).square()
        case "leaky_relu2":
            return F.leaky_relu(x, config.leaky_slope).square()


class Block(nn.Module):
    """Mix of the stream with the embedding, then attention, then the MLP; every scale is one number per channel.

    A layer with two lanes (PR 1529) has two streams. Attention reads lane 0, mixed with the embedding, and the MLP
    reads lane 1. Both outputs are added to both lanes, with learned weights.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.ones(2, config.model_dim))
        self.resid_mix.data[1] = 0.0
        self.norm_scale: float | Tensor = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        if config.lanes_from and layer >= config.lanes_from:
            self.lane_keep = nn.Parameter(torch.full((2,), 1.1))  # factor of each lane, initially as in PR 1529
            self.lane_add = nn.Parameter(torch.ones(2, 2))  # [output, lane], outputs of attention and MLP

    def forward(
        self,
        x: Tensor,  # (B, T, D) stream
        x0: Tensor,  # (B, T, D) normalized embedding
        shared: Pass,
        value_embedding: Tensor | None = None,  # (B, T, G * K)
        first_value: Tensor | None = None,  # (B, T, G, K) of layer 0
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the new stream (B, T, D), and the layer's values (B, T, G, K)."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, v = self.attention(rms_norm(x, self.norm_scale), shared, value_embedding, first_value, cache)
        x = x + self.attn_scale.to(x.dtype) * y
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x, self.norm_scale), shared), v

    def two_lanes(
        self,
        lanes: tuple[Tensor, Tensor],  # (B, T, D) each
        x0: Tensor,  # (B, T, D) normalized embedding
        shared: Pass,
        value_embedding: Tensor | None = None,  # (B, T, G * K)
        first_value: Tensor | None = None,  # (B, T, G, K) of layer 0
        cache: LayerCache | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Returns the new lanes, and the layer's values (B, T, G, K)."""
        dtype = x0.dtype
        mix, keep, add = self.resid_mix.to(dtype), self.lane_keep.to(dtype), self.lane_add.to(dtype)
        mixed = rms_norm(mix[0] * lanes[0] + mix[1] * x0, self.norm_scale)
        y, v = self.attention(mixed, shared, value_embedding, first_value, cache)
        y = self.attn_scale.to(dtype) * y
        z = self.mlp_scale.to(dtype) * self.mlp(rms_norm(lanes[1], self.norm_scale), shared)
        lane0, lane1 = (keep[i] * lanes[i] + add[0, i] * y + add[1, i] * z for i in (0, 1))
        return (lane0, lane1), v
