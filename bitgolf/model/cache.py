"""Keys and values of the tokens so far, so that generation computes only the new ones.

`GPT.hidden(tokens, cache)` adds the tokens to the cache and computes their outputs. There are two caches:

- `GenerationCache` takes any number of tokens per pass, and grows.
- `FixedCache` takes one token per pass and has a fixed number of positions. Its position is a tensor and its shapes
  change only with `reach`, so a pass can be recorded as a CUDA graph and replayed. It starts from a `GenerationCache`.

Legend: B batch, T new positions, S all positions, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.config.model import AttentionConfig, ModelConfig
from bitgolf.model.document_borders import BOS, document_mask, first_of_pieces, marked
from bitgolf.model.order import layer_order

_LOOKS_BACK = 2  # tokens before it that a token's embedding depends on: the smear takes one, the bigram of that another


class Taken(NamedTuple):
    """What a pass over new tokens needs to know."""

    recent: Tensor  # the new tokens and those before them that their embeddings depend on, (B, up to _LOOKS_BACK + T)
    positions: Tensor  # of the new tokens, (T,) fp32
    mask: Tensor | None  # of the keys that they may attend to, see `attend_to_cache`; None = all up to themselves
    near: Tensor | None  # the same for the layers with a window
    begins: Tensor | None  # where a document or piece begins among the new tokens, bool (B, T); None = nowhere


class LayerCache(Protocol):
    """Keys and values of one layer, or of one pass through a looped layer."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of new positions, (B, T, G, K), and return those of all positions, (B, S, G, K)."""
        ...

    def hand_over(self, own: Tensor) -> Tensor | None:
        """Keep the last of the new positions' upper halves of keys, (B, T, G, K / 2); returns the one kept before, (B,
        1, G, K / 2), or None at the first pass. See `layers.offset_keys`."""
        ...


class Cache(Protocol):
    """The tokens so far, and the keys and values of every layer."""

    layers: list[LayerCache]

    def take(self, tokens: Tensor, attention: AttentionConfig) -> Taken:
        """Add tokens (B, T)."""
        ...


class GenerationCache:
    """A cache that takes any number of tokens per pass. `num_positions`: of the model, `GPT.num_positions`."""

    def __init__(self, num_positions: int) -> None:
        self.tokens: Tensor | None = None
        self.grown = [_GrowingLayer() for _ in range(num_positions)]
        self.layers: list[LayerCache] = list(self.grown)

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return 0 if self.tokens is None else self.tokens.size(1)

    def take(self, tokens: Tensor, attention: AttentionConfig) -> Taken:
        new, first = tokens.size(1), self.length
        self.tokens = tokens if self.tokens is None else torch.cat((self.tokens, tokens), dim=1)
        positions = torch.arange(first, first + new, device=tokens.device, dtype=torch.float32)
        seen = marked(self.tokens, attention.within_documents)
        mask = document_mask(seen, new, attention.document_tokens) if attention.within_documents else None
        near = document_mask(seen, new, attention.document_tokens, attention.window) if attention.window else mask
        begins = None
        if attention.key_offset and attention.within_documents:
            begins = first_of_pieces(self.tokens, attention.document_tokens)[:, -new:]
        return Taken(self.tokens[:, -new - _LOOKS_BACK :], positions, mask, near, begins)


class _GrowingLayer:
    """Keys and values in buffers whose size doubles when they are full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None  # (B, S or more, G, K)
        self._values: Tensor | None = None
        self.kept: Tensor | None = None  # of the last position, see `hand_over`

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._keys, self._values = self._enlarged(self._keys, k), self._enlarged(self._values, v)
        end = self.length + k.size(1)
        self._keys[:, self.length : end], self._values[:, self.length : end] = k, v
        self.length = end
        return self.contents()

    def hand_over(self, own: Tensor) -> Tensor | None:
        before, self.kept = self.kept, own[:, -1:]
        return before

    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, views (B, S, G, K)."""
        assert self._keys is not None and self._values is not None
        return self._keys[:, : self.length], self._values[:, : self.length]

    def _enlarged(self, buffer: Tensor | None, new: Tensor) -> Tensor:
        """The buffer, or a larger copy of it if `new` does not fit."""
        end = self.length + new.size(1)
        if buffer is not None and end <= buffer.size(1):
            return buffer
        larger = new.new_empty(new.size(0), end if buffer is None else max(end, 2 * buffer.size(1)), *new.shape[2:])
        if buffer is not None:
            larger[:, : self.length] = buffer[:, : self.length]
        return larger


