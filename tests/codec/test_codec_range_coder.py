"""Range coding of streams: tokens are restored, the size is that of the counts, and damage is an error."""

import math
import sys
from typing import Any

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.codec import range_coder as coder
from bitgolf.codec.counts import TOTAL, token_counts
from bitgolf.codec.range_coder import Streams, decode_streams, encode_streams
from bitgolf.errors import ArtifactError, ConfigError

VOCAB = 270


def use_device(patch: pytest.MonkeyPatch) -> None:
    """From now on run the arithmetic and the decoders of a GPU, on tensors of the CPU, in blocks of few steps."""
    patch.setattr(coder, "_is_on_host", lambda logits: False)
    patch.setattr(coder, "_STEPS_AT_ONCE", 5)
    patch.setattr(coder, "_ROWS_AT_ONCE", 2)


@pytest.fixture(params=["host", "device"])
def sides(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with the arithmetic of a CPU and with that of a GPU."""
    if request.param == "device":
        use_device(monkeypatch)


class Memory:
    """A predictor whose predictions depend on all accepted tokens; it records its calls."""

    def __init__(self, num_streams: int, seed: int = 0, sharpness: float = 3.0) -> None:
        self.num_streams, self.seed, self.sharpness = num_streams, seed, sharpness
        self.diary: list[Any] = []
        self.told: list[tuple[int, ...]] = []

    def logits(self, going: np.ndarray) -> torch.Tensor:
        self.diary.append(going.tolist())
        state = np.random.default_rng(hash((self.seed, *self.told)) % 2**32)
        return torch.from_numpy((state.standard_normal((self.num_streams, VOCAB)) * self.sharpness).astype(np.float32))

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
        counts = token_counts(program.logits(np.array([True, step < 100])).numpy())
        for s in range(2):
            if step < len(streams[s]):
                ideal[s] += math.log2(TOTAL / counts[s, streams[s][step]])
        program.accept(np.array([stream[step] if step < len(stream) else 0 for stream in streams]))
    for payload, bits in zip(encode_streams(Memory(2, 3), streams), ideal, strict=True):
        assert bits <= 8 * len(payload) <= bits + 64


def test_payloads_are_those_of_whole_tables_in_constriction() -> None:
    """The library, given the counts of all tokens, writes the same words, and reads the tokens from them."""
    rng = np.random.default_rng(5)
    whole = constriction.stream.queue.RangeEncoder()
    tokens, tables, intervals = [], [], []
    for index, scale in enumerate(np.repeat([0.0, 1.0, 5.0, 60.0], 200)):
        counts = token_counts((rng.standard_normal((1, VOCAB)) * scale).astype(np.float32))[0]
        token = [0, VOCAB - 1, int(counts.argmax()), int(rng.integers(VOCAB))][index % 4]
        model = constriction.stream.model.Categorical((counts - 1).astype(np.float32), lazy=True)
        whole.encode(token, model)
        tokens.append(token)
        tables.append(model)
        intervals.append((counts[:token].sum(), counts[token]))
    payload = coder._payload(np.array(intervals))
    assert payload == whole.get_compressed().astype("<u4").tobytes()
    reader = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
    assert [reader.decode(model) for model in tables] == tokens


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_words_decode_as_in_constriction(seed: int, num_words: int, steps: int, high: bool) -> None:
    """Damaged payloads too: the same tokens, the same refusals, the same opinion on words that are left."""
    words = np.random.default_rng(seed).integers(0, 2**32, num_words, dtype=np.uint32)
    words[: num_words * high] = 2**32 - 1
    reader = constriction.stream.queue.RangeDecoder(words)
    there, expected = Memory(1, seed), []
    outcome = ""
    try:
        for _ in range(steps):
            counts = token_counts(there.logits(np.array([True])).numpy())[0]
            model = constriction.stream.model.Categorical((counts - 1).astype(np.float32), lazy=True)
            expected.append(int(reader.decode(model)))
            there.accept(np.array(expected[-1:]))
        outcome = "" if reader.maybe_exhausted() else "continues"
    except AssertionError:
        outcome = "no token has this code"
    try:
        (tokens,) = decode_streams(Memory(1, seed), [words.astype("<u4").tobytes()], [steps])
    except ArtifactError as error:
        assert outcome and outcome in str(error)
    else:
        assert not outcome and tokens.tolist() == expected


@pytest.mark.usefixtures("sides")
def test_streams_of_different_lengths_read_their_own_words() -> None:
    streams = draw(9, [300, 0, 1, 120])
    payloads = encode_streams(Memory(4), streams)
    alone = [encode_streams(Solo(Memory(4), s, streams), [streams[s]])[0] for s in range(4)]
    assert payloads == alone


class Solo:
    """Row `stream` of a predictor of several streams, whose other tokens are given."""

    def __init__(self, memory: Memory, stream: int, streams: list[np.ndarray]) -> None:
        self.memory, self.stream, self.streams, self.step = memory, stream, streams, 0

    def logits(self, going: np.ndarray) -> torch.Tensor:
        return self.memory.logits(going)[self.stream : self.stream + 1]

    def accept(self, tokens: np.ndarray) -> None:
        rest = [stream[self.step] if self.step < len(stream) else 0 for stream in self.streams]
        assert rest[self.stream] == tokens[0]
        self.memory.accept(np.array(rest))
        self.step += 1


@given(st.integers(0, 999), st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from([0.0, 3.0, 40.0]))
@settings(max_examples=40, deadline=None)
def test_a_device_writes_and_reads_what_the_host_does(seed: int, lengths: list[int], sharpness: float) -> None:
    streams = draw(seed, lengths)
    host, there, back = (Memory(len(streams), seed, sharpness) for _ in range(3))
    payloads = encode_streams(host, streams)
    with pytest.MonkeyPatch.context() as patch:
        use_device(patch)
        assert encode_streams(there, streams) == payloads
        decoded = decode_streams(back, payloads, lengths)
    assert [s.tolist() for s in decoded] == [s.tolist() for s in streams]
    assert host.diary == there.diary == back.diary


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_device_judges_damaged_words_as_the_host_does(seed: int, num_words: int, steps: int, high: bool) -> None:
    words = np.random.default_rng(seed).integers(0, 2**32, (2, num_words), dtype=np.uint32)
    words[:, : num_words * high] = 2**32 - 1
    outcomes = []
    for patched in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                use_device(patch)
            try:
                decoded = decode_streams(Memory(2, seed), [row.astype("<u4").tobytes() for row in words], [steps, 7])
                outcomes.append(str([stream.tolist() for stream in decoded]))
            except ArtifactError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.usefixtures("sides")
def test_predictions_that_are_not_finite_are_refused() -> None:
    class Broken(Memory):
        def logits(self, going: np.ndarray) -> torch.Tensor:
            logits = super().logits(going)
            logits[1, 3] = math.nan
            return logits

    with pytest.raises(ArtifactError, match="not finite"):
        encode_streams(Broken(2), draw(0, [3, 1]))
    assert encode_streams(Broken(2), draw(0, [3, 0])) == encode_streams(Memory(2), draw(0, [3, 0]))
    with pytest.raises(ArtifactError, match="not finite"):
        decode_streams(Broken(2), [b"\0" * 8] * 2, [3, 1])


@pytest.mark.usefixtures("sides")
def test_a_stop_token_ends_a_stream_before_its_limit() -> None:
    streams = [np.array([5, 9, 1]), np.array([1]), np.array([7, 7, 7, 7])]
    payloads = encode_streams(Memory(3), streams)
    decoded = decode_streams(Memory(3), payloads, [4, 4, 4], stop_token=1)
    assert [s.tolist() for s in decoded] == [s.tolist() for s in streams]


@pytest.mark.usefixtures("sides")
def test_progress_counts_tokens() -> None:
    done: list[int] = []
    payloads = encode_streams(Memory(2), draw(0, [3, 1]), done.append)
    assert done == [2, 3, 4]
    done.clear()
    decode_streams(Memory(2), payloads, [3, 1], tick=done.append)
    assert done == [2, 3, 4]


@pytest.mark.usefixtures("sides")
def test_a_payload_that_goes_on_is_refused() -> None:
    (payload,) = encode_streams(Memory(1), draw(0, [20]))
    with pytest.raises(ArtifactError, match="stream 0 continues after its last token"):
        decode_streams(Memory(1), [payload + b"\1\2\3\4" * 4], [20])


@pytest.mark.usefixtures("sides")
def test_half_a_word_is_refused() -> None:
    with pytest.raises(ArtifactError, match="stream 1 has 3 bytes"):
        decode_streams(Memory(2), [b"", b"abc"], [1, 1])


def test_a_cache_has_whole_tiles_within_the_window() -> None:
    for longest, window, positions in (
        *((1, 2048, 64), (63, 2048, 64), (64, 2048, 64), (65, 2048, 128), (1000, 2048, 1024)),
        *((1985, 2048, 2048), (9999, 2048, 2048), (65, 100, 100), (64, 100, 64), (5, 16, 16)),
    ):
        assert Streams(3, longest, 7, 1).positions(window) == positions


def test_without_constriction_streams_are_decoded_and_not_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = draw(0, [3])
    payloads = encode_streams(Memory(1), streams)
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert decode_streams(Memory(1), payloads, [3])[0].tolist() == streams[0].tolist()
    with pytest.raises(ConfigError, match="compressing needs constriction, which is not installed"):
        encode_streams(Memory(1), streams)
