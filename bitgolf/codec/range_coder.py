"""Token streams to bytes and back: one range coder per stream, and one predictor for all streams.

Coder and decoder run the same loop: the predictor gives logits for the next token of every stream, the coder writes or
the decoder reads the tokens, and the predictor receives them. The decoder has no other source for predictions, so an
exact result proves that no prediction used its own target or later tokens.

A token is coded as its interval of the counts. The coder needs no table on the host: it collects the intervals and
writes them with the library constriction (arXiv 2201.01741; 64-bit state, 32-bit words, 24-bit probabilities). The
decoder computes the quantiles of all streams in NumPy, and their tokens are looked up where the logits are, so a step
on a GPU sends a few numbers per stream.

Legend: S streams, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bitgolf.codec.counts import COUNT_BITS, TOTAL, token_counts, token_counts_on_device
from bitgolf.errors import ArtifactError, ConfigError

WORD_BYTES = 4  # a payload is a whole number of words
_ROWS_AT_ONCE = 512  # streams whose counts are computed together: their int64 temporaries are large
_STEPS_AT_ONCE = 256  # steps after which the intervals leave the device

Array = Any  # of NumPy on a CPU, of PyTorch on another device


@dataclass(frozen=True)
class Streams:
    """What a predictor is told of the S streams before their first token."""

    number: int  # S
    longest: int  # most tokens of a stream, without `first_token`
    num_targets: int  # of the whole text, for the learning rate schedule
    first_token: int  # before every stream (the BOS)


class Predictor(Protocol):
    """Predicts the next token of S streams that advance together; encoder and decoder call it in the same way."""

    def logits(self, going: np.ndarray) -> Tensor:
        """Logits (S, V) float32 of every stream's next token, which a later call may overwrite. `going` (S,) bool:
        streams that have a next token; the rows of the others are arbitrary."""
        ...

    def accept(self, tokens: np.ndarray) -> None:
        """The next tokens, (S,) int64; 0 for streams that have none."""
        ...


def encode_streams(
    predictor: Predictor,
    streams: Sequence[np.ndarray],  # S of (n,) integers below V
    tick: Callable[[int], None] = lambda done: None,  # called with the number of tokens done in all streams
) -> list[bytes]:
    """One payload per stream. Raises ArtifactError when a prediction is not finite."""
    lengths = np.array([len(stream) for stream in streams], dtype=np.int64)
    done, steps = 0, int(lengths.max(initial=0))
    intervals = np.empty((steps, len(streams), 2), dtype=np.int64)
    recent: list[Array] = []  # of the last steps
    for step in range(steps):
        going = lengths > step
        logits = predictor.logits(going)
        tokens = np.array([stream[step] if step < len(stream) else 0 for stream in streams], dtype=np.int64)
        recent += _by_rows(_interval, logits, tokens)
        if (step + 1) % _STEPS_AT_ONCE == 0 or step == steps - 1:
            block = np.arange(step + 1 - len(recent) // 2, step + 1)
            intervals[block] = np.stack(_on_host(recent)).reshape(len(block), 2, -1).swapaxes(1, 2)
            _require_counts(intervals[block, :, 1][lengths > block[:, None]])
            recent.clear()
        predictor.accept(tokens)
        done += int(going.sum())
        tick(done)
    return [_payload(intervals[:length, stream]) for stream, length in enumerate(lengths.tolist())]


def decode_streams(
    predictor: Predictor,
    payloads: Sequence[bytes],  # S
    lengths: Sequence[int],  # tokens of each stream; the most tokens if `stop_token` ends it
    stop_token: int | None = None,  # the last token of a stream, wherever it occurs
    tick: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """The streams, S of (n,) int64.

    Raises ArtifactError when a payload is not one that `encode_streams` writes. A range coder notices only some
    damage; most damaged words decode to other tokens.
    """
    decoders = _Decoders(payloads)
    limits = np.array(lengths, dtype=np.int64)
    streams: list[np.ndarray] = []  # tokens of each step
    ends = np.zeros(len(payloads), dtype=np.int64)
    going = limits > 0
    done = step = 0
    while going.any():
        logits = predictor.logits(going)
        tokens, before, own = _on_host(_by_rows(_token_and_interval, logits, decoders.quantiles(going)))
        tokens = np.where(going, tokens, 0)
        decoders.advance(going, before, own)
        streams.append(tokens)
        ends += going
        predictor.accept(tokens)
        step += 1
        done += int(going.sum())
        tick(done)
        going = going & (limits > step)
        if stop_token is not None:
            going &= tokens != stop_token
    decoders.finish()
    table = np.array(streams, dtype=np.int64).reshape(step, len(payloads))
    return [table[:end, stream].copy() for stream, end in enumerate(ends.tolist())]


def _by_rows(function: Callable[[Array, Array], tuple[Array, ...]], logits: Tensor, values: np.ndarray) -> list[Array]:
    """Results of `function` for the counts of logits (S, V) and values (S,), computed where the logits are."""
    on_host = logits.device.type == "cpu"
    pieces = []
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        counts = token_counts(logits[rows].numpy()) if on_host else token_counts_on_device(logits[rows])
        own = values[rows] if on_host else torch.from_numpy(values[rows]).to(logits.device)
        pieces.append(function(counts, own))
    if len(pieces) == 1:
        return list(pieces[0])
    return [(np if on_host else torch).concatenate(parts) for parts in zip(*pieces, strict=True)]


def _on_host(arrays: list[Array]) -> list[np.ndarray]:
    """Arrays of equal shape in NumPy, in one transfer."""
    return arrays if isinstance(arrays[0], np.ndarray) else list(torch.stack(arrays).cpu().numpy())


def _interval(counts: Array, tokens: Array) -> tuple[Array, ...]:
    """Sum of the counts (S, V) before each token (S,), and its count: (S,) each."""
    rows = (tokens * 0 + 1).cumsum(0) - 1  # 0, 1, 2, ... on the device of the tokens
    own = counts[rows, tokens]
    return counts.cumsum(1)[rows, tokens] - own, own


def _token_and_interval(counts: Array, quantiles: Array) -> tuple[Array, ...]:
    """The token whose interval of the counts (S, V) contains each quantile (S,), and the interval: (S,) each."""
    ends = counts.cumsum(1)
    tokens = (ends[:, :-1] <= quantiles[:, None]).sum(1)
    return (tokens, *_interval(counts, tokens))


def _payload(intervals: np.ndarray) -> bytes:
    """The words of one stream of intervals (n, 2)."""
    try:
        import constriction
    except ImportError as error:
        raise ConfigError("compressing needs constriction, which is not installed; decompressing does not") from error
    before, own = intervals.T
    after = TOTAL - before - own
    # The library takes whole tables: three entries, of which the token is the middle one, have the same intervals as a
    # table of all tokens. At the edges the token is the first or last entry. The library adds 1 to every entry.
    first, last = before == 0, (after == 0) & (before > 0)
    tables = np.stack((before, own, after), axis=1)
    tables[first] = np.stack((own, after - 1, np.ones_like(own)), axis=1)[first]
    tables[last] = np.stack((np.ones_like(own), before - 1, own), axis=1)[last]
    coder = constriction.stream.queue.RangeEncoder()
    entries = np.where(first, 0, np.where(last, 2, 1)).astype(np.int32)
    if len(entries):
        model = constriction.stream.model.Categorical(lazy=True)
        coder.encode(entries, model, (tables - 1).astype(np.float32))
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def _require_counts(counts: np.ndarray) -> None:
    if (counts < 1).any():
        raise ArtifactError("the model predicts logits that are not finite; its artifact or its adaptation is broken")


class _Decoders:
    """The decoders of S range-coded payloads, which advance together.

    `lower` and `range` are the interval that the tokens so far have left of 2^64, and `point` is the place in it that
    the words name. Whenever the interval is shorter than 2^32, one more word is read.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        for stream, payload in enumerate(payloads):
            if len(payload) % WORD_BYTES:
                raise ArtifactError(f"the payload of stream {stream} has {len(payload)} bytes, not whole words of 4")
        self.words = np.frombuffer(b"".join(payloads), dtype="<u4")
        self.ends = np.cumsum([len(payload) // WORD_BYTES for payload in payloads])  # of the words of each stream
        self.next = np.concatenate(([0], self.ends[:-1]))  # word that is read next
        self.point = np.zeros(len(payloads), dtype=np.uint64)
        for _ in range(2):
            self._read(np.arange(len(payloads)))
        self.lower = np.zeros(len(payloads), dtype=np.uint64)
        self.range = np.full(len(payloads), 2**64 - 1, dtype=np.uint64)

    def quantiles(self, going: np.ndarray) -> np.ndarray:
        """The place of each stream's next token among the counts, (S,) int64; arbitrary for streams not `going`."""
        quantiles = (self.point - self.lower) // (self.range >> np.uint64(COUNT_BITS))
        if (wrong := going & (quantiles >= TOTAL)).any():
            raise ArtifactError(f"the payload of stream {int(wrong.argmax())} is damaged: no token has this code")
        return quantiles.astype(np.int64)

    def advance(self, going: np.ndarray, before: np.ndarray, own: np.ndarray) -> None:
        """Leave the intervals of the tokens of streams `going`: sums of the counts before them, and their counts."""
        _require_counts(own[going])
        scale = self.range >> np.uint64(COUNT_BITS)
        self.lower = np.where(going, self.lower + scale * before.astype(np.uint64), self.lower)
        self.range = np.where(going, scale * own.astype(np.uint64), self.range)
        short = np.flatnonzero(self.range < 2**32)
        if len(short):
            self.lower[short] <<= np.uint64(32)
            self.range[short] <<= np.uint64(32)
            self._read(short)

    def _read(self, rows: np.ndarray) -> None:
        """Shift one more word into the points of streams `rows`, a zero after the last word of a stream."""
        places = self.next[rows]
        words = np.zeros(len(rows), dtype=np.uint64)
        left = places < self.ends[rows]
        words[left] = self.words[places[left]]
        self.point[rows] = self.point[rows] << np.uint64(32) | words
        self.next[rows] += left

    def finish(self) -> None:
        """Raise ArtifactError for a payload that has words after those of its last token."""
        # The coder ends with the fewest words that stay in the interval whatever follows, one or two.
        over = (self.next < self.ends) | ((self.point - self.lower >= 2**33 - 1) & (self.range != 2**64 - 1))
        if over.any():
            stream = int(over.argmax())
            raise ArtifactError(f"the payload of stream {stream} continues after its last token; it is damaged")