class FixedCache:
    """A cache of fixed size, which takes one token per pass.

    A pass attends to the first `reach` positions, so short rows cost less; the caller raises `reach` in time. A layer
    with a window of W positions has a ring of W: position p is in slot p modulo W.

    Args:
        beginning: the cache of the tokens so far, at least _LOOKS_BACK of them; its contents are copied.
        size: number of positions S, more than the beginning has.
        config: of the model.
        rings: False gives every layer S positions.
    """

    def __init__(self, beginning: GenerationCache, size: int, config: ModelConfig, rings: bool = True) -> None:
        assert beginning.tokens is not None and self.fits(beginning)
        device, window = beginning.tokens.device, config.attention.window
        self.size = self.reach = size
        self.ring = window if rings and 0 < window < size else 0  # 0 = none
        sizes = [
            self.ring if self.ring and config.attention.layer_window(position.layer) else size
            for position in layer_order(config, looped=True)
        ]
        self.fixed = [_FixedLayer(layer, size) for layer, size in zip(beginning.grown, sizes, strict=True)]
        self.layers: list[LayerCache] = list(self.fixed)
        self.queries = config.num_heads // config.num_kv_heads  # per head of keys
        self.dtype = self.fixed[0].keys.dtype
        self.recent = torch.zeros_like(beginning.tokens[:, -_LOOKS_BACK:])  # (B, _LOOKS_BACK)
        self.places = torch.arange(size, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # of the next token
        self.document = torch.zeros_like(self.recent[:, :1])  # where the document of each row begins, (B, 1)
        self.load(beginning)

    @staticmethod
    def fits(beginning: GenerationCache) -> bool:
        """Whether the cache has enough tokens to begin with."""
        return beginning.length >= _LOOKS_BACK

    def load(self, beginning: GenerationCache) -> None:
        """Copy the contents of another cache of the same batch."""
        assert beginning.tokens is not None and self.fits(beginning)
        for fixed, layer in zip(self.fixed, beginning.grown, strict=True):
            fixed.load(layer)
        self.recent.copy_(beginning.tokens[:, -_LOOKS_BACK:])
        self.position.fill_(beginning.length)
        begins = torch.where(beginning.tokens == BOS, self.places[: beginning.length], 0)
        self.document.copy_(begins.amax(1, keepdim=True))

    def take(self, tokens: Tensor, attention: AttentionConfig) -> Taken:
        """See `Cache`; one token per pass, which is not part of the cache before `advance`."""
        assert tokens.size(1) == 1
        slot = self.position % self.ring if self.ring else self.position
        for layer in self.fixed:
            layer.slot, layer.reach = (slot if layer.size == self.ring else self.position), self.reach
        places, begins = self.places[: self.reach], None
        first = torch.zeros_like(self.position)  # that a query may attend to, (1,) or (B, 1)
        if attention.within_documents:
            first = self._document(tokens)
            if attention.document_tokens:  # of the piece
                first = self.position - (self.position - first) % attention.document_tokens
            begins = first == self.position
        allowed = (places <= self.position) & (places >= first)  # (reach,) or (B, reach)
        mask = near = self._added(allowed)
        if self.ring:
            slots = places[: self.ring]
            near = self._added(self.position - (self.position - slots) % self.ring >= first)
        elif attention.window:
            near = self._added(allowed & (places > self.position - attention.window))
        return Taken(torch.cat((self.recent, tokens), dim=1), self.position.float(), mask, near, begins)

    def _added(self, allowed: Tensor) -> Tensor:
        """What a mask (S,) or (B, S) adds to scores, see `attend_to_cache`: (1 or B, 1, H / G, S)."""
        rows = allowed.view(-1, 1, 1, allowed.size(-1)).repeat(1, 1, self.queries, 1)
        return torch.zeros_like(rows, dtype=self.dtype).masked_fill_(~rows, -torch.inf)

    def advance(self, tokens: Tensor) -> None:
        """Make the token of the last pass, (B, 1), part of the cache."""
        self.recent.copy_(torch.cat((self.recent[:, 1:], tokens), dim=1))
        self.document.copy_(self._document(tokens))
        for layer in self.fixed:
            layer.advance()
        self.position += 1

    def _document(self, tokens: Tensor) -> Tensor:
        """Where the document of the next token, (B, 1), begins in each row."""
        return torch.where(tokens == BOS, self.position, self.document)


class _FixedLayer:
    slot: Tensor  # (1,) int64, of the next key and value
    reach: int

    def __init__(self, layer: _GrowingLayer, size: int) -> None:
        keys, values = layer.contents()
        shape = (keys.size(0), size, *keys.shape[2:])
        self.size = size
        self.keys, self.values = keys.new_zeros(shape), values.new_zeros(shape)
        # Of the last position and of the one that is computed, see `hand_over`; None in layers without an offset.
        self.kept = None if layer.kept is None else layer.kept.clone()
        self.own = None if layer.kept is None else layer.kept.clone()

    def load(self, layer: _GrowingLayer) -> None:
        lap = layer.length - layer.length % self.size  # first position of the last round
        for buffer, contents in zip((self.keys, self.values), layer.contents(), strict=True):
            buffer[:, : layer.length - lap] = contents[:, lap:]
            if lap:
                buffer[:, layer.length - lap :] = contents[:, layer.length - self.size : lap]
        if self.kept is not None and layer.kept is not None:
            self.kept.copy_(layer.kept)

    def hand_over(self, own: Tensor) -> Tensor | None:
        assert self.own is not None
        self.own.copy_(own)
        return self.kept

    def advance(self) -> None:
        """Make the position of the last pass the last one."""
        if self.kept is not None and self.own is not None:
            self.kept.copy_(self.own)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        # With deterministic algorithms an indexed copy would sort its indices first. One index has only one order.
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        self.keys.index_copy_(1, self.slot, k)
        self.values.index_copy_(1, self.slot, v)
        torch.use_deterministic_algorithms(deterministic)
        return self.keys[:, : self.reach], self.values[:, : self.reach]


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Causal attention of the last T positions, q (B, T, H, K), to all S positions, k and v (B, S, G, K).

    A `mask`, bool (B, 1, T, S) or (T, S), replaces the causal mask. A mask of numbers is added to the scores of the T x
    H / G queries of a head of keys, (1 or B, 1, T * H / G, S). Returns (B, T, H, K).
    """
    (B, T, H, K), S, G = q.shape, k.size(1), k.size(2)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    # Fast kernels with masks do not support head groups, so the query heads of a group become queries of one head.
    folded = q.view(B, T, G, H // G, K).permute(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    if mask.dtype == torch.bool:
        mask = torch.cat([mask] * (H // G), dim=-2)
    y = F.scaled_dot_product_attention(folded, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return y.view(B, G, H // G, T, K).permute(0, 3, 1, 2, 4).reshape(B, T, H, K)
