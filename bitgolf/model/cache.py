"""What a model remembers of the tokens it has seen, to continue from them: their ids, keys and values.

A `GenerationCache` grows with what it is given. A `FixedCache` has room for so many positions from the beginning and
takes one token a pass; its shapes never change and its position is a tensor, so a pass can be recorded as a CUDA graph.

Legend: B batch, T new positions, S positions with the new ones, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgolf.model.document_borders import document_mask

_LOOKS_BACK = 2  # tokens that the embedding of one looks back at most: the smeared one before, and its bigram


class LayerCache(Protocol):
    """Keys and values of one layer, each (B, S, G, K)."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of the new positions, (B, T, G, K), and return all there are."""
        ...


class Cache(Protocol):
    """What `GPT.hidden` continues from and extends."""

    layers: list[LayerCache]

    def take(self, tokens: Tensor, documents: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add tokens (B, T).

        Returns:
            those that their embeddings look at, (B, up to _LOOKS_BACK + T); their positions, (T,) fp32; which keys
            they may attend to, bool (T, S) or with `documents` (B, 1, T, S), or None for all up to themselves.
        """
        ...


class GenerationCache:
    """Grows by what each pass adds.

    Args:
        num_layers: of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self.tokens: Tensor | None = None
        self.grown = [_GrowingLayer() for _ in range(num_layers)]
        self.layers: list[LayerCache] = list(self.grown)

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return 0 if self.tokens is None else self.tokens.size(1)

    def take(self, tokens: Tensor, documents: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Cache`."""
        new, first = tokens.size(1), self.length
        self.tokens = tokens if self.tokens is None else torch.cat((self.tokens, tokens), dim=1)
        positions = torch.arange(first, first + new, device=tokens.device, dtype=torch.float32)
        mask = document_mask(self.tokens, new) if documents else None
        return self.tokens[:, -new - _LOOKS_BACK :], positions, mask


class _GrowingLayer:
    """Keys and values in buffers with room for more, twice as much each time that they are full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None  # (B, room, G, K)
        self._values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._keys, self._values = self._with_room(self._keys, k), self._with_room(self._values, v)
        end = self.length + k.size(1)
        self._keys[:, self.length : end], self._values[:, self.length : end] = k, v
        self.length = end
        return self.contents()

    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, views (B, S, G, K)."""
        assert self._keys is not None and self._values is not None
        return self._keys[:, : self.length], self._values[:, : self.length]

    def _with_room(self, buffer: Tensor | None, new: Tensor) -> Tensor:
        end = self.length + new.size(1)
        if buffer is not None and end <= buffer.size(1):
            return buffer
        larger = new.new_empty(new.size(0), end if buffer is None else max(end, 2 * buffer.size(1)), *new.shape[2:])
        if buffer is not None:
            larger[:, : self.length] = buffer[:, : self.length]
        return larger


class FixedCache:
    """Room for a number of positions, filled one by one after a beginning of at least _LOOKS_BACK tokens.

    Args:
        beginning: the cache of the tokens so far; its contents are copied.
        room: positions S, more than the beginning has.
    """

    def __init__(self, beginning: GenerationCache, room: int) -> None:
        assert beginning.tokens is not None and self.fits(beginning)
        device = beginning.tokens.device
        self.fixed = [_FixedLayer(layer, room) for layer in beginning.grown]
        self.layers: list[LayerCache] = list(self.fixed)
        self.recent = torch.zeros_like(beginning.tokens[:, -_LOOKS_BACK:])  # (B, _LOOKS_BACK)
        self.places = torch.arange(room, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # of the next token
        self.load(beginning)

    @staticmethod
    def fits(beginning: GenerationCache) -> bool:
        """Whether there are enough tokens to begin with."""
        return beginning.length >= _LOOKS_BACK

    def load(self, beginning: GenerationCache) -> None:
        """Go on from another cache of the same batch."""
        assert beginning.tokens is not None and self.fits(beginning)
        for fixed, layer in zip(self.fixed, beginning.grown, strict=True):
            fixed.load(layer)
        self.recent.copy_(beginning.tokens[:, -_LOOKS_BACK:])
        self.position.fill_(beginning.length)

    def take(self, tokens: Tensor, documents: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Cache`; one token a pass, which does not count before `advance`."""
        assert tokens.size(1) == 1 and not documents
        here = self.places == self.position  # (S,)
        for layer in self.fixed:
            layer.here = here[None, :, None, None]
        return torch.cat((self.recent, tokens), dim=1), self.position.float(), (self.places <= self.position)[None, :]

    def advance(self, tokens: Tensor) -> None:
        """The token of the last pass, (B, 1), is one of those seen."""
        self.recent.copy_(torch.cat((self.recent[:, 1:], tokens), dim=1))
        self.position += 1


class _FixedLayer:
    here: Tensor  # (1, S, 1, 1) bool, where the next key and value go

    def __init__(self, layer: _GrowingLayer, room: int) -> None:
        keys, values = layer.contents()
        shape = (keys.size(0), room, *keys.shape[2:])
        self.keys, self.values = keys.new_zeros(shape), values.new_zeros(shape)

    def load(self, layer: _GrowingLayer) -> None:
        self.keys[:, : layer.length], self.values[:, : layer.length] = layer.contents()

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        torch.where(self.here, k, self.keys, out=self.keys)
        torch.where(self.here, v, self.values, out=self.values)
        return self.keys, self.values


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of the last T positions to all S >= T of them, or to those that `mask` (B, 1, T, S) or (T, S) bool
    allows.

    q (B, T, H, K), k, v (B, S, G, K); returns (B, T, H, K).
    """
    (B, T, H, K), S, G = q.shape, k.size(1), k.size(2)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    # Fast kernels that take masks know no head groups: the query heads of a group become more queries of its one head.
    folded = q.view(B, T, G, H // G, K).permute(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    mask = torch.cat([mask] * (H // G), dim=-2)
    y = F.scaled_dot_product_attention(folded, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return y.view(B, G, H // G, T, K).permute(0, 3, 1, 2, 4).reshape(B, T, H, K)
