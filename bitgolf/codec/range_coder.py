"""Token streams to bytes and back: one range coder a stream, all streams driven by one stepwise program.

Both sides run the same program on the same values: it predicts the next token of every stream, the coder writes or
reads the tokens, the program is told what they were. A decoder has nothing else to predict from, so what it gets
back proves that no prediction looked at its own target or later ones. The range coder is constriction's (64-bit
state, 32-bit words, 24-bit probabilities). Its models take floats; counts minus one are whole numbers below 2^24 that
add up to just the weight it distributes, so it scales by exactly 1 and codes with exactly our counts.

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


class Program(Protocol):
    """Predicts the next token of S streams in step; encoder and decoder call it in exactly the same way."""

    def logits(self, going: np.ndarray) -> np.ndarray:
        """(S, V) float32 logits of every stream's next token; rows of streams that are not `going`, (S,) bool, are
        arbitrary."""
        ...

    def accept(self, tokens: np.ndarray) -> None:
        """The tokens that came, (S,) int64; 0 for streams that were not going."""
        ...


def encode_streams(
    program: Program,
    streams: Sequence[np.ndarray],  # S of (n,) integers below V
    tick: Callable[[int], None] = lambda done: None,  # told the tokens of all streams done so far
) -> list[bytes]:
    """One payload a stream."""
    coders = [_Encoder() for _ in streams]
    lengths = np.array([len(stream) for stream in streams], dtype=np.int64)
    done = 0
    for step in range(int(lengths.max(initial=0))):
        going = lengths > step
        rows = np.flatnonzero(going)
        tables = _tables(program.logits(going)[rows])
        tokens = np.zeros(len(streams), dtype=np.int64)
        for table, stream in zip(tables, rows.tolist(), strict=True):
            tokens[stream] = streams[stream][step]
            coders[stream].encode(table, int(tokens[stream]))
        program.accept(tokens)
        done += len(rows)
        tick(done)
    return [coder.payload() for coder in coders]


def decode_streams(
    program: Program,
    payloads: Sequence[bytes],  # S
    lengths: Sequence[int],  # tokens of each stream, or the most it may have when a token ends it
    stop_token: int | None = None,  # ends a stream (and is its last token)
    tick: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """The streams, S of (n,) int64.

    Raises ArtifactError when a payload cannot have been written by `encode_streams` (as far as a range coder can
    tell: damaged words mostly decode to other tokens).
    """
    coders = [_Decoder(payload, stream) for stream, payload in enumerate(payloads)]
    limits = np.array(lengths, dtype=np.int64)
    found: list[list[int]] = [[] for _ in payloads]
    going = limits > 0
    done = step = 0
    while going.any():
        rows = np.flatnonzero(going)
        tables = _tables(program.logits(going)[rows])
        tokens = np.zeros(len(payloads), dtype=np.int64)
        for table, stream in zip(tables, rows.tolist(), strict=True):
            tokens[stream] = coders[stream].decode(table)
            found[stream].append(int(tokens[stream]))
        program.accept(tokens)
        step += 1
        done += len(rows)
        tick(done)
        going &= limits > step
        if stop_token is not None:
            going &= tokens != stop_token
    for coder in coders:
        coder.finish()
    return [np.array(tokens, dtype=np.int64) for tokens in found]


def _tables(logits: np.ndarray) -> np.ndarray:
    """What constriction is given for each row: counts less the 1 it adds to every token itself; (S, V) float32."""
    return (token_counts(logits) - 1).astype(np.float32)


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
    """Turns whatever constriction does with damaged words, panics included, into an ArtifactError."""

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
            raise ArtifactError(f"the payload of stream {self._stream} goes on after its last token; it is damaged")

    def _refuse(self, error: BaseException) -> NoReturn:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise error
        raise ArtifactError(f"the payload of stream {self._stream} is damaged: {error}") from error
