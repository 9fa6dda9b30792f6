"""One token through a small model on a CPU, in NumPy: the same function as `GPT.hidden` and `logits` with a cache.

A token through a model of a million parameters is some hundred operations on a few hundred numbers each. PyTorch spends
most of the time on starting them. NumPy starts an operation several times faster, and here matrices that follow each
other are joined and scales are folded into them: 0.3 ms per token in place of 1.9 ms, with one thread (the model of the
preset demo, Intel Xeon). `tests/model/test_small_step.py` compares it with the model. Models with lanes or with
attention within documents, and models on GPUs, take their steps in PyTorch.

Legend: S streams that advance together, D model width, V vocabulary, H query heads, G key/value heads, K head width,
F MLP width, W positions of a window, n positions so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from bitgolf.model.cache import GenerationCache
from bitgolf.model.document_borders import BOS
from bitgolf.model.embeddings import BigramHash, ValueEmbedding
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import GATE_SCALE, Block

MOST_PARAMETERS = 8_000_000  # with more, the products dominate, and PyTorch has faster ones on several cores
MOST_STREAMS = 128
_EPS = np.float32(torch.finfo(torch.float32).eps)
_SAFE_SCORE = 60.0  # exp of larger scores could leave float32, so they are taken relative to the largest
_BIGRAM_FACTORS = 36313, 27191  # see `embeddings.bigram_rows`


def is_small(model: GPT, num_streams: int = 1) -> bool:
    """Whether `SmallStep` computes this model for so many streams."""
    config = model.config
    return (
        model.embedding.device.type == "cpu"
        and model.compute_dtype == torch.float32
        and not config.lanes_from
        and not config.attention.within_documents
        and not config.bigram.every_layer
        and not config.value_embedding.gated
        and num_streams <= MOST_STREAMS
        and sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS
    )


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside the block NumPy multiplies with one thread. Several would wait for each other at every small product."""
    with _threads().limit(limits=1, user_api="blas"):
        yield


def blas_name() -> str:
    """The library that multiplies for NumPy, and the processor that it chose its code for."""
    for library in _threads().info():
        if library["user_api"] == "blas" and "numpy" in library["filepath"]:
            return f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
    return f"numpy {np.__version__}"


