"""Predictions token by token: one pass over the beginning of a window fills a cache, then each token takes one step.

Generation and the codec predict this way. A step has a few hundred small operations, and starting them takes several
times longer than their work. On CUDA a step is therefore recorded as a graph and replayed. A recorded step has fixed
shapes, so it attends with a mask to a fixed number of positions: the first 256, 512, and so on up to the whole window.
Each of these steps is recorded when it is first needed. On a CPU, steps of small models run in NumPy (`small_step`).

Legend: S streams, T window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitgolf.model.cache import Cache, FixedCache, GenerationCache
from bitgolf.model.cast_weights import CastWeights
from bitgolf.model.gpt import GPT
from bitgolf.model.small_step import SmallStep

# Most tokens of one forward pass that fills caches; it bounds the memory of the pass and its mask.
FILL_TOKENS = 16_384
_LEAST_REACH = 256  # positions that the first recorded step attends to

Predict = Callable[[Tensor, Cache], Tensor]
"""Logits (S, V) after the last of the next tokens (S, n); the tokens are added to the cache."""

Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Turns a function that is run once into a function that can be run repeatedly."""


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record the kernels of `run`; the result replays them and returns the tensor of `run`, overwritten.

    `run` is called three times (libraries allocate in their first calls), so its effects must be repeatable.
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
    return cuda_graph if model.embedding.device.type == "cuda" else None


class CachedSteps:
    """Predicts the next token of S streams that advance together."""

    def __init__(
        self,
        model: GPT,  # on its device; its weights may change in place between two windows
        window: int,  # most positions of a window, T
        *,
        # the prediction, None for the logits of the model. For one token it must launch the same kernels each time.
        predict: Predict | None = None,
        recorder: Recorder | None = None,  # how to record a step, or None to run each step anew
        small: SmallStep | None = None,  # takes the steps of the model in place of `predict`
        whole: bool = False,  # attend to the whole window in each step, as in files before "steps" (codec.exactness)
    ) -> None:
        assert predict is None or small is None
        self.model, self.window, self.recorder, self.small, self.whole = model, window, recorder, small, whole
        self.predict = predict or self._logits
        self._weights = CastWeights(model)
        self._grown: GenerationCache | None = None  # of the current window, until a recorded step takes over
        self._fixed: FixedCache | None = None
        self._position = 0  # of the next token
        self._token: Tensor | None = None  # (S, 1), input of the recorded steps
        self._replays: dict[int, Callable[[], Tensor]] = {}  # recorded steps by their reach

    @torch.no_grad()
    def begin(self, tokens: Tensor) -> Tensor:
        """Start a window with tokens (S, n); returns the logits (S, V) after the last of them."""
        cache = GenerationCache(self.model.num_positions)
        step = max(1, FILL_TOKENS // len(tokens))
        pieces = [tokens[:, i : i + step] for i in range(0, tokens.size(1), step)]
        self._weights.refresh()
        with self._weights:
            for piece in pieces[:-1]:
                self.predict(piece, cache)
            logits = self.predict(pieces[-1], cache)
        self._grown, self._position = cache, cache.length
        if self.small is not None:
            self.small.load(cache)
        return logits

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Logits (S, V) after the next token (S, 1); a later step may overwrite the tensor."""
        if self.small is not None:
            return torch.from_numpy(self.small.step(token[:, 0].numpy()))
        self._position += 1
        if self.recorder is None or (self._grown is not None and not FixedCache.fits(self._grown)):
            assert self._grown is not None, "a step before the beginning of a window"
            with self._weights:
                return self.predict(token, self._grown)
        if self._grown is not None:
            self._fix(self._grown, token)
            self._grown = None
        assert self._fixed is not None and self._token is not None
        self._token.copy_(token)
        logits = self._recorded(self._fixed, self._token)()
        self._fixed.advance(token)
        return logits

    def _logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        return self.model.logits(self.model.hidden(tokens, cache)[:, -1], tokens[:, -1])

    def _fix(self, grown: GenerationCache, token: Tensor) -> None:
        """Continue in a cache of fixed size."""
        if self._fixed is None:
            self._fixed = FixedCache(grown, self.window, self.model.config, rings=not self.whole)
            self._token = token.clone()
        else:
            self._fixed.load(grown)

    def _recorded(self, cache: FixedCache, token: Tensor) -> Callable[[], Tensor]:
        """The step that attends to enough positions; the first call for so many records it."""
        assert self.recorder is not None
        reach = cache.size if self.whole else _LEAST_REACH
        while reach < self._position:
            reach *= 2
        cache.reach = reach = min(reach, cache.size)
        if reach not in self._replays:
            with self._weights:
                self._replays[reach] = self.recorder(lambda: self.predict(token, cache))
        return self._replays[reach]
