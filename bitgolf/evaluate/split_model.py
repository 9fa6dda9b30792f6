"""A language model in two halves: hidden states of whole windows, and logits of chosen positions.

A sliding window of T tokens scores its last `stride` positions only, and the head is the widest matrix of a small
model, so the scorers run it on nothing else. A `GPT` has both halves; `CompiledModel` and `Tempered` hand
them on; of any other model, which maps tokens to all logits at once, the logits are the "hidden states" and the second
half leaves them as they are.

Legend: B rows, T window, D model width, P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from bitgolf.model.gpt import GPT

Model = Callable[[Tensor], Tensor]
"""Tokens (B, T) int64 -> logits (B, T, V) float32, causal."""


class SplitModel(Protocol):
    """Both halves; the logits of a position depend on its hidden state alone."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> (B, T, D), causal."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(P, D) -> (P, V) float32."""
        ...


def split(model: Model) -> SplitModel:
    """The halves of a model that has them, else all of it as the first half."""
    # Asked of the class: what `torch.compile` returns shows the halves of the model inside, which are not compiled.
    if all(callable(getattr(type(model), half, None)) for half in ("hidden", "logits")):
        return cast(SplitModel, model)
    return _Whole(model)


class CompiledModel:
    """A GPT compiled by halves for scoring, and as a whole for those who train on what is scored.

    Each is compiled when it is first called, for the one shape that it is called with.
    """

    def __init__(self, model: GPT, backend: str = "inductor") -> None:
        self._hidden = torch.compile(model.hidden, dynamic=False, backend=backend)
        self._logits = torch.compile(model.logits, dynamic=False, backend=backend)
        self._whole = torch.compile(model, dynamic=False, backend=backend)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) float32."""
        return self._whole(tokens)

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, T, D)."""
        return self._hidden(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """(P, V) float32."""
        return self._logits(hidden)


class Tempered:
    """A model whose logits are divided by `temperature` > 0."""

    def __init__(self, model: Model, temperature: float) -> None:
        self.model, self.temperature = model, temperature
        self._halves = split(model)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) float32."""
        return self.model(tokens) / self.temperature

    def hidden(self, tokens: Tensor) -> Tensor:
        """(B, T, D)."""
        return self._halves.hidden(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """(P, V) float32."""
        return self._halves.logits(hidden) / self.temperature


class _Whole:
    """A model that gives all logits at once."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def hidden(self, tokens: Tensor) -> Tensor:
        logits = self.model(tokens)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            shape = tuple(tokens.shape)
            raise ValueError(f"the model must map tokens {shape} to logits {(*shape, 'V')}, got {tuple(logits.shape)}")
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden
