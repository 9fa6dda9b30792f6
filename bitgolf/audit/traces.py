"""Running an evaluation while every distribution that it predicts is kept, for the checks that compare them.

Legend: N tokens, N-1 targets, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bitgolf.evaluate.tape import Adapter, Scorer, ScoreTape, TokenReader, evaluate

_CPU = torch.device("cpu")


class Evaluation(Protocol):
    """Makes the scorer and adapter of an evaluation from scratch, as they are before the first target."""

    def __call__(self, tokens: np.ndarray) -> tuple[Scorer, Adapter | None]:
        """`tokens` (N,) are what will be on the tape; an honest evaluation has no use for them."""
        ...


@dataclass(frozen=True)
class Trace:
    """What an evaluation predicted: log_p (N-1, V) float32, and the losses that it committed, nll (N-1,) float32."""

    log_p: np.ndarray
    nll: np.ndarray


@dataclass(frozen=True)
class Passage:
    """A piece of text, and the evaluation that checks run on it."""

    evaluation: Evaluation
    tokens: np.ndarray  # (N,) integers; they span several windows and chunks
    vocab_size: int
    bos_id: int
    chunk_targets: int = 0  # targets between two updates (of `evaluate`); 0 when nothing is learned between chunks
    device: torch.device = _CPU  # where the evaluation runs

    def log_p(self, tokens: np.ndarray) -> np.ndarray:
        """Every distribution of a fresh evaluation of `tokens` (n,), which are the passage or a variant: (n-1, V)."""
        with deterministic_kernels(self.device):
            return trace(self.evaluation, tokens, self.chunk_targets).log_p

    def flipped(self, where: slice, rng: np.random.Generator) -> np.ndarray:
        """The tokens with all in `where` replaced, see `flip_tokens`."""
        return flip_tokens(self.tokens, where, self.vocab_size, self.bos_id, rng)


class _Recorder:
    """A scorer that keeps the distributions of another one before losses are committed."""

    def __init__(self, inner: Scorer, with_losses: bool) -> None:
        self.inner, self.with_losses = inner, with_losses
        self.log_p: list[np.ndarray] = []

    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        self.log_p.append(self.inner.distributions(read, start, stop))
        if self.with_losses:
            return self.inner.score(read, start, stop, tick)
        targets = read(start + 1, stop + 1).astype(np.int64)
        return -self.log_p[-1][np.arange(stop - start), targets]

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        return self.inner.distributions(read, start, stop)


def trace(
    evaluation: Evaluation,
    tokens: np.ndarray,  # (N,) integers
    chunk_targets: int = 0,  # of `evaluate`
    with_losses: bool = False,  # commit the scorer's own losses instead of reading them off the distributions
) -> Trace:
    """Run an evaluation over `tokens` and keep every distribution."""
    scorer, adapter = evaluation(tokens)
    recorder = _Recorder(scorer, with_losses)
    nll = evaluate(ScoreTape(tokens), recorder, adapter, chunk_targets=chunk_targets)
    return Trace(np.concatenate(recorder.log_p), nll)


def flip_tokens(tokens: np.ndarray, where: slice, vocab_size: int, bos_id: int, rng: np.random.Generator) -> np.ndarray:
    """A copy of `tokens` (N,) with every token in `where` that is not BOS replaced by another that is not."""
    flipped = tokens.copy()
    others = np.array([token for token in range(vocab_size) if token != bos_id])
    part = flipped[where]
    order = np.searchsorted(others, part)
    shift = rng.integers(1, len(others), size=len(part))
    flipped[where] = np.where(part == bos_id, part, others[(order + shift) % len(others)])
    return flipped


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference; equal infinities count as equal, NaN as the largest float."""
    if np.array_equal(a, b):
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b))
    largest = float(gap.max())
    return largest if np.isfinite(largest) else float(np.finfo(np.float64).max)


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Ask PyTorch for deterministic kernels inside the block (on CUDA; CPU kernels are deterministic).

    An operation that has no deterministic kernel still runs. The repeated run of the flip tests shows whether that made
    a difference.
    """
    if device.type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
