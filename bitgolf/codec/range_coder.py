"""Token streams to bytes and back: one range coder per stream, and one predictor for all streams.

Coder and decoder run the same loop: the predictor gives logits for the next token of every stream, the coder writes or
the decoder reads the tokens, and the predictor receives them. The decoder has no other source for predictions, so an
exact result proves that no prediction used its own target or later tokens. The range coder is that of the library
constriction (arXiv 2201.01741; 64-bit state, 32-bit words, 24-bit probabilities). Its models take floats. Counts minus
one are whole numbers below 2^24 whose sum is the weight that the library distributes. It scales them by exactly 1 and
so codes with exactly these counts.

Legend: S streams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

import constriction
import numpy as np

from bitgolf.codec.counts import token_counts
from bitgolf.errors import ArtifactError

WORD_BYTES = 4  # a payload is a whole number of words
_ROWS_AT_ONCE = 256  # streams whose counts are computed together: their int64 temporaries are large


class Predictor(Protocol):
    """Predicts the next token of S streams that advance together; encoder and decoder call it in the same way."""

    def logits(self, going: np.ndarray) -> np.ndarray:
        """Logits (S, V) float32 of every stream's next token. `going` (S,) bool: streams that have a next token; the
        rows of the others are arbitrary."""
        ...

    def accept(self, tokens: np.ndarray) -> None:
        """The next tokens, (S,) int64; 0 for streams that have none."""
        ...


def encode_streams(
    predictor: Predictor,
    streams: Sequence[np.ndarray],  # S of (n,) integers below V
    tick: Callable[[int], None] = lambda done: None,  # called with the number of tokens done in all streams
) -> list[bytes]:
    """One payload per stream."""
    coders = [_Encoder() for _ in streams]
    lengths = np.array([len(stream) for stream in streams], dtype=np.int64)
    done = 0
    for step in range(int(lengths.max(initial=0))):
        going = lengths > step
        rows = np.flatnonzero(going)
        tables = _tables(predictor.logits(going)[rows])
        tokens = np.zeros(len(streams), dtype=np.int64)
        for table, stream in zip(tables, rows.tolist(), strict=True):
            tokens[stream] = streams[stream][step]
            coders[stream].encode(table, int(tokens[stream]))
        predictor.accept(tokens)
        done += len(rows)
        tick(done)
    return [coder.payload() for coder in coders]


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
    coders = [_Decoder(payload, stream) for stream, payload in enumerate(payloads)]
    limits = np.array(lengths, dtype=np.int64)
    streams: list[list[int]] = [[] for _ in payloads]
    going = limits > 0
    done = step = 0
    while going.any():
        rows = np.flatnonzero(going)
        tables = _tables(predictor.logits(going)[rows])
        tokens = np.zeros(len(payloads), dtype=np.int64)
        for table, stream in zip(tables, rows.tolist(), strict=True):
            tokens[stream] = coders[stream].decode(table)
            streams[stream].append(int(tokens[stream]))
        predictor.accept(tokens)
        step += 1
        done += len(rows)
        tick(done)
        going &= limits > step
        if stop_token is not None:
            going &= tokens != stop_token
    for coder in coders:
        coder.finish()
    return [np.array(tokens, dtype=np.int64) for tokens in streams]


def _tables(logits: np.ndarray) -> np.ndarray:
    """The weights for constriction, (S, V) float32: counts minus the 1 that it adds to every token."""
    tables = np.empty_like(logits)
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        tables[rows] = token_counts(logits[rows]) - 1
    return tables


def _model(table: np.ndarray) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(table, lazy=True)


class _Encoder:
    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, table: np.ndarray, token: int) -> None:
        self._coder.encode(token, _model(table))

    def payload(self) -> bytes:
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class _Decoder:
    """Turns every failure of constriction on damaged words, panics included, into an ArtifactError."""

    def __init__(self, payload: bytes, stream: int) -> None:
        self._stream = stream
        if len(payload) % WORD_BYTES:
            raise ArtifactError(f"the payload of stream {stream} has {len(payload)} bytes, not whole words of 4")
        words = np.frombuffer(payload, dtype="<u4").astype(np.uint32)
        try:
            self._coder = constriction.stream.queue.RangeDecoder(words)
        except BaseException as error:
            self._refuse(error)

    def decode(self, table: np.ndarray) -> int:
        try:
            return int(self._coder.decode(_model(table)))
        except BaseException as error:  # a panic inside constriction derives from BaseException alone
            self._refuse(error)

    def finish(self) -> None:
        if not self._coder.maybe_exhausted():
            raise ArtifactError(f"the payload of stream {self._stream} continues after its last token; it is damaged")

    def _refuse(self, error: BaseException) -> NoReturn:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise error
        raise ArtifactError(f"the payload of stream {self._stream} is damaged: {error}") from error
