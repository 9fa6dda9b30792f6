"""The input of the first block (token embedding, hashed bigrams, smear of the previous token), and value embeddings.

Order, as in PR 348, 576, 585 and 693: x = E[t] + bigram -> RMS norm -> smear -> x0. The first position of a window has
no previous token. With `smear.document_mask` the first token of a document has none for the smear, and with
`attention.within_documents` none for the bigram hash, so nothing leaks from one document into the next.
Sources: BigramHash and smear v1 from PR 65 and 287; smear v2 from PR 1667 with the BOS fix of PR 1851; value
embeddings (VE) from PR 374.

Legend: B batch, T time, D model width, V vocabulary, G key/value heads, K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.config import ModelConfig
from bitgolf.model.document_borders import BOS
from bitgolf.model.layers import Linear

_SIGN_ROWS = 8192  # of the hash of a pair's signs (modded-nanogpt PR 299)
_SMEAR_WINDOW = 12  # channels that the gate of smear v2 reads (PR 1667)


def bigram_rows(tokens: Tensor, rows: int, borders: Tensor | None = None) -> Tensor:
    """Row of the bigram table for every position of `tokens` (B, T) int64: (B, T) int64 below `rows`.

    Position 0, and every BOS of `borders` (B, T), has no previous token and gets the last row. The other positions hash
    the pair of tokens into rows 0 .. rows - 2.
    """
    hashed = (36313 * tokens[:, 1:] ^ 27191 * tokens[:, :-1]) % (rows - 1)
    if borders is not None:
        hashed = torch.where(borders[:, 1:] == BOS, rows - 1, hashed)
    return F.pad(hashed, (1, 0), value=rows - 1)


class BigramHash(nn.Module):
    """One learned vector per hashed pair of tokens, projected to the model width and scaled."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.documents = config.attention.within_documents
        self.table = nn.Parameter(torch.empty(config.bigram.rows, config.bigram.dim))
        self.project = Linear(config.bigram.dim, config.model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, tokens: Tensor, borders: Tensor, dtype: torch.dtype, fake: Tensor | None = None) -> Tensor:
        """tokens and borders (B, T) int64, see `GPT.embed`, -> (B, T, D) of `dtype`."""
        hashed = bigram_rows(tokens, self.table.size(0), borders if self.documents else None)
        rows = F.embedding(hashed, self.table).to(dtype)
        return self.scale.to(dtype) * self.project(rows, fake)


class SignedBigrams(nn.Module):
    """One learned vector per hashed pair of tokens, added to the first b channels before every layer.

    Pairs share rows. A random sign per channel, which depends on another hash of the pair, makes their common vectors
    differ. The rows start at zero. Source: modded-nanogpt PR 299.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.documents, self.width = config.attention.within_documents, config.model_dim
        self.table = nn.Parameter(torch.empty(config.bigram.rows, config.bigram.dim))
        self.layer_scales = nn.Parameter(torch.full((config.num_layers,), 0.05))
        self.signs: Tensor
        self.register_buffer("signs", hashed_signs(_SIGN_ROWS, config.bigram.dim), persistent=False)

    def forward(self, tokens: Tensor, borders: Tensor, dtype: torch.dtype) -> Tensor:
        """tokens and borders (B, T) int64, see `GPT.embed`, -> (B, T, D) of `dtype`.

        The output is zero above channel b, and not yet multiplied by the scale of a layer.
        """
        before = F.pad(tokens[:, :-1], (1, 0))
        if self.documents:
            before = torch.where(borders == BOS, 0, before)
        hashed = bigram_rows(tokens, self.table.size(0), borders if self.documents else None)
        rows = F.embedding(hashed, self.table).to(dtype)
        signed = rows * F.embedding((before ^ tokens) % _SIGN_ROWS, self.signs).to(dtype)
        return F.pad(signed, (0, self.width - signed.size(-1)))


def hashed_signs(rows: int, columns: int) -> Tensor:
    """Pseudorandom signs (rows, columns) fp32, 1 or -1, the same everywhere: bits of a hash of the position."""
    hashed = torch.arange(rows * columns) * -7046029254386353131  # 2^64 / golden ratio
    hashed = (hashed ^ (hashed >> 31)) * -4658895280553007687  # the first mixing step of splitmix64
    return (1 - 2 * (hashed >> 40 & 1)).float().view(rows, columns)


class Smear(nn.Module):
    """Mixes the previous token's embedding into each position, by the gate of `smear.gate` (v1 or v2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.version, self.document_mask = config.smear.gate, config.smear.document_mask
        if self.version == "v1":
            self.gate = nn.Parameter(torch.zeros(config.model_dim))
        else:
            self.gate = nn.Parameter(torch.zeros(min(_SMEAR_WINDOW, config.model_dim)))
            self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (B, T, D) with its tokens (B, T); returns (B, T, D)."""
        previous = F.pad(x[:, :-1], (0, 0, 1, 0))
        if self.document_mask:
            previous = previous * (tokens != BOS)[..., None].to(x.dtype)
        if self.version == "v1":
            gate = torch.sigmoid(self.gate.to(x.dtype))
            return (1 - gate) * x + gate * previous
        gate = torch.sigmoid(x[..., : self.gate.numel()] @ self.gate.to(x.dtype))
        return x + self.strength.to(x.dtype) * gate[..., None] * previous


class ValueEmbedding(nn.Module):
    """One table of token vectors, whose projection is added to the values of the layers in `value_embedding.layers`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.vocab_size, config.value_embedding.dim))
        self.project = Linear(config.value_embedding.dim, config.kv_dim)
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.layers = config.value_embedding.layers
        self.layer_scales = nn.Parameter(torch.ones(len(self.layers)))

    def forward(self, tokens: Tensor, dtype: torch.dtype, fake: Tensor | None = None) -> dict[int, Tensor]:
        """tokens (B, T) -> (B, T, G * K) of each layer."""
        shared = self.scale.to(dtype) * self.project(F.embedding(tokens, self.table).to(dtype), fake)
        return {layer: scale.to(dtype) * shared for layer, scale in zip(self.layers, self.layer_scales, strict=True)}


class ValueTables(nn.ModuleDict):
    """A table of token vectors for each layer of `value_embedding.layers`; `Attention.value_gate` weighs them."""

    def __init__(self, config: ModelConfig) -> None:
        layers = config.value_embedding.layers
        super().__init__({str(layer): _ValueTable(config.vocab_size, config.kv_dim) for layer in layers})

    def forward(self, tokens: Tensor, dtype: torch.dtype, fake: Tensor | None = None) -> dict[int, Tensor]:
        """tokens (B, T) -> (B, T, G * K) of each layer."""
        return {int(layer): F.embedding(tokens, part.table).to(dtype) for layer, part in self.items()}  # type: ignore[arg-type]


class _ValueTable(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, width))
