"""Range coding of streams: tokens are restored, the size is that of the counts, and damage is an error."""

from __future__ import annotations

import math
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.codec import range_coder as coder
from bitgolf.codec.counts import TOTAL, token_counts
from bitgolf.codec.range_coder import decode_streams, encode_streams
from bitgolf.errors import ArtifactError

VOCAB = 270


class Memory:
    """A predictor whose predictions depend on all accepted tokens; it records its calls."""

    def __init__(self, num_streams: int, seed: int = 0, sharpness: float = 3.0) -> None:
        self.num_streams, self.seed, self.sharpness = num_streams, seed, sharpness
        self.diary: list[Any] = []
        self.told: list[tuple[int, ...]] = []

    def logits(self, going: np.ndarray) -> np.ndarray:
        self.diary.append(going.tolist())
        state = np.random.default_rng(hash((self.seed, *self.told)) % 2**32)
        return (state.standard_normal((self.num_streams, VOCAB)) * self.sharpness).astype(np.float32)

    def accept(self, tokens: np.ndarray) -> None:
        self.diary.append(tokens.tolist())
        self.told.append(tuple(tokens.tolist()))


def draw(seed: int, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n) for n in lengths]


@given(st.integers(0, 999), st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([0.0, 3.0, 40.0]))
@settings(max_examples=60, deadline=None)
def test_streams_come_back_and_both_sides_do_the_same(seed: int, lengths: list[int], sharpness: float) -> None:
    streams = draw(seed, lengths)
    there, back = (Memory(len(streams), seed, sharpness) for _ in range(2))
    payloads = encode_streams(there, streams)
    decoded = decode_streams(back, payloads, lengths)
    assert [s.tolist() for s in decoded] == [s.tolist() for s in streams]
    assert there.diary == back.diary
    assert all(payload == b"" for payload, n in zip(payloads, lengths, strict=True) if n == 0)


def test_the_size_is_that_of_the_counts() -> None:
    streams = draw(3, [400, 100])
    program = Memory(2, 3)
    ideal = [0.0, 0.0]
    for step in range(400):
        counts = token_counts(program.logits(np.array([True, step < 100])))
        for s in range(2):
            if step < len(streams[s]):
                ideal[s] += math.log2(TOTAL / counts[s, streams[s][step]])
        program.accept(np.array([stream[step] if step < len(stream) else 0 for stream in streams]))
    for payload, bits in zip(encode_streams(Memory(2, 3), streams), ideal, strict=True):
        assert bits <= 8 * len(payload) <= bits + 64


def test_constriction_codes_with_exactly_our_counts() -> None:
    """Models that have only the interval of the token give the same words."""
    rng = np.random.default_rng(5)
    whole, intervals = constriction.stream.queue.RangeEncoder(), constriction.stream.queue.RangeEncoder()
    for scale in np.repeat([0.0, 1.0, 5.0, 60.0], 200):
        counts = token_counts((rng.standard_normal((1, VOCAB)) * scale).astype(np.float32))
        token = int(rng.integers(VOCAB))
        whole.encode(token, coder._model((counts[0] - 1).astype(np.float32)))
        below, own = int(counts[0, :token].sum()), int(counts[0, token])
        parts = [part for part in (below, own, TOTAL - below - own) if part]
        coarse = np.array([part - 1 for part in parts], dtype=np.float64)
        intervals.encode(int(below > 0), constriction.stream.model.Categorical(coarse, perfect=False))
    assert np.array_equal(whole.get_compressed(), intervals.get_compressed())


def test_a_stop_token_ends_a_stream_before_its_limit() -> None:
    streams = [np.array([5, 9, 1]), np.array([1]), np.array([7, 7, 7, 7])]
    payloads = encode_streams(Memory(3), streams)
    decoded = decode_streams(Memory(3), payloads, [4, 4, 4], stop_token=1)
    assert [s.tolist() for s in decoded] == [s.tolist() for s in streams]


def test_progress_counts_tokens() -> None:
    done: list[int] = []
    payloads = encode_streams(Memory(2), draw(0, [3, 1]), done.append)
    assert done == [2, 3, 4]
    done.clear()
    decode_streams(Memory(2), payloads, [3, 1], tick=done.append)
    assert done == [2, 3, 4]


def test_random_words_decode_to_something_or_are_refused() -> None:
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        words = rng.integers(0, 2**32, rng.integers(0, 6), dtype=np.uint32)
        words[: seed % 2] = 2**32 - 1
        try:
            (tokens,) = decode_streams(Memory(1), [words.astype("<u4").tobytes()], [8])
        except ArtifactError as error:
            refused += "damaged" in str(error)
        else:
            assert len(tokens) == 8 and tokens.max() < VOCAB
    assert 0 < refused < 60


def test_a_payload_that_goes_on_is_refused() -> None:
    (payload,) = encode_streams(Memory(1), draw(0, [20]))
    with pytest.raises(ArtifactError, match="stream 0 continues after its last token"):
        decode_streams(Memory(1), [payload + b"\1\2\3\4" * 4], [20])


def test_half_a_word_is_refused() -> None:
    with pytest.raises(ArtifactError, match="stream 1 has 3 bytes"):
        decode_streams(Memory(2), [b"", b"abc"], [1, 1])


class Panic(BaseException):
    """Like pyo3's PanicException, which does not derive from Exception."""


@pytest.mark.parametrize("problem", [Panic("index out of bounds"), AssertionError("invalid")])
def test_a_panic_inside_the_coder_is_an_error_about_the_file(
    problem: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(table: np.ndarray) -> None:
        raise problem

    monkeypatch.setattr(coder, "_model", panic)
    with pytest.raises(ArtifactError, match=f"stream 0 is damaged: {problem}"):
        decode_streams(Memory(1), [b"\0\0\0\0"], [1])


def test_an_interrupt_stays_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(table: np.ndarray) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coder, "_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_streams(Memory(1), [b"\0\0\0\0"], [1])