class SmallStep:
    """Predicts the next token of S streams, from the cache of a pass over the tokens before.

    Args:
        model: see `is_small`. Its weights are read by `load`.
        num_streams: S.
        window: W, most positions.
    """

    def __init__(self, model: GPT, num_streams: int, window: int) -> None:
        config = model.config
        self.model, self.config = model, config
        places, shape = model.num_positions, (num_streams, config.num_kv_heads, window, config.head_dim)
        self.keys = [np.zeros(shape, np.float32).swapaxes(2, 3).copy() for _ in range(places)]  # (S, G, K, W)
        self.values = [np.zeros(shape, np.float32) for _ in range(places)]
        self.kept: dict[int, np.ndarray] = {}  # upper halves of the last keys, (S, G, K / 2), of places with an offset
        angles = np.arange(window, dtype=np.float32)[:, None] * model.frequencies.numpy()
        cos, sin, rest = np.cos(angles), np.sin(angles), config.head_dim - 2 * angles.shape[1]
        # x -> x * cos + x[permutation] * sin rotates pairs; channels without rotation have cos 1 and sin 0.
        self.cos = np.concatenate((cos, cos, np.ones((window, rest), np.float32)), axis=1)
        self.sin = np.concatenate((sin, -sin, np.zeros((window, rest), np.float32)), axis=1)
        half = angles.shape[1]
        self.permutation = np.r_[half : 2 * half, :half, 2 * half : 2 * half + rest]
        self.length = 0
        self._versions: list[tuple[int, int]] = []

    def load(self, cache: GenerationCache) -> None:
        """Continue after the tokens of `cache`, at least one, with the weights that the model has now."""
        versions = [(p.data_ptr(), p._version) for p in self.model.parameters()]
        if versions != self._versions:
            self._weights, self._versions = _Weights(self.model), versions
        assert cache.tokens is not None
        self.length = cache.length
        for place, layer in enumerate(cache.grown):
            keys, values = layer.contents()
            self.keys[place][..., : self.length] = keys.permute(0, 2, 3, 1).numpy()
            self.values[place][:, :, : self.length] = values.transpose(1, 2).numpy()
            if layer.kept is not None:
                self.kept[place] = layer.kept[:, 0].numpy().copy()
        tokens = cache.tokens[:, -2:].numpy()
        self.previous = tokens[:, -1]
        self.previous_raw = self._raw(self.previous, tokens[:, 0] if self.length > 1 else None)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (S, V) float32 after the next tokens (S,) int64."""
        weights, config = self._weights, self.config
        x = self._embed(tokens)
        ve = None if weights.value_table is None else weights.value_table[tokens]
        x0, first_value = weights.mix0 * x, None  # (L, S, D), the share of each layer
        skips: list[np.ndarray] = []
        for place, (layer, keeps, row) in enumerate(self.model.orders[True]):
            if row >= 0:
                assert weights.skip_weights is not None
                skip = weights.skip_weights[row] * skips.pop()
                gate = None if weights.skip_gates is None else weights.skip_gates[row]
                x = x + skip if gate is None else gate * x + (1 - gate) * skip
            block = weights.blocks[layer]
            x = block.mix * x + x0[layer]
            y, value = self._attend(place, block, x, ve, first_value)
            if place == 0 and config.attention.value_residual:
                first_value = value
            x += y @ block.out
            up = x @ block.up
            np.maximum(up, block.slope * up if block.slope else 0, out=up)
            up *= up
            up = up @ block.down
            up *= _inverse_square(x)  # the activation squares the scale of the norm
            x += up
            if keeps:
                skips.append(x)
        self.length += 1
        logits = x @ weights.head
        logits *= np.sqrt(_inverse_square(x))
        np.tanh(logits, out=logits)
        logits *= np.float32(config.logit_softcap)
        if self.model.forbidden is not None:
            bits = np.unpackbits(self.model.forbidden.numpy()[tokens], axis=1, bitorder="little")
            logits[bits[:, : logits.shape[1]] > 0] = -2 * config.logit_softcap
        return logits

    def _raw(self, tokens: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """Embeddings (S, D) before normalization and smear; `before` (S,): the tokens before, None at position 0."""
        weights = self._weights
        raw = weights.embedding[tokens]
        if weights.bigrams is not None:
            rows = len(weights.bigrams)
            a, b = _BIGRAM_FACTORS
            pairs = np.full(len(tokens), rows - 1) if before is None else (a * tokens ^ b * before) % (rows - 1)
            raw = raw + weights.bigrams[pairs]
        return raw

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        """Embeddings (S, D) of the next tokens, which are then the previous ones."""
        raw, smear = self._raw(tokens, self.previous), self.model.smear
        before = self.previous_raw
        self.previous, self.previous_raw = tokens, raw
        if smear is None:
            return _normed(raw)
        seen = (tokens != BOS)[:, None].astype(np.float32) if smear.document_mask else np.float32(1)
        gate = self._weights.smear_gate
        if smear.version == "v1":
            return (1 - gate) * _normed(raw) + gate * (_normed(before) * seen)
        open_ = _sigmoid(raw[:, : len(gate)] @ gate)[:, None]
        return _normed(raw + self._weights.smear_strength * open_ * (before * seen))

    def _attend(
        self, place: int, block: _BlockWeights, x: np.ndarray, ve: np.ndarray | None, first: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs of the heads (S, H * K), and the values (S, G, K) of the next tokens, from the stream x (S, D)."""
        config, n, streams = self.config, self.length, len(x)
        H, G, K = config.num_heads, config.num_kv_heads, config.head_dim
        joined = x @ block.qkv  # (S, (H + 2 G) K), before the scale of the norm
        square = _inverse_square(x)  # (S, 1)
        scale = np.sqrt(square)
        qk, value = joined[:, : (H + G) * K].reshape(streams, H + G, K), scale * joined[:, (H + G) * K :]
        if ve is not None and block.ve_scale is not None:
            value += block.ve_scale * ve
        value = value.reshape(streams, G, K)
        if first is not None and block.value_mix is not None:
            value = block.value_mix[0] * first + block.value_mix[1] * value
        length = np.add.reduce(qk * qk, axis=-1)
        length *= square * np.float32(1 / K)
        length += _EPS
        factor = scale / np.sqrt(length, out=length)  # of the norm of each head, (S, H + G)
        factor *= block.gain
        qk = qk * self.cos[n] + qk.take(self.permutation, axis=-1) * self.sin[n]
        qk *= factor[..., None]
        keys, values = self.keys[place], self.values[place]
        keys[..., n], values[:, :, n] = qk[:, H:], value
        if block.key_offset:
            keys[..., K // 2 :, n], self.kept[place] = self.kept[place], qk[:, H:, K // 2 :].copy()
        queries = qk[:, :H].reshape(streams, G, H // G, K)
        first_key = max(0, n + 1 - block.window) if block.window else 0
        scores = queries @ keys[..., first_key : n + 1]  # (S, G, H / G, keys)
        if block.largest_score > _SAFE_SCORE:
            scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        y = scores @ values[:, :, first_key : n + 1]  # (S, G, H / G, K)
        y /= np.add.reduce(scores, axis=-1, keepdims=True)
        if block.exclude_self:
            norm = np.sqrt(np.add.reduce(value * value, axis=-1, keepdims=True))
            own = (value / np.maximum(norm, np.float32(1e-12)))[:, :, None]
            y -= np.add.reduce(y * own, axis=-1, keepdims=True) * own
        y = y.reshape(streams, H, K)
        if block.gate is not None:
            logits = scale * (x[:, : len(block.gate)] @ block.gate)
            y *= _sigmoid(np.float32(GATE_SCALE) * logits)[..., None]
        return y.reshape(streams, H * K), value


@dataclass(frozen=True)
class _BlockWeights:
    """One layer: matrices (inputs, outputs) with the scales around them."""

    mix: np.ndarray  # (D,)
    qkv: np.ndarray  # (D, (H + 2 G) K)
    gain: np.ndarray  # (H + G,): gain of a query head over sqrt(K), 1 for a key head
    largest_score: float  # of a query of length gain and a key of length sqrt(K), sqrt(2 K) with an offset
    out: np.ndarray  # (H K, D)
    up: np.ndarray  # (D, F)
    down: np.ndarray  # (F, D)
    slope: np.float32
    value_mix: np.ndarray | None  # (2,)
    ve_scale: np.float32 | None
    gate: np.ndarray | None  # (channels, H)
    exclude_self: bool
    window: int  # most keys, the token's own included; 0 = all
    key_offset: bool


class _Weights:
    """The weights of a model as one step needs them."""

    @torch.no_grad()
    def __init__(self, model: GPT) -> None:
        cap = model.config.logit_softcap
        self.embedding = _array(model.embedding)
        self.head = _array(model.embedding.T / cap)  # (D, V)
        self.mix0 = _array(torch.stack([cast(Block, block).resid_mix[1] for block in model.blocks]))[
            :, None
        ]  # (L, 1, D)
        self.blocks = [_block_weights(model, layer) for layer in range(len(model.blocks))]
        self.skip_weights = None if model.skip_weights is None else _array(model.skip_weights)
        self.skip_gates = None if model.skip_gates is None else _array(model.skip_gates.sigmoid())
        self.bigrams = self.value_table = None
        if isinstance(model.bigram, BigramHash):  # (rows, D)
            self.bigrams = _array(model.bigram.scale * model.bigram.project(model.bigram.table))
        if isinstance(embedding := model.value_embedding, ValueEmbedding):  # (V, G K)
            self.value_table = _array(embedding.scale * embedding.project(embedding.table))
        self.smear_gate, self.smear_strength = np.empty(0), np.float32(0)
        if (smear := model.smear) is not None:
            self.smear_gate = _array(smear.gate.sigmoid() if smear.version == "v1" else smear.gate)
            self.smear_strength = np.float32(0 if smear.version == "v1" else float(smear.strength))


def _block_weights(model: GPT, layer: int) -> _BlockWeights:
    config, block = model.config, model.blocks[layer]
    assert isinstance(block, Block)
    attention, scale = block.attention, block.norm_scale
    joined = torch.cat((attention.query.weight, attention.key.weight, attention.value.weight))
    gain = torch.cat((attention.q_gain * config.head_dim**-0.5, torch.ones(config.num_kv_heads)))
    ve_scale = None
    if isinstance(model.value_embedding, ValueEmbedding) and layer in config.value_embedding.layers:
        ve_scale = np.float32(float(model.value_embedding.layer_scales[config.value_embedding.layers.index(layer)]))
    return _BlockWeights(
        _array(block.resid_mix[0]),
        _array((scale * joined).T),
        _array(gain),
        float(gain[: config.num_heads].abs().max()) * config.head_dim * (2**0.5 if attention.key_offset else 1),
        _array((block.attn_scale[:, None] * attention.out.weight).T),
        _array((scale * block.mlp.up.weight).T),
        _array((block.mlp_scale[:, None] * block.mlp.down.weight).T),
        np.float32(config.mlp.slope),
        None if attention.value_mix is None else _array(attention.value_mix),
        ve_scale,
        None if attention.gate is None else _array((scale * attention.gate).T),
        attention.exclude_self,
        config.attention.window if attention.has_window else 0,
        attention.key_offset,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _normed(x: np.ndarray) -> np.ndarray:
    """RMS normalization of the last axis."""
    return x * np.sqrt(_inverse_square(x))


def _inverse_square(x: np.ndarray) -> np.ndarray:
    """1 / (mean of the squares of the last axis + eps), (..., 1): the square of the scale of RMS normalization."""
    squares = np.add.reduce(x * x, axis=-1, keepdims=True)  # a method such as `mean` takes several times longer
    squares *= np.float32(1 / x.shape[-1])
    squares += _EPS
    return np.divide(np.float32(1), squares, out=squares)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
