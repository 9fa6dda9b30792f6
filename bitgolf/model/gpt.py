"""The whole network: tied embedding, blocks with U-Net skips, softcapped logits.

    tokens -> E[t] + bigram -> RMS norm -> smear -> x0 -> blocks -> RMS norm -> E^T -> c tanh(z / c) -> logits

With `bigram.every_layer`, bigrams are added before every layer instead.

The first half of the layers keep their output. Every later layer adds the last output kept, times one learned weight
per channel, while any is left (as in the challenge's baseline, main:train_gpt.py). `order` has these pairs, and the
layers that run several times. Layers from `lanes_from` on have two lanes, which begin equal. Skips are added to lane 0,
and the output is the mean of both. With `attention.within_documents` nothing passes from one document of a row to the
next. `layers` has the parts of a block, `embeddings` those before it.

Legend: B batch, T time, D model width, V vocabulary, L layers, G key/value heads, K head width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgolf.config import ModelConfig
from bitgolf.errors import ConfigError
from bitgolf.model.backends import attention_function
from bitgolf.model.cache import Cache
from bitgolf.model.cross_entropy import softcapped_cross_entropy
from bitgolf.model.document_borders import BOS, DocumentBackend, document_backend, first_of_pieces, marked
from bitgolf.model.embeddings import BigramHash, SignedBigrams, Smear, ValueEmbedding, ValueTables
from bitgolf.model.extra_targets import ExtraTargets, cross_entropy
from bitgolf.model.layers import Block, Delta, Linear, Pass, learns_on_cpu, rms_norm
from bitgolf.model.order import layer_order, num_skip_rows
from bitgolf.model.rotary import rotary_frequencies

log = logging.getLogger(__name__)


class GPT(nn.Module):
    """Decoder-only language model.

    Args:
        config: sizes and components.
        context_length: tokens per full window. It decides the rotary base (NTK rule), but no size.
        compute_dtype: of activations, and of the matrices when they are used; parameters are fp32.
    """

    def __init__(self, config: ModelConfig, context_length: int, *, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.context_length, self.compute_dtype = config, context_length, compute_dtype
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.model_dim))
        self.bigram = (
            (SignedBigrams if config.bigram.every_layer else BigramHash)(config) if config.bigram.rows else None
        )
        self.smear = Smear(config) if config.smear.gate != "none" else None
        ve = config.value_embedding
        self.value_embedding = (ValueTables if ve.gated else ValueEmbedding)(config) if ve.layers else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.orders = {looped: layer_order(config, looped) for looped in (False, True)}
        skips = num_skip_rows(config)
        self.skip_weights = nn.Parameter(torch.ones(skips, config.model_dim)) if skips else None
        self.skip_gates = nn.Parameter(torch.zeros(skips, config.model_dim)) if skips and config.skip_gates else None
        self.windows = config.attention.windows  # training may change them for a while
        self.has_marks = False  # training rows of `DocumentOrder`: an id of V or more begins a document, and is id - V
        self.set_attention_backend("math")
        self.loss_kernel: Callable[..., Tensor] | None = None
        self.frequencies: Tensor
        self.register_buffer("frequencies", rotary_frequencies(config, context_length), persistent=False)
        self.forbidden: Tensor | None  # see `forbid_`
        self.register_buffer("forbidden", None, persistent=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name."""
        return {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}

    def initialize_(self, generator: torch.Generator) -> GPT:
        """Draw the initial matrices from `generator`, a CPU generator; gains and scales keep their constants.

        `uniform` is the baseline's U(+-1/sqrt(in)). `orthogonal` is that of the seed systems: gain 1 if both sides are
        at least 64, and gain 1/sqrt(2L) for the projections of bigram and value embedding. With both, the output
        projections of attention and MLP start at zero.
        """
        config, device = self.config, self.embedding.device
        self.to("cpu")  # so that one seed gives the same weights on any device
        orthogonal: dict[Tensor, float] = {}  # matrices and their gains
        with torch.no_grad():
            self.embedding.normal_(0.0, config.embed_init_std, generator=generator)
            if self.bigram is not None:
                self.bigram.table.zero_()
            for name, parameter in self.named_parameters():
                if name.startswith("value_embedding") and name.endswith(".table"):
                    parameter.normal_(0.0, 0.01, generator=generator)
            for name, module in self.named_modules():
                if not isinstance(module, Linear):
                    continue
                if name.endswith(("attention.out", "mlp.down")):
                    module.weight.zero_()
                elif config.init == "orthogonal" and min(module.weight.shape) >= 64:
                    orthogonal[module.weight.normal_(generator=generator)] = (
                        (2 * config.num_layers) ** -0.5 if name.endswith(".project") else 1.0
                    )
                else:
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(_orthogonalize_, orthogonal, orthogonal.values()))
        torch.set_num_threads(threads)
        return self.to(device)

    def forbid_(self, pairs: np.ndarray | None) -> None:
        """From now on give pairs of tokens almost no probability.

        `pairs`: (V, V / 8) uint8 of `data.canonical.forbidden_pairs`; None = no pairs.
        """
        self.forbidden = None if pairs is None else torch.from_numpy(pairs).to(self.embedding.device)

    def set_attention_backend(self, backend: str) -> None:
        """Use the named backend (see `bitgolf.model.backends`) in every layer."""
        attention = self.config.attention
        self.masked: DocumentBackend | None = None
        if attention.is_masked:
            self.masked = document_backend(backend, attention.document_tokens)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.attend = attention_function(backend) if self.masked is None else self.masked.attend

    def use_kernels(self) -> str:
        """Compute the parts around attention, and the loss, with Triton kernels (NVIDIA GPUs; the head width is a power
        of two), and the MLP with `mlp_quack` on a Hopper GPU. Returns the names of the packages that are used."""
        if self.config.head_dim & (self.config.head_dim - 1):
            raise ConfigError(
                f"train.kernels 'triton' needs a head width that is a power of two, not {self.config.head_dim}; use "
                "'compiler'"
            )
        from bitgolf.model.loss_triton import softcapped_cross_entropy as loss_kernel

        self.loss_kernel, device = loss_kernel, self.embedding.device
        hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
        mlp_kernel: Callable[..., Tensor] | None = None
        if hopper and self.compute_dtype == torch.bfloat16 and find_spec("quack"):
            from bitgolf.model.mlp_quack import mlp, refusal

            if reason := refusal(device):
                log.warning("quack-kernels cannot make its kernels; a training step takes 3 %% longer: %s", reason)
            else:
                mlp_kernel = mlp
        elif hopper:
            log.warning("without the package quack-kernels (bitgolf[hopper]) a training step takes 3 % longer")
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.use_kernels()
            block.mlp.kernel = mlp_kernel
        return "triton, quack" if mlp_kernel else "triton"

    @contextmanager
    def layer_by_layer(self) -> Iterator[None]:
        """Inside, every layer is called by itself, with its hooks, and not by a kernel for several layers."""
        mlps = [block.mlp for block in self.blocks if isinstance(block, Block)]
        kernel = mlps[0].kernel
        try:
            for mlp in mlps:
                mlp.kernel = None
            yield
        finally:
            for mlp in mlps:
                mlp.kernel = kernel

    @property
    def num_positions(self) -> int:
        """Number of layers that a pass runs with the loop on; a cache holds keys and values for each."""
        return len(self.orders[True])

    def embed(self, tokens: Tensor, borders: Tensor, fake: Tensor | None = None) -> Tensor:
        """Normalized, smeared embedding (B, T, D) of tokens (B, T), the first of which has no predecessor.

        `borders` (B, T): the tokens, but a BOS wherever a document begins.
        """
        raw = F.embedding(tokens, self.embedding).to(self.compute_dtype)
        if isinstance(self.bigram, BigramHash):
            raw = raw + self.bigram(tokens, borders, self.compute_dtype, fake)
        if self.smear is not None and self.smear.version == "v2":
            return rms_norm(self.smear(raw, borders))
        x = rms_norm(raw)
        return x if self.smear is None else self.smear(x, borders)

    def hidden(
        self,
        # (B, T) int64 ids below V, but see `has_marks`: a window from its first position, or with a cache the next
        # tokens.
        tokens: Tensor,
        cache: Cache | None = None,  # of the tokens before them; they are added to it
        fake: Tensor | None = None,  # sharpness of fake quantization (training only); None = the float weights
        looped: bool = True,  # run the looped layers several times; only the first part of training does not
        # what adapters add in each run of a layer, in the order of the runs; none by default.
        deltas: Sequence[Mapping[str, Delta]] = (),
        # `Block.__call__` and `Block.two_lanes`, or their compiled forms.
        blocks: tuple[Callable[..., Any], Callable[..., Any]] = (Block.__call__, Block.two_lanes),
    ) -> Tensor:
        """Normalized output of the last block, (B, T, D) in `compute_dtype`."""
        T, attention = tokens.size(1), self.config.attention
        documents = near = begins = None
        if cache is None:
            tokens, borders = self._without_marks(tokens)
            recent = tokens
            x = self.embed(tokens, borders, fake)
            positions = torch.arange(0, tokens.size(1), device=tokens.device, dtype=torch.float32)
            if attention.key_offset and attention.within_documents:
                begins = first_of_pieces(borders, attention.document_tokens)
            if self.masked is not None:
                near, documents = self.masked.layouts(marked(borders, attention.within_documents), self.windows)
        else:
            recent, positions, documents, near, begins = cache.take(tokens, attention)
            borders = recent
            x = self.embed(recent, borders)[:, -T:]
        angles = positions[:, None] * self.frequencies
        cos, sin = angles.cos().to(self.compute_dtype), angles.sin().to(self.compute_dtype)
        shared = Pass(cos, sin, documents, fake, near, self.windows, begins=begins)
        ve = {} if self.value_embedding is None else self.value_embedding(tokens, self.compute_dtype, fake)
        pairs = None
        if isinstance(self.bigram, SignedBigrams):
            pairs = self.bigram(recent, borders, self.compute_dtype)[:, -T:]

        x0, first_value = x, None
        lane1: Tensor | None = None  # while there is one, x is lane 0
        skips: list[Tensor] = []
        for place, (layer, keeps, row) in enumerate(self.orders[looped]):
            block = self.blocks[layer]
            if pairs is not None and isinstance(self.bigram, SignedBigrams):
                x = x + self.bigram.layer_scales[layer].to(x.dtype) * pairs
            if self.config.lanes_from and layer == self.config.lanes_from:
                lane1 = x
            if row >= 0:
                x = self._add_skip(x, skips.pop(), row)
            layer_cache = None if cache is None else cache.layers[place]
            if deltas:
                shared = shared._replace(deltas=deltas[place])
            rest = (x0, shared, ve.get(layer), first_value, layer_cache)
            if lane1 is None:
                x, v = blocks[0](block, x, *rest)
            else:
                (x, lane1), v = blocks[1](block, (x, lane1), *rest)
            if place == 0 and self.config.attention.value_residual:
                first_value = v
            if keeps:
                skips.append(x)
        return rms_norm(x if lane1 is None else 0.5 * (x + lane1))

    def _without_marks(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of a row (B, T), see `has_marks`; and the same with a BOS wherever a document begins."""
        if not self.has_marks:
            return tokens, tokens
        first = tokens >= self.config.vocab_size
        tokens = tokens - self.config.vocab_size * first
        return tokens, tokens.masked_fill(first, BOS)

    def _add_skip(self, x: Tensor, skip: Tensor, index: int) -> Tensor:
        """The stream x with an earlier layer's output, both (B, T, D); `index` of the skip's weights and gates."""
        assert self.skip_weights is not None
        skip = self.skip_weights[index].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + skip
        gate = torch.sigmoid(self.skip_gates[index].to(x.dtype))
        return gate * x + (1 - gate) * skip

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Softcapped fp32 logits (..., V) of the output of `hidden` (..., D) at `tokens` (...) int64."""
        return self.capped(F.linear(hidden, self.embedding.to(hidden.dtype)), tokens)

    def capped(self, raw: Tensor, tokens: Tensor) -> Tensor:
        """The logits of raw ones, (..., V). Tokens that cannot follow `tokens` (...) get -2c, below all others."""
        cap = self.config.logit_softcap
        logits = cap * torch.tanh(raw.float() / cap)
        if self.forbidden is None:
            return logits
        bits = self.forbidden[tokens][..., None] >> torch.arange(8, dtype=torch.uint8, device=tokens.device) & 1
        return logits.masked_fill(bits.flatten(-2)[..., : logits.size(-1)].bool(), -2 * cap)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        fake: Tensor | None = None,
        looped: bool = True,
        extra: ExtraTargets | None = None,
    ) -> Tensor:
        """Logits (B, T, V) fp32, or the mean cross entropy in nats (a scalar) when `targets` (B, T) are given.

        `extra`: targets that are learned besides.
        """
        hidden = self.hidden(tokens, None, fake, looped)
        loss = softcapped_cross_entropy if learns_on_cpu(hidden) else self.loss_kernel
        if targets is not None and extra is not None:
            columns, weights = extra.columns(targets, self._without_marks(tokens)[1])
        elif targets is not None:
            columns, weights = targets[..., None], targets.new_ones(1, dtype=torch.float32)
        if targets is not None and loss is not None and self.forbidden is None:
            embedding = self.embedding.to(hidden.dtype)
            return loss(hidden.flatten(0, 1), embedding, columns.flatten(0, 1), self.config.logit_softcap, weights)
        logits = self.logits(hidden, tokens)
        if targets is None:
            return logits
        if extra is not None:
            return cross_entropy(logits, columns, weights)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def _orthogonalize_(matrix: Tensor, gain: float) -> None:
    """Make a Gaussian matrix (R, C) `gain` times an orthogonal one, as `torch.nn.init.orthogonal_` does."""
    tall = matrix if matrix.size(0) >= matrix.size(1) else matrix.T
    q, r = torch.linalg.qr(tall)
    tall.copy_(q * r.diagonal().sign() * gain)


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters of the model that `config` describes, without allocating it."""
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config, context_length=8).parameters())
