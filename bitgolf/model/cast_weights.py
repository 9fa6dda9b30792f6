"""The weights of a model in the dtype of its activations, cast once for many predictions.

A model casts its fp32 parameters whenever it uses them. In a step of few tokens these casts take longer than the
products: on a GPU they read and write three times the bytes of the weights. The values are the same.
"""

from __future__ import annotations

from types import TracebackType

import torch

from bitgolf.model.gpt import GPT


class CastWeights:
    """A context manager. Inside, the model has the parameters of the last `refresh`, in its `compute_dtype`."""

    def __init__(self, model: GPT) -> None:
        self._parameters = [p for p in model.parameters() if p.dtype != model.compute_dtype]
        self._cast = [p.detach().to(model.compute_dtype) for p in self._parameters]
        self._own = [p.data for p in self._parameters]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast again, after the parameters may have changed; in place, for recorded steps."""
        if self._parameters:
            torch._foreach_copy_(self._cast, [p.detach() for p in self._parameters])

    def __enter__(self) -> None:
        self._own = [p.data for p in self._parameters]
        for parameter, cast in zip(self._parameters, self._cast, strict=True):
            parameter.data = cast

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for parameter, own in zip(self._parameters, self._own, strict=True):
            parameter.data = own
