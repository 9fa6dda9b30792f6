"""A language model in two parts: hidden states of whole windows, and logits of chosen positions.

A sliding window of T tokens scores its last `stride` positions only, and the head is the widest matrix of a small
model, so the scorers run the head on no other position. A `GPT` has both parts. `CompiledModel` and `Tempered` pass
them on. For any other model, which maps tokens to all logits at once, the logits count as the hidden states, and the
second part returns them unchanged.

Legend: B rows, T window, D model width, P positions, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Block

Model = Callable[[Tensor], Tensor]
"""Tokens (B, T) int64 -> logits (B, T, V) float32, causal."""


class SplitModel(Protocol):
    """Both parts; the logits of a position depend on its hidden state and its token alone."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, T, D), causal."""
        ...

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(P, D) and the tokens there, (P,) int64 -> (P, V) float32."""
        ...


def split(model: Model) -> SplitModel:
    """The two parts of a model that has them; else a view whose first part is the whole model."""
    # The class is asked, because the result of `torch.compile` shows the methods of the uncompiled model inside.
    if all(callable(getattr(type(model), part, None)) for part in ("hidden", "logits")):
        return cast(SplitModel, model)
    return _Whole(model)


def scoring_model(model: GPT, *, compiled: bool) -> Model:
    """The model as the scorers call it; it is compiled only on a GPU, and only if `compiled` asks for it."""
    return CompiledModel(model) if compiled and model.embedding.device.type == "cuda" else model


class CompiledModel:
    """A GPT with both parts compiled, and the whole. Each is compiled at its first call, for the shape of that call."""

    def __init__(self, model: GPT, backend: str = "inductor") -> None:
        self.compile = functools.partial(torch.compile, dynamic=False, backend=backend)
        self._hidden, self._logits, self._whole = (self.compile(f) for f in (model.hidden, model.logits, model))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) float32."""
        return self._whole(tokens)

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, T, D)."""
        return self._hidden(tokens)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(P, V) float32."""
        return self._logits(hidden, tokens)


def compiled_blocks_(model: GPT, backend: Any = "inductor") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`Block.__call__` and `Block.two_lanes` compiled, each once for all layers that are alike.

    The layers' norm scales become tensors, because a compiled function is made for one value of a number.
    """
    from torch._dynamo import config as compiler  # takes a second to import

    for block in model.blocks:
        assert isinstance(block, Block)
        if model.config.ln_scale:
            block.norm_scale = torch.as_tensor(block.norm_scale, device=model.embedding.device)
    compiler.recompile_limit = max(compiler.recompile_limit, 64)  # a few kinds of layers times lengths of a pass
    forward, two_lanes = (torch.compile(f, dynamic=False, backend=backend) for f in (Block.forward, Block.two_lanes))
    return forward, two_lanes


class Tempered:
    """A model whose logits are divided by `temperature` > 0."""

    def __init__(self, model: Model, temperature: float) -> None:
        self.model, self.temperature = model, temperature
        self._parts = split(model)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) float32."""
        return self.model(tokens) / self.temperature

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, T, D)."""
        return self._parts.hidden(tokens)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(P, V) float32."""
        return self._parts.logits(hidden, tokens) / self.temperature


class _Whole:
    """A model that computes all logits at once."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def hidden(self, tokens: Tensor) -> Tensor:
        logits = self.model(tokens)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            shape = tuple(tokens.shape)
            raise ValueError(f"the model must map tokens {shape} to logits {(*shape, 'V')}, got {tuple(logits.shape)}")
        return logits

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return hidden
