"""One token after the other: a pass over what a window begins with fills a cache, then each token takes a step.

On CUDA a step is recorded once as a graph and replayed: launching its few hundred kernels one by one would take
several times what they take. A recorded step has fixed shapes, so it attends to a cache with room for the whole window
and a mask. Models that keep documents apart are stepped unrecorded, their masks depend on the tokens.

Legend: S streams, T window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.model.cache import Cache, FixedCache, GenerationCache
from bitgolf.model.gpt import GPT

# Tokens of a forward pass that fills caches: bounds what a pass and its mask take.
FILL_TOKENS = 16_384

Predict = Callable[[Tensor, Cache], Tensor]
"""Logits (S, V) after the last of the next tokens (S, n), which the cache takes in."""

Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Makes something that can be run again and again out of what is run once."""


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what `run` launches; the result replays it and returns the tensor that `run` returned, written anew.

    `run` is called several times first (libraries allocate in their first calls), so it must not count.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def recorder_for(model: GPT) -> Recorder | None:
    """How steps of this model are recorded; None where they are not."""
    on_cuda = model.embedding.device.type == "cuda"
    return cuda_graph if on_cuda and not model.config.attention.within_documents else None


class Stepper:
    """Predicts the next token of S streams that advance together.

    Args:
        model: on its device; its weights may change in place between steps.
        predict: what the model predicts; for one token it must launch the same work each time.
        window: most positions of a window, T.
        recorder: how to record a step, or None not to.
    """

    def __init__(self, model: GPT, predict: Predict, window: int, recorder: Recorder | None) -> None:
        self.model, self.predict, self.window, self.recorder = model, predict, window, recorder
        self._grown: GenerationCache | None = None  # the window while it grows
        self._fixed: FixedCache | None = None
        self._token: Tensor | None = None  # (S, 1), what the recorded step reads
        self._replay: Callable[[], Tensor] | None = None

    @torch.no_grad()
    def begin(self, tokens: Tensor) -> Tensor:
        """Forget the window and begin one with tokens (S, n); returns logits (S, V)."""
        cache = GenerationCache(len(self.model.blocks))
        step = max(1, FILL_TOKENS // len(tokens))
        pieces = [tokens[:, i : i + step] for i in range(0, tokens.size(1), step)]
        for piece in pieces[:-1]:
            self.predict(piece, cache)
        logits = self.predict(pieces[-1], cache)
        self._grown = cache
        return logits

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Logits (S, V) after the next token (S, 1); the tensor may be written again by the next step."""
        if self.recorder is None or (self._grown is not None and not FixedCache.fits(self._grown)):
            assert self._grown is not None, "a step before the beginning of a window"
            return self.predict(token, self._grown)
        if self._grown is not None:
            self._fix(self._grown, token)
            self._grown = None
        assert self._fixed is not None and self._token is not None and self._replay is not None
        self._token.copy_(token)
        logits = self._replay()
        self._fixed.advance(token)
        return logits

    def _fix(self, grown: GenerationCache, token: Tensor) -> None:
        """Go on in a cache of fixed size; the first time record the step that goes on in it."""
        if self._fixed is not None:
            self._fixed.load(grown)
            return
        assert self.recorder is not None
        cache, static = FixedCache(grown, self.window), token.clone()
        self._fixed, self._token = cache, static
        self._replay = self.recorder(lambda: self.predict(static, cache))
