"""Token streams to bytes and back: one range coder per stream, and one predictor for all streams.

Coder and decoder run the same loop: the predictor gives logits for the next token of every stream, the coder writes or
the decoder reads the tokens, and the predictor receives them. The decoder has no other source for predictions, so an
exact result proves that no prediction used its own target or later tokens.

A token is coded as its interval of the counts. The coder needs no table on the host: it collects the intervals and
writes them with the library constriction (arXiv 2201.01741; 64-bit state, 32-bit words, 24-bit probabilities). The
decoder advances all streams together where the logits are: in NumPy on a CPU, and in PyTorch on a GPU. So on a GPU no
step waits for the host. Tokens and intervals are sent in blocks of many steps, and errors are noticed at their ends.

Legend: S streams, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bitgolf.codec.counts import COUNT_BITS, TOTAL, DeviceSums, HostSums
from bitgolf.errors import ArtifactError, ConfigError

WORD_BYTES = 4  # a payload is a whole number of words
_ROWS_AT_ONCE = 512  # streams whose counts are computed together: their int64 temporaries are large
_TILE = 64  # positions of a tile
_STEPS_AT_ONCE = 256  # steps of a block, after which tokens or intervals leave the device

Array = Any  # where the logits are: of NumPy on a CPU, of PyTorch on another device
Sums = HostSums | DeviceSums


@dataclass(frozen=True)
class Streams:
    """What a predictor is told of the S streams before their first token."""

    number: int  # S
    longest: int  # most tokens of a stream, without `first_token`
    num_targets: int  # of the whole text, for the learning rate schedule
    first_token: int  # before every stream (the BOS)

    def positions(self, window: int) -> int:
        """Positions that a cache of these streams needs within a window; whole tiles of GPU kernels."""
        return min(window, -(-self.longest // _TILE) * _TILE)


class Predictor(Protocol):
    """Predicts the next token of S streams that advance together; encoder and decoder call it in the same way."""

    def logits(self, going: np.ndarray) -> Tensor:
        """Logits (S, V) float32 of every stream's next token, which a later call may overwrite. `going` (S,) bool:
        streams that have a next token; the rows of the others are arbitrary."""
        ...

    def accept(self, tokens: Array) -> None:
        """The next tokens, (S,) int64, in NumPy or on the device; 0 for streams that have none."""
        ...


def encode_streams(
    predictor: Predictor,
    streams: Sequence[np.ndarray],  # S of (n,) integers below V
    tick: Callable[[int], None] = lambda done: None,  # called with the number of tokens done in all streams
) -> list[bytes]:
    """One payload per stream. Raises ArtifactError when a prediction is not finite."""
    lengths = np.array([len(stream) for stream in streams], dtype=np.int64)
    done, steps = 0, int(lengths.max(initial=0))
    table = np.zeros((steps, len(streams)), dtype=np.int64)
    for stream, tokens in enumerate(streams):
        table[: len(tokens), stream] = tokens
    intervals = np.empty((steps, len(streams), 2), dtype=np.int64)
    for begin in range(0, steps, _STEPS_AT_ONCE):
        block = np.arange(begin, min(begin + _STEPS_AT_ONCE, steps))
        rows: Array = table[block]
        results: list[Array] = []
        for step in block.tolist():
            going = lengths > step
            logits = predictor.logits(going)
            if step == begin and not _is_on_host(logits):
                rows = torch.from_numpy(rows).to(logits.device)
            results += _by_rows(_intervals, logits, rows[step - begin])
            predictor.accept(rows[step - begin])
            done += int(going.sum())
            tick(done)
        intervals[block] = np.stack(on_host(results)).reshape(len(block), 2, -1).swapaxes(1, 2)
        _require_counts(intervals[block, :, 1][lengths > block[:, None]])
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
    first = _Decoders(payloads)
    decoders: _Decoders | _DeviceDecoders = first
    limits = np.array(lengths, dtype=np.int64)
    blocks, recent = [np.empty((0, len(payloads)), dtype=np.int64)], []  # tokens of each step
    ends = np.zeros(len(payloads), dtype=np.int64)
    going = limits > 0
    done = step = 0
    while going.any():
        logits = predictor.logits(going)
        if step == 0 and not _is_on_host(logits):
            decoders = _DeviceDecoders(first, limits, stop_token, logits.device)
        tokens = decoders.read(logits, going)
        recent.append(tokens)
        ends += going
        predictor.accept(tokens)
        step += 1
        done += int(going.sum())
        tick(done)
        going = going & (limits > step)
        if stop_token is not None:
            going &= on_host([tokens])[0] != stop_token
        if step % _STEPS_AT_ONCE == 0 or not going.any():
            decoders.check()
            blocks.append(np.stack(on_host(recent)))
            recent.clear()
    decoders.finish()
    table = np.concatenate(blocks)
    return [table[:end, stream].copy() for stream, end in enumerate(ends.tolist())]


def _is_on_host(logits: Tensor) -> bool:
    return logits.device.type == "cpu"


def _by_rows(function: Callable[[Sums, Array], tuple[Array, ...]], logits: Tensor, values: Array) -> list[Array]:
    """Results of `function` for the counts of logits (S, V) and values (S,), computed where the logits are."""
    pieces = []
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        sums = HostSums(logits[rows].numpy()) if _is_on_host(logits) else DeviceSums(logits[rows])
        pieces.append(function(sums, values[rows]))
    if len(pieces) == 1:
        return list(pieces[0])
    return [(np if _is_on_host(logits) else torch).concatenate(parts) for parts in zip(*pieces, strict=True)]


def on_host(arrays: list[Array]) -> list[np.ndarray]:
    """Arrays of equal shape in NumPy, in one transfer."""
    return arrays if isinstance(arrays[0], np.ndarray) else list(torch.stack(arrays).cpu().numpy())


def _intervals(sums: Any, tokens: Array) -> tuple[Array, ...]:
    """Sum of the counts before each token (S,), and its count: (S,) each."""
    return tuple(sums.intervals(tokens))


def _tokens_and_intervals(sums: Any, quantiles: Array) -> tuple[Array, ...]:
    """The token whose interval contains each quantile (S,), and the interval: (S,) each."""
    tokens = sums.tokens_at(quantiles)
    return (tokens, *sums.intervals(tokens))


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


def _require_code(damaged: np.ndarray) -> None:
    if damaged.any():
        raise ArtifactError(f"the payload of stream {int(damaged.argmax())} is damaged: no token has this code")


class _Decoders:
    """The decoders of S range-coded payloads, which advance together.

    `range` is the length of the interval that the tokens so far have left of 2^64, and `place` is the distance from its
    beginning to the point that the words name. Whenever the interval is shorter than 2^32, one more word is read.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        for stream, payload in enumerate(payloads):
            if len(payload) % WORD_BYTES:
                raise ArtifactError(f"the payload of stream {stream} has {len(payload)} bytes, not whole words of 4")
        self.words = np.frombuffer(b"".join(payloads), dtype="<u4")
        self.ends = np.cumsum([len(payload) // WORD_BYTES for payload in payloads])  # of the words of each stream
        self.next = np.concatenate(([0], self.ends[:-1]))  # word that is read next
        self.place = np.zeros(len(payloads), dtype=np.uint64)
        for _ in range(2):
            self._read_words(np.arange(len(payloads)))
        self.range = np.full(len(payloads), 2**64 - 1, dtype=np.uint64)

    def read(self, logits: Tensor, going: np.ndarray) -> np.ndarray:
        """The next token of each stream, (S,) int64, from its logits (S, V); 0 for streams not `going`."""
        scale = self.range >> np.uint64(COUNT_BITS)
        quantiles = self.place // scale
        _require_code(going & (quantiles >= TOTAL))
        tokens, before, own = _by_rows(_tokens_and_intervals, logits, quantiles.astype(np.int64))
        _require_counts(own[going])
        self.place = np.where(going, self.place - scale * before.astype(np.uint64), self.place)
        self.range = np.where(going, scale * own.astype(np.uint64), self.range)
        short = np.flatnonzero(self.range < 2**32)
        if len(short):
            self.range[short] <<= np.uint64(32)
            self._read_words(short)
        return np.where(going, tokens, 0)

    def _read_words(self, rows: np.ndarray) -> None:
        """Shift one more word into the places of streams `rows`, a zero after the last word of a stream."""
        places = self.next[rows]
        words = np.zeros(len(rows), dtype=np.uint64)
        left = places < self.ends[rows]
        words[left] = self.words[places[left]]
        self.place[rows] = self.place[rows] << np.uint64(32) | words
        self.next[rows] += left

    def check(self) -> None:
        """Raise ArtifactError if an earlier step found an error. Here steps raise their errors themselves."""

    def finish(self) -> None:
        """Raise ArtifactError for a payload that has words after those of its last token."""
        # The coder ends with the fewest words that stay in the interval whatever follows, one or two.
        over = (self.next < self.ends) | ((self.place >= 2**33 - 1) & (self.range != 2**64 - 1))
        if over.any():
            stream = int(over.argmax())
            raise ArtifactError(f"the payload of stream {stream} continues after its last token; it is damaged")


class _DeviceDecoders:
    """The same in PyTorch, on the device of the logits. No step waits for the host; errors wait for `check`.

    PyTorch does not compute with unsigned numbers of 64 bits. `range` and `place` are int64 with the same bits.
    """

    def __init__(self, begun: _Decoders, limits: np.ndarray, stop_token: int | None, device: torch.device) -> None:
        def moved(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        self.begun, self.stop_token = begun, -1 if stop_token is None else stop_token
        self.words = moved(np.append(begun.words, 0))  # the last is read after the end of a stream
        self.ends, self.next = moved(begun.ends), moved(begun.next)
        self.place, self.range = moved(begun.place), moved(begun.range)
        self.left = moved(limits)  # tokens of each stream that are not decoded
        self.broken = torch.zeros_like(self.left, dtype=torch.bool)
        self.damaged = torch.zeros_like(self.broken)

    def read(self, logits: Tensor, going: np.ndarray) -> Tensor:
        """See `_Decoders`; `going` is computed here from the limits and the tokens."""
        on = self.left > 0
        scale = self.range >> COUNT_BITS & (1 << 64 - COUNT_BITS) - 1
        # Unsigned division: half the place has no sign; the doubled quotient is exact or too small by one.
        quantiles = (self.place >> 1 & (1 << 63) - 1) // scale * 2
        quantiles += self.place - quantiles * scale >= scale
        self.damaged |= on & (quantiles >= TOTAL)
        tokens, before, own = _by_rows(_tokens_and_intervals, logits, quantiles.clamp_(max=TOTAL - 1))
        self.broken |= on & (own < 1)
        place = torch.where(on, self.place - scale * before, self.place)
        length = torch.where(on, scale * own.clamp_(min=1), self.range)
        short, inside = length >> 32 == 0, self.next < self.ends
        words = self.words[torch.where(inside, self.next, len(self.words) - 1)]
        self.place = torch.where(short, place << 32 | words, place)
        self.range = torch.where(short, length << 32, length)
        self.next += short & inside
        tokens = torch.where(on, tokens, 0)
        self.left = (self.left - 1) * (tokens != self.stop_token)
        return tokens

    def check(self) -> None:
        """Raise ArtifactError if a step since the last call found an error. What it decoded is arbitrary."""
        broken, damaged = on_host([self.broken, self.damaged])
        _require_counts(~broken)
        _require_code(damaged)

    def finish(self) -> None:
        """See `_Decoders`."""
        self.begun.next = self.next.cpu().numpy()
        self.begun.place, self.begun.range = (state.cpu().numpy().view(np.uint64) for state in (self.place, self.range))
        self.begun.finish()
