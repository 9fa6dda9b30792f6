"""The two branches of a block: grouped-query causal attention with normalized queries and keys, and the MLP.

Matrices are fp32 parameters cast to the dtype of the activations at use; gains and scales stay fp32.
Source: the challenge's baseline (main:train_gpt.py).

Legend: B batch, T time, D model width, H query heads, G key/value heads, K head width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.config import ModelConfig
from bitgolf.model.backends import attention_function
from bitgolf.model.cache import LayerCache, attend_to_cache
from bitgolf.model.document_borders import Layout, document_backend
from bitgolf.model.rotary import rotate


class Linear(nn.Linear):
    """Bias-free linear layer whose fp32 weight (out, in) is cast to the dtype of its input.

    `faker`, when training has attached one, maps the weight to what the artifact would give back; it is used only in
    passes that hand down `fake` (its sharpness), never because of a flag that a compiler could fold away.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.faker: nn.Module | None = None

    def forward(self, x: Tensor, fake: Tensor | None = None) -> Tensor:
        weight = self.weight if fake is None or self.faker is None else self.faker(self.weight, fake)
        return F.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square normalization of the last axis without parameters; eps is the dtype's machine epsilon."""
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    """Causal self-attention: QK-norm, rotary positions, a learned gain a query head, grouped keys and values.

    Options: values get a token embedding (VE) and the first layer's values (VRL) before they are attended to;
    the component of a head's output along the token's own value is removed (XSA, PR 265); attention stays within
    documents (`bitgolf.model.document_borders`).
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
        self.attend: Callable[..., Tensor]
        self.use_backend("math", config.attention.within_documents)

    def use_backend(self, backend: str, documents: bool) -> None:
        """Attend by the named backend: of `bitgolf.model.backends`, or of `bitgolf.model.document_borders`."""
        self.attend = document_backend(backend).attend if documents else attention_function(backend)

    def forward(
        self,
        x: Tensor,  # (B, T, D) normalized input
        cos: Tensor,  # (T, r/2) of these positions
        sin: Tensor,  # (T, r/2)
        value_embedding: Tensor | None = None,  # (B, T, G * K)
        first_value: Tensor | None = None,  # (B, T, G, K) of layer 0
        cache: LayerCache | None = None,
        fake: Tensor | None = None,  # sharpness of fake quantization; None = off
        documents: Layout | None = None,  # of the backend, or a mask of the cache; None = rows are one document
    ) -> tuple[Tensor, Tensor]:
        """Returns the branch output (B, T, D) and the values that were used (B, T, G, K)."""
        B, T, _ = x.shape
        q = self.query(x, fake).view(B, T, self.num_heads, self.head_dim)
        k = self.key(x, fake).view(B, T, self.num_kv_heads, self.head_dim)
        flat = self.value(x, fake)
        if value_embedding is not None:
            flat = flat + value_embedding
        v = flat.view(B, T, self.num_kv_heads, self.head_dim)
        if self.value_mix is not None and first_value is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * first_value + mix[1] * v
        q, k = rotate(rms_norm(q), cos, sin), rotate(rms_norm(k), cos, sin)
        q = q * self.q_gain.to(q.dtype)[:, None]
        if cache is not None:
            y = attend_to_cache(q, *cache.extend(k, v), documents)
        elif documents is not None:
            y = self.attend(q, k, v, documents)
        else:
            y = self.attend(q, k, v)
        if self.exclude_self:
            y = remove_own_value(y, v)
        return self.out(y.reshape(B, T, -1), fake), v


def remove_own_value(y: Tensor, v: Tensor) -> Tensor:
    """y - (y . v^) v^ a query head, v^ the direction of the token's own value; y (B, T, H, K), v (B, T, G, K)."""
    B, T, H, K = y.shape
    direction = F.normalize(v, dim=-1)[:, :, :, None, :]
    grouped = y.view(B, T, v.size(2), H // v.size(2), K)
    return (grouped - (grouped * direction).sum(-1, keepdim=True) * direction).view(B, T, H, K)


class MLP(nn.Module):
    """Two linear layers around a squared (leaky) ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.model_dim, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.model_dim)
        self.slope = config.mlp.leaky_slope if config.mlp.activation == "leaky_relu2" else 0.0

    def forward(self, x: Tensor, fake: Tensor | None = None) -> Tensor:
        """x (B, T, D) normalized input; returns (B, T, D)."""
        return self.down(F.leaky_relu(self.up(x, fake), self.slope).square(), fake)


class Block(nn.Module):
    """Residual mix with the embedding, attention branch, MLP branch; all scales a channel."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(config.model_dim), torch.zeros(config.model_dim))))
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0

    def forward(
        self,
        x: Tensor,  # (B, T, D) stream
        x0: Tensor,  # (B, T, D) normalized embedding
        cos: Tensor,
        sin: Tensor,
        value_embedding: Tensor | None = None,
        first_value: Tensor | None = None,
        cache: LayerCache | None = None,
        fake: Tensor | None = None,
        documents: Layout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the new stream and the layer's values; see `Attention.forward` for the arguments."""
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, v = self.attention(
            rms_norm(x) * self.norm_scale, cos, sin, value_embedding, first_value, cache, fake, documents
        )
        x = x + self.attn_scale.to(x.dtype) * y
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x) * self.norm_scale, fake), v
