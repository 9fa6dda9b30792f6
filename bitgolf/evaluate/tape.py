"""The score tape: one left-to-right pass that scores every target once and reveals it only afterwards.

A tape of N tokens has N-1 targets. Target t is token t+1 given tokens 0..t; token 0 is given. A scorer reads the tokens
of a chunk and commits one loss per target. An adapter can read committed targets only, and may then change the model
for later chunks. Scores are append-only. Every score and update enters the event log with its range and the version of
the model's state. So adaptation *between* chunks is score-first by construction. *Inside* a chunk causality is a
property of the model, which the audit's flip tests prove.
Source: rules C3 and C4 of the challenge (docs/rules.md#c3; issue 1017 of openai/parameter-golf).

Legend: N tokens, N-1 targets, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from bitgolf.errors import DataError, RuleViolation, require_type
from bitgolf.run.progress import Progress, silent

EVENT_LOG_FORMAT = 1
# The float32 rounding error of logsumexp - logit is smaller than this for logits up to several hundred.
NEGATIVE_NLL_TOLERANCE = 1e-4
# The chunk of the published score-first runs with the largest gain (PR 576 and 585).
ADAPTER_CHUNK_TARGETS = 131_072
_HASH_BLOCK = 1 << 22

TokenReader = Callable[[int, int], np.ndarray]
"""`read(start, stop)`: a copy of tokens start..stop-1; RuleViolation when one of them may not be read yet."""


class Scorer(Protocol):
    """Gives the predictive distribution of every target of a chunk, and the loss of its token."""

    def score(self, read: TokenReader, start: int, stop: int, tick: Callable[[int], None] | None = None) -> np.ndarray:
        """Losses of targets start..stop-1: (stop - start,) float32, nats.

        `read` gives tokens 0..stop; token `stop` is that of the last target. `tick(done)` is called with the number
        of targets done.
        """
        ...

    def distributions(self, read: TokenReader, start: int, stop: int) -> np.ndarray:
        """Log-probabilities (stop - start, V) float32 of the same targets; reads tokens 0..stop-1 only."""
        ...


class Adapter(Protocol):
    """Changes the model between chunks; it learns from tokens that are already scored."""

    def update(self, revealed: TokenReader, start: int, stop: int) -> None:
        """Learn after targets start..stop-1 are committed. `revealed` gives tokens 0..stop only."""
        ...


class ScoreTape:
    """Tokens to be scored, the losses committed so far, and the log of scores and updates.

    Args:
        tokens: (N,) integers, N >= 2; neither copied (a memory map works) nor changed.
    Raises:
        DataError: the tokens are not one-dimensional, not integers, or fewer than two.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        require_type("tokens", tokens, np.ndarray, "a numpy array of integers")
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DataError(
                f"a score tape takes a one-dimensional array of integers, not {tokens.dtype} of shape {tokens.shape}"
            )
        if len(tokens) < 2:
            raise DataError(f"a score tape needs at least 2 tokens (one target), got {len(tokens)}")
        self._tokens = tokens
        self._nll = np.zeros(len(tokens) - 1, dtype=np.float32)
        self._events: list[dict[str, Any]] = []
        self._num_scored = 0
        self._state = 0

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def num_targets(self) -> int:
        return len(self._nll)

    @property
    def num_scored(self) -> int:
        """Targets committed so far; they are always targets 0..num_scored-1."""
        return self._num_scored

    @property
    def state(self) -> int:
        """Version of the model's state: the number of updates so far."""
        return self._state

    @property
    def complete(self) -> bool:
        return self._num_scored == self.num_targets

    @property
    def nll(self) -> np.ndarray:
        """Losses committed so far, (num_scored,) float32, nats; a copy."""
        return self._nll[: self._num_scored].copy()

    def chunk(self, stop: int) -> TokenReader:
        """The reader for a scorer of targets below `stop`: tokens 0..stop, its own targets included."""
        if not self._num_scored < stop <= self.num_targets:
            raise RuleViolation(
                f"a chunk that ends at target {stop} cannot be opened: {self._num_scored} of "
                f"{self.num_targets} targets are scored"
            )

        def read(start: int, end: int) -> np.ndarray:
            return self._read(start, end, stop + 1, f"the scorer of the chunk that ends at target {stop}")

        return read

    def revealed(self, start: int, stop: int) -> np.ndarray:
        """A copy of tokens start..stop-1, all of which must be scored already (token 0 is given).

        Raises RuleViolation for tokens that are not yet revealed.
        """
        return self._read(start, stop, self._num_scored + 1, "an adapter")

    def commit(self, start: int, stop: int, nll: np.ndarray) -> None:
        """Append the losses of targets start..stop-1 and reveal their tokens.

        Args:
            nll: (stop - start,) floats, nats.
        Raises:
            RuleViolation: a gap, an overlap, a range outside the tape, a wrong number of losses, or a loss that is
                NaN, infinite or negative beyond rounding. Nothing is committed then.
        """
        if start < self._num_scored:
            raise RuleViolation(
                f"targets {start}..{min(stop, self._num_scored) - 1} are already scored; a "
                "target is scored exactly once and its first score stands"
            )
        if start > self._num_scored:
            raise RuleViolation(
                f"scores of targets {start}..{stop - 1} leave a gap: the next target is {self._num_scored}"
            )
        if not start < stop <= self.num_targets:
            raise RuleViolation(
                f"targets {start}..{stop - 1} are not on the tape, which has targets 0..{self.num_targets - 1}"
            )
        values = np.asarray(nll)
        if values.shape != (stop - start,):
            raise RuleViolation(
                f"targets {start}..{stop - 1} need {stop - start} losses in one dimension, got shape {values.shape}"
            )
        if values.dtype.kind != "f":
            raise RuleViolation(f"losses are floats in nats, got {values.dtype}")
        values = values.astype(np.float32)
        finite = np.isfinite(values)
        if not finite.all():
            worst = int(np.argmin(finite))
            raise RuleViolation(
                f"the loss of target {start + worst} is {values[worst]}; every target needs "
                "a finite loss (a probability above zero)"
            )
        if values.min() < -NEGATIVE_NLL_TOLERANCE:
            worst = int(np.argmin(values))
            raise RuleViolation(
                f"the loss of target {start + worst} is {values[worst]:.6g} nats, a "
                "probability above one: the distribution is not normalized"
            )
        self._nll[start:stop] = values
        self._num_scored = stop
        last = self._events[-1] if self._events else None
        if last is not None and last["event"] == "score":
            last["targets"][1] = stop
        else:
            self._events.append({"event": "score", "targets": [start, stop], "state": self._state})

    def record_update(self, start: int, stop: int) -> None:
        """Log that the model's state changed after it learned from tokens start..stop-1.

        An empty range means that no token was read. Raises RuleViolation when a token is not yet scored.
        """
        if not 0 <= start <= stop or stop > self._num_scored + 1:
            raise RuleViolation(
                f"an update from tokens {start}..{stop - 1} is not allowed: only tokens "
                f"0..{self._num_scored} are scored"
            )
        self._state += 1
        self._events.append({"event": "update", "tokens": [start, stop], "state": self._state})

    @property
    def event_log(self) -> dict[str, Any]:
        """The contents of `tape.json`: sizes, the tokens' SHA-256 and the events in order; a copy.

        A `score` event holds its `targets` [start, stop) and the `state` of the model (consecutive scores with one
        state are one event). An `update` event holds the `tokens` [start, stop) that were read and the new `state`.
        """
        events = [
            {**event, **{k: list(event[k]) for k in ("targets", "tokens") if k in event}} for event in self._events
        ]
        return {
            "format": EVENT_LOG_FORMAT,
            "num_tokens": self.num_tokens,
            "num_targets": self.num_targets,
            "num_scored": self._num_scored,
            "tokens_sha256": tokens_sha256([self._tokens]),
            "events": events,
        }

    def _read(self, start: int, stop: int, limit: int, who: str) -> np.ndarray:
        if not 0 <= start <= stop:
            raise RuleViolation(f"tokens {start}..{stop - 1} are not a range of the tape")
        if stop > limit:
            raise RuleViolation(
                f"{who} asked for tokens {start}..{stop - 1}, but only tokens 0..{limit - 1} "
                "may be read before more are scored"
            )
        return np.array(self._tokens[start:stop], copy=True)


