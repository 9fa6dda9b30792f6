"""The window evaluation token by token: sliding windows with cached keys and values, adapted between rounds.

The windows are those of `evaluate.window_scorer`: target t is predicted from the inputs of its window up to t. At the
beginning of a window, and after every adaptation, one pass over the window's inputs so far fills the cache. The other
targets of the window take one step each. S streams advance together, each with a context of its own. After each round
of C targets of every stream, the adapter learns from the streams' chunks in turn. With one stream the predictions are
those of the run's own evaluation.

Legend: S streams, T window, C targets between two updates, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from bitgolf.codec.range_coder import Array, Streams
from bitgolf.errors import RuleViolation
from bitgolf.evaluate.adapted_pass import AdaptedPass
from bitgolf.evaluate.tape import TokenReader
from bitgolf.evaluate.window_scorer import window_of
from bitgolf.model.cached_steps import CachedSteps, recorder_for
from bitgolf.model.gpt import GPT
from bitgolf.model.small_step import SmallStep, is_small


class WindowPredictor:
    """A `Predictor` of sliding windows."""

    def __init__(
        self,
        model: GPT,  # on its device; its weights change as the adapter learns
        streams: Streams,
        *,
        window: int,  # T
        stride: int,  # targets of a window after the first
        adapted: AdaptedPass | None = None,  # adapter and chunk, or None
        earlier: bool = False,  # the arithmetic of earlier files, see `codec.exactness`
    ) -> None:
        self.model, self.window, self.stride, self.adapted = model, window, stride, adapted
        self.device = model.embedding.device
        self.tokens = torch.zeros(streams.number, streams.longest + 1, dtype=torch.int64, device=self.device)
        self.tokens[:, 0] = streams.first_token
        self.lengths = np.zeros(streams.number, dtype=np.int64)  # tokens accepted of each stream
        self.going = np.ones(streams.number, dtype=bool)
        self.position = 0  # next target; inputs 0..position are known
        self.begin = -1  # first input of the window in `steps`; -1 = none
        small = None if earlier or not is_small(model, streams.number) else SmallStep(model, streams.number, window)
        positions = window if earlier else streams.positions(window)
        self.steps = CachedSteps(model, positions, recorder=recorder_for(model), small=small, whole=earlier)

    @torch.no_grad()
    def logits(self, going: np.ndarray) -> Tensor:
        self.going = going
        position = self.position
        if self.adapted is not None and self.adapted.adapter is not None:
            size = self.adapted.chunk_targets
            if position and position % size == 0:
                self._adapt(position - size, position)
                self.begin = -1
        begin = window_of(position, self.window, self.stride) * self.stride
        if begin != self.begin:
            self.begin = begin
            return self.steps.begin(self.tokens[:, begin : position + 1])
        return self.steps.step(self.tokens[:, position : position + 1])

    def accept(self, tokens: Array) -> None:
        self.position += 1
        self.tokens[:, self.position] = torch.as_tensor(tokens, device=self.device)
        self.lengths += self.going

    def _adapt(self, start: int, stop: int) -> None:
        """Let the adapter learn from targets start..stop-1 of every stream that has them."""
        assert self.adapted is not None and self.adapted.adapter is not None
        for stream, length in enumerate(self.lengths.tolist()):
            if length > start:
                self.adapted.adapter.update(self._reader(stream, length), start, min(stop, length))

    def _reader(self, stream: int, length: int) -> TokenReader:
        def revealed(first: int, last: int) -> np.ndarray:
            if not 0 <= first <= last <= length + 1:
                raise RuleViolation(f"an adapter asked for tokens {first}..{last - 1}; 0..{length} are coded")
            return self.tokens[stream, first:last].cpu().numpy()

        return revealed