def tokens_sha256(parts: Iterable[np.ndarray]) -> str:
    """SHA-256 of the concatenated token ids as little-endian uint32, whatever their dtype."""
    digest = hashlib.sha256()
    for tokens in parts:
        for start in range(0, len(tokens), _HASH_BLOCK):
            digest.update(tokens[start : start + _HASH_BLOCK].astype("<u4").tobytes())
    return digest.hexdigest()


def evaluate(
    tape: ScoreTape, scorer: Scorer, adapter: Adapter | None = None, progress: Progress = silent, chunk_targets: int = 0
) -> np.ndarray:
    """Score the unscored targets of the tape, chunk by chunk: score, commit, reveal, adapt.

    Args:
        tape: usually without scores; a partly scored tape is continued.
        scorer: see `Scorer`; with several ranks every rank calls `evaluate` with the same tape.
        adapter: called after each chunk except the last, after which no target follows.
        progress: called with stage "score" and the number of targets scored.
        chunk_targets: targets per chunk; 0 means the whole tape without an adapter, and 131,072 with one.
    Returns:
        The losses of all targets, (N-1,) float32, nats.
    Raises:
        RuleViolation: the scorer's losses are not admissible, or the scorer or adapter reads ahead.
    """
    if chunk_targets < 0:
        raise ValueError(f"chunk_targets {chunk_targets} must be 0 (automatic) or the number of targets per chunk")
    size = chunk_targets or (tape.num_targets if adapter is None else ADAPTER_CHUNK_TARGETS)
    progress("score", tape.num_scored, tape.num_targets)
    while not tape.complete:
        start, stop = tape.num_scored, min(tape.num_scored + size, tape.num_targets)

        def tick(done: int, start: int = start) -> None:
            progress("score", start + done, tape.num_targets)

        tape.commit(start, stop, scorer.score(tape.chunk(stop), start, stop, tick))
        progress("score", stop, tape.num_targets)
        if adapter is not None and not tape.complete:
            _adapt(tape, adapter, start, stop)
    return tape.nll


def _adapt(tape: ScoreTape, adapter: Adapter, start: int, stop: int) -> None:
    """Let the adapter learn; log the smallest range that holds all tokens that it read."""
    reads: list[tuple[int, int]] = []

    def revealed(first: int, last: int) -> np.ndarray:
        tokens = tape.revealed(first, last)
        reads.append((first, last))
        return tokens

    adapter.update(revealed, start, stop)
    tape.record_update(min((first for first, _ in reads), default=0), max((last for _, last in reads), default=0))
