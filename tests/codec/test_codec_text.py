"""Whole texts: they are restored, at the size of their score, and refused where that is not certain."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codec_file import fuzz
from toy_models import make_scorer

import bitgolf
from bitgolf.codec import (
    CodecModel,
    compress_bytes,
    counts,
    decompress_bytes,
    document_predictor,
    file_format,
    range_coder,
    window_predictor,
)
from bitgolf.codec import text as codec_text
from bitgolf.codec.checkpoints import CheckedPredictor, num_checkpoints
from bitgolf.codec.exactness import exact_arithmetic, fingerprint
from bitgolf.codec.file_format import CodedStream
from bitgolf.codec.text import codec_configuration
from bitgolf.codec.tokens import split_bytes, tokenize
from bitgolf.config import TTTConfig
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import ArtifactError, ConfigError
from bitgolf.evaluate import ScoreTape, evaluate
from bitgolf.evaluate.adapted_pass import adapted_pass
from bitgolf.evaluate.chunk_training import preserved
from bitgolf.evaluate.window_scorer import Windows
from bitgolf.model import cached_steps
from bitgolf.run.ranks import World

MakeModel = Callable[..., CodecModel]
# Strong enough to move the size of REPEATED by more than the coder's own bytes.
ADAPTED: list[TTTConfig] = [
    TTTConfig(method="full", weights={"chunk_tokens": 16, "lr": 0.5, "epochs": 1}),
    TTTConfig(
        method="last_blocks",
        weights={"chunk_tokens": 20, "optimizer": "adamw", "lr": 0.1, "last_blocks": 1},
    ),
    TTTConfig(method="lora", lora={"chunk_tokens": 8, "rank": 4, "lr": 0.15}),
]
REPEATED = b"Letter 60 from the miller. The quiet bridge carries the river." * 3
SMALL = [
    b"",
    b"a",
    b"\0",
    b"\xff",
    "▁".encode(),
    b"\r\n\r\n",
    "é".encode()[:1],
    bytes(range(256)),
    b"  \n" * 9,
    b"\0" * 40,
]


def score_bytes(text: bytes, model: CodecModel, streams: int, stride: int, ttt: TTTConfig | None) -> float:
    """Bytes of the streams by the losses of the evaluation, each stream with adaptation of its own."""
    language_model = model.packed
    config = codec_configuration(language_model, stride, ttt)
    total = 0.0
    for stream in tokenize(split_bytes(text, streams), language_model.tokenizer):
        tape = ScoreTape(np.concatenate([[language_model.tokenizer.bos_id], stream.tokens]))
        gpt = language_model.model
        if ttt is None:
            scorer = make_scorer("sliding", gpt, window=16, stride=stride or 4, batch_tokens=64)
            evaluate(tape, scorer)
        else:
            with preserved(gpt):
                world = World(0, 1, torch.device("cpu"))
                adapted_pass(
                    ttt,
                    Windows.of(config),
                    gpt,
                    gpt,
                    num_targets=tape.num_targets,
                    bos_id=1,
                    seed=config.seed,
                    world=world,
                ).run(tape)
        total += float(tape.nll.sum(dtype=np.float64))
    return total / math.log(2) / 8


@pytest.mark.parametrize("data", SMALL, ids=repr)
def test_small_and_odd_texts_come_back(
    data: bytes, make_model: MakeModel, lossless: Tokenizer, lossy: Tokenizer
) -> None:
    for model in (make_model(lossless), make_model(lossy)):
        coded = compress_bytes(data, model, streams=min(len(data), 1 + len(data) // 16))
        assert decompress_bytes(coded.data, model) == data
        assert coded.text.num_bytes == len(data)


@given(data=st.binary(max_size=30), streams=st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_any_bytes_come_back(data: bytes, streams: int, model: CodecModel) -> None:
    coded = compress_bytes(data, model, streams=min(streams, len(data)))
    assert decompress_bytes(coded.data, model) == data


@pytest.mark.parametrize("streams", [1, 2, 7])
@pytest.mark.parametrize("stride", [0, 1, 16])
def test_the_file_weighs_what_the_score_says(
    streams: int, stride: int, model: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"bitgolf": "0.1.0", "torch": "2.13.0+cpu", "blas": "openblas 0.3.31.188.0 SkylakeX", "simd": "AVX512"}
    platform = versions | {"device": "Intel(R) Xeon(R) Processor", "dtype": "float32"}
    monkeypatch.setattr("bitgolf.codec.text.fingerprint", lambda device: platform)  # its length is not the coder's
    text = letters[:280]
    coded = compress_bytes(text, model, streams=streams, stride=stride)
    assert decompress_bytes(coded.data, model) == text
    promised = score_bytes(text, model, streams, stride, None)
    assert promised < coded.text.payload_bytes <= promised * 1.0005 + 8 * streams
    assert len(coded.data) <= promised * 1.005 + 64 * streams + 16
    assert coded.num_tokens == sum(stream.num_tokens for stream in coded.text.streams)
    assert coded.bpb == pytest.approx(8 * len(coded.data) / 280)


@pytest.mark.parametrize("ttt", ADAPTED, ids=lambda ttt: ttt.method)
def test_adapted_texts_come_back_at_the_adapted_score(ttt: TTTConfig, model: CodecModel) -> None:
    text = REPEATED
    before = [p.clone() for p in model.packed.model.parameters()]
    coded = compress_bytes(text, model, streams=1, ttt=ttt)
    assert coded.text.ttt == ttt
    assert decompress_bytes(coded.data, model) == text
    promised, plain = (score_bytes(text, model, 1, 0, settings) for settings in (ttt, None))
    assert 0 <= coded.text.payload_bytes - promised <= promised * 0.0005 + 8
    assert not 0 <= coded.text.payload_bytes - plain <= plain * 0.0005 + 8, "too weak to be noticed"
    assert all(torch.equal(a, b) for a, b in zip(before, model.packed.model.parameters(), strict=True))
    assert not any(p.requires_grad for p in model.packed.model.parameters())


@pytest.mark.parametrize("ttt", ADAPTED[:3], ids=lambda ttt: ttt.method)
def test_adapted_streams_come_back(ttt: TTTConfig, model: CodecModel, letters: bytes) -> None:
    text = letters[:330] + b"\xff\xfe" + letters[330:360]
    coded = compress_bytes(text, model, streams=3, ttt=ttt)
    assert decompress_bytes(coded.data, model) == text
    assert [stream.joined for stream in coded.text.streams] == [False, False, True]


@pytest.mark.parametrize(("streams", "size"), [(1, 90), (7, 331), (250, 700)])
@pytest.mark.parametrize("ttt", [None, *ADAPTED[:3]], ids=lambda ttt: "plain" if ttt is None else ttt.method)
def test_the_steps_of_a_gpu_give_the_same_file_with_each_arithmetic(
    ttt: TTTConfig | None, streams: int, size: int, model: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded steps (here run anew) with the coder of the host and with that of a GPU, on tensors of the CPU."""
    monkeypatch.setattr(codec_text, "is_small", lambda *_: False)
    monkeypatch.setattr(window_predictor, "is_small", lambda *_: False)
    monkeypatch.setattr(cached_steps, "_LEAST_REACH", 4)
    for module in (window_predictor, document_predictor):
        monkeypatch.setattr(module, "recorder_for", lambda model: lambda run: run)
    on_host = compress_bytes(letters[:size], model, streams=streams, ttt=ttt)
    monkeypatch.setattr(range_coder, "_is_on_host", lambda logits: False)
    monkeypatch.setattr(range_coder, "_STEPS_AT_ONCE", 7)
    on_device = compress_bytes(letters[:size], model, streams=streams, ttt=ttt)
    assert on_device.data == on_host.data
    assert decompress_bytes(on_device.data, model) == letters[:size]
    assert compress_bytes(b"", model, ttt=ttt).num_tokens == 0


def test_the_decoder_takes_the_coders_threads(
    model: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_text, "is_small", lambda model, num_streams: False)
    torch.set_num_threads(2)
    try:
        coded = compress_bytes(letters[:24], model)
    finally:
        torch.set_num_threads(1)
    seen: list[int] = []
    decode = codec_text.decode_streams
    monkeypatch.setattr(
        codec_text, "decode_streams", lambda *a, **k: (seen.append(torch.get_num_threads()), decode(*a, **k))[1]
    )
    assert decompress_bytes(coded.data, model) == letters[:24]
    assert coded.text.threads == 2 and seen == [2] and torch.get_num_threads() == 1


def test_exact_arithmetic_is_put_back_and_explains_itself() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_arithmetic(torch.device("cpu"), 2):
            assert torch.get_num_threads() == 2 and torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
        expected = "exact coding on cpu is not possible: x has no deterministic form"
        with pytest.raises(ConfigError, match=expected), exact_arithmetic(torch.device("cpu"), 1):
            raise RuntimeError("x has no deterministic form")
        with pytest.raises(RuntimeError, match="something else"), exact_arithmetic(torch.device("cpu"), 1):
            raise RuntimeError("something else")
        with pytest.raises(ConfigError, match="cpu has too little memory"), exact_arithmetic(torch.device("cpu"), 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert torch.get_num_threads() == before[0]


def test_arithmetic_of_a_gpu_is_deterministic_and_put_back() -> None:
    memory: Any = torch.utils.deterministic

    def settings() -> tuple[bool, bool, bool]:
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warns, memory.fill_uninitialized_memory

    for before in ((False, False, True), (True, True, False), (True, False, True)):
        try:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = before[2]
            with exact_arithmetic(torch.device("cpu"), 1):
                assert settings() == before
            with exact_arithmetic(torch.device("cuda"), 1):
                assert settings() == (True, False, False)
            assert settings() == before
        finally:
            torch.use_deterministic_algorithms(False)
            memory.fill_uninitialized_memory = True


def test_a_fingerprint_names_what_the_arithmetic_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitgolf.codec.exactness.device_name", lambda device: f"a {device.type}")
    monkeypatch.setattr("bitgolf.codec.exactness.blas_name", lambda: "a library")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_000)
    versions = {"bitgolf": bitgolf.__version__, "torch": torch.__version__}
    on_cpu = {"device": "a cpu", "dtype": "float32", "blas": "a library", "simd": "AVX9"}
    on_cuda = {"device": "a cuda", "dtype": "bfloat16", "cudnn": "91000", "steps": "2"}
    assert fingerprint(torch.device("cpu")) == versions | on_cpu
    assert fingerprint(torch.device("cuda")) == versions | on_cuda


def test_another_model_is_refused(make_model: MakeModel, model: CodecModel, lossless: Tokenizer) -> None:
    coded = compress_bytes(b"some text", model)
    other = make_model(lossless, seed=1)
    with pytest.raises(ArtifactError, match=f"begins {model.sha256[:8].hex()}; this one is {other.sha256.hex()}"):
        decompress_bytes(coded.data, other)
    liar = CodecModel(other.packed, model.sha256)  # what a changed artifact under the old name would be
    with pytest.raises(ArtifactError, match=r"damaged|continues"):
        decompress_bytes(compress_bytes(b"some longer text" * 9, model).data, liar)


def test_another_platform_is_refused_unless_allowed(model: CodecModel, letters: bytes) -> None:
    coded = compress_bytes(letters[:90], model)
    platform = {**coded.text.platform, "torch": "1.0", "device": "Abacus"}
    foreign = file_format.write(replace(coded.text, platform=platform))
    with pytest.raises(ArtifactError, match=r"device Abacus.*torch 1\.0.*allow-platform-mismatch"):
        decompress_bytes(foreign, model)
    assert decompress_bytes(foreign, model, allow_platform_mismatch=True) == letters[:90]


def test_other_arithmetic_is_found_out(model: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that differ in their last bits give an error, never another text."""
    coded = compress_bytes(letters[:150], model)
    own = counts.token_counts
    monkeypatch.setattr(counts, "token_counts", lambda logits: own(logits * np.float32(1 + 1e-3)))
    with pytest.raises(ArtifactError):
        decompress_bytes(coded.data, model)


def test_a_wrong_digest_is_an_error(model: CodecModel) -> None:
    coded = compress_bytes(b"some text", model)
    forged = file_format.write(replace(coded.text, text_digest=bytes(16)))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        decompress_bytes(forged, model)
    longer = file_format.write(replace(coded.text, num_bytes=10))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        decompress_bytes(longer, model)


def test_streams_that_changed_places_are_found_out(model: CodecModel, letters: bytes) -> None:
    coded = compress_bytes(letters[:160], model, streams=2)
    swapped = replace(coded.text, streams=coded.text.streams[::-1])
    with pytest.raises(ArtifactError):
        decompress_bytes(file_format.write(swapped), model)


def test_the_declared_size_is_bounded(model: CodecModel) -> None:
    coded = compress_bytes(b"x" * 100, model)
    assert decompress_bytes(coded.data, model, max_text_bytes=100) == b"x" * 100
    with pytest.raises(ArtifactError, match="from 0 to 99"):
        decompress_bytes(coded.data, model, max_text_bytes=99)


def test_what_could_not_be_decoded_again_is_not_coded(model: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_format, "MAX_TEXT_BYTES", 9)
    assert compress_bytes(b"123456789", model).text.num_bytes == 9
    with pytest.raises(ConfigError, match="10 bytes are more than the 9"):
        compress_bytes(b"1234567890", model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": -1}, "-1 streams of 9 bytes"),
        ({"streams": 10}, "from 1 to 9"),
        ({"stride": 17}, "score.stride 17"),
        ({"stride": -2}, "score.stride"),
        ({"ttt": TTTConfig(method="full", weights={"chunk_tokens": 8})}, "chunk_tokens 8"),
        ({"ttt": TTTConfig(method="last_blocks", weights={"last_blocks": 9, "chunk_tokens": 32})}, "last_blocks 9"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str, model: CodecModel) -> None:
    with pytest.raises(ConfigError, match=message):
        compress_bytes(b"some text", model, **options)


@pytest.mark.parametrize(
    "change", [{"stride": 99}, {"ttt": TTTConfig(method="full", weights={"chunk_tokens": 8})}], ids=str
)
def test_a_header_that_asks_for_the_impossible_is_damaged(change: dict[str, Any], model: CodecModel) -> None:
    coded = compress_bytes(b"some text", model)
    with pytest.raises(ArtifactError, match="what the model cannot do"):
        decompress_bytes(file_format.write(replace(coded.text, **change)), model)


@pytest.mark.parametrize("ttt", [None, *ADAPTED], ids=lambda ttt: ttt and ttt.method)
def test_a_wrong_payload_is_given_up_at_a_checkpoint(
    ttt: TTTConfig | None, model: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros in place of the payload declare as many tokens as a file of this size may have."""
    coded = compress_bytes(letters[:300], model, streams=1, ttt=ttt)
    steps: list[int] = []
    monkeypatch.setattr(codec_text, "CheckedPredictor", lambda *a: counted(CheckedPredictor(*a), steps))
    hostile = replace(
        coded.text,
        num_bytes=2**31,
        streams=(CodedStream(4_000, bytes(400), False),),
        checkpoints=bytes(num_checkpoints(4_000)),
    )
    with pytest.raises(ArtifactError, match="decoding went wrong within"):
        decompress_bytes(file_format.write(hostile), model)
    assert len(steps) < 300


def counted(checkpoints: CheckedPredictor, steps: list[int]) -> CheckedPredictor:
    accept = checkpoints.accept

    def count(tokens: np.ndarray) -> None:
        steps.append(1)
        accept(tokens)

    checkpoints.accept = count  # type: ignore[method-assign]
    return checkpoints


def test_checkpoints_are_few_and_dense_at_first() -> None:
    counts = [num_checkpoints(steps) for steps in range(9_000)]
    assert np.flatnonzero(np.diff(counts)).tolist() == [
        s - 1 for s in (64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192)
    ]
    assert np.diff(counts).max() == 1


class Silent:
    """A predictor without predictions."""

    def logits(self, going: np.ndarray) -> torch.Tensor:
        raise AssertionError

    def accept(self, tokens: np.ndarray) -> None:
        pass


@pytest.mark.parametrize("wrong_step", [0, 30, 63])
def test_a_checkpoint_covers_all_tokens_before_it(wrong_step: int) -> None:
    coder = CheckedPredictor(Silent())
    streams = np.random.default_rng(0).integers(0, 300, (64, 3))
    for tokens in streams:
        coder.accept(tokens)
    streams[wrong_step, 1] += 1
    decoder = CheckedPredictor(Silent(), bytes(coder.collected))
    with pytest.raises(ArtifactError, match="within 64 steps"):
        for tokens in streams:
            decoder.accept(tokens)


def test_a_file_of_version_1_is_decoded_by_the_steps_that_coded_it(
    model: CodecModel, letters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("bitgolf.codec.window_predictor.is_small", lambda *_: False)
        text = compress_bytes(letters[:200], model, streams=2).text
    earlier = fuzz.as_version_1(text)
    monkeypatch.setattr("bitgolf.codec.window_predictor.SmallStep", None)
    assert decompress_bytes(earlier, model) == letters[:200]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 256}, "needs 256 threads"),
        (
            {"ttt": TTTConfig(method="full", weights={"epochs": 10**9, "chunk_tokens": 16})},
            "epochs 1000000000",
        ),
        ({"ttt": TTTConfig(method="lora", lora={"rank": 10**9})}, "rank 1000000000"),
        ({"streams": (CodedStream(1, bytes(4), False),) * 4096}, "4096 streams take too much memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_cannot_ask_for_much_work(
    change: dict[str, Any], message: str, model: CodecModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(codec_text, "_MAX_CACHE_BYTES", 1 << 20)
    text = replace(compress_bytes(b"some text", model).text, num_bytes=2**20, **change)
    with pytest.raises(ArtifactError, match=message):
        decompress_bytes(file_format.write(text), model)


def test_on_cuda_files_without_steps_have_earlier_arithmetic(model: CodecModel) -> None:
    latest = compress_bytes(b"some text", model).text
    version_1 = replace(latest, checkpoints=None)
    with_steps = replace(latest, platform={"steps": "2"})
    for text, on_cpu, on_cuda in ((latest, False, True), (version_1, True, True), (with_steps, False, False)):
        assert codec_text._is_earlier(text, torch.device("cpu")) == on_cpu
        assert codec_text._is_earlier(text, torch.device("cuda")) == on_cuda


def test_caches_of_all_streams_fill_at_most_half_of_a_gpu(model: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: Any = SimpleNamespace(device=torch.device("cuda"), model=model.packed.model, window=1 << 20)
    position_bytes = 2 * 3 * 16 * 4  # keys and values of three layers, two heads of eight numbers
    for share, most in ((300, 300), (3_000, 3_000), (5, 2**28 // (64 * position_bytes))):
        memory = SimpleNamespace(total_memory=2 * share * position_bytes << 20)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, memory=memory: memory)
        assert codec_text._most_streams(packed) == max(most, 2**28 // (64 * position_bytes))


def test_what_a_decoder_would_refuse_is_not_coded(model: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    many = TTTConfig(method="full", weights={"epochs": 101, "chunk_tokens": 16})
    with pytest.raises(ConfigError, match="epochs 101 is above the codec's limit of 100"):
        compress_bytes(b"some text", model, ttt=many)
    monkeypatch.setattr(codec_text, "_MAX_CACHE_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match=r"500 streams take too much memory with this model; use [0-9]+ or fewer"):
        compress_bytes(bytes(500), model, streams=500)


def test_control_tokens_in_a_stream_are_refused(model: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_text, "tokenize", lambda parts, tokenizer: [stream_of(1)])
    coded = compress_bytes(b"a", model)
    with pytest.raises(ArtifactError, match="token 1 at position 0 of a stream stands for no text"):
        decompress_bytes(coded.data, model)


def stream_of(*tokens: int) -> Any:
    from bitgolf.codec.tokens import CodedTokens

    return CodedTokens(np.array(tokens), False)


def test_streams_are_chosen_by_size() -> None:
    """Eight windows of three bytes per token and stream."""
    choose = codec_text._num_streams
    sizes = {1: 1, 49_151: 1, 49_152: 1, 98_303: 1, 98_304: 2, 49_152 * 77 - 1: 76, 49_152 * 77: 77, 49_152 * 78: 77}
    assert {size: choose(0, size, 2048, 77) for size in sizes} == sizes
    assert choose(0, 98_304, 1024, 77) == 4
    assert [choose(*given, 1024, 1) for given in ((3, 100), (100, 100), (1, 1), (4096, 10**6))] == [3, 100, 1, 4096]
    for streams, size, most in ((101, 100, "100"), (4097, 10**6, "4,096"), (-1, 9, "9")):
        with pytest.raises(ConfigError, match=f"{streams} streams of {size:,} bytes.*from 1 to {most}$"):
            choose(streams, size, 1024, 1)


@pytest.mark.parametrize(("device", "room", "most"), [("cpu", 9, 128), ("cuda", 511, 511), ("cuda", 513, 512)])
def test_more_streams_are_chosen_on_a_gpu_that_has_room_for_them(
    device: str, room: int, most: int, model: CodecModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Chosen(Exception):
        pass

    def choose(*arguments: int) -> int:
        raise Chosen(*arguments)

    monkeypatch.setattr(codec_text, "_num_streams", choose)
    monkeypatch.setattr(codec_text, "_most_streams", lambda packed: room)
    packed: Any = SimpleNamespace(**vars(model.packed) | {"device": torch.device(device)})
    with pytest.raises(Chosen) as chosen:
        compress_bytes(b"some text", replace(model, packed=packed))
    assert chosen.value.args == (0, 9, 16, most)


@pytest.mark.parametrize(("cores", "most"), [(None, 16), (4, 16), (5, 20)])
def test_a_file_may_need_four_threads_per_core_or_sixteen(
    cores: int | None, most: int, model: CodecModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    text = replace(compress_bytes(b"", model).text, threads=most)
    assert decompress_bytes(file_format.write(text), model) == b""
    with pytest.raises(ArtifactError, match=f"needs {most + 1} threads; on this machine at most {most} are"):
        decompress_bytes(file_format.write(replace(text, threads=most + 1)), model)


def test_chunks_that_hold_the_longest_stream_are_a_warning(
    model: CodecModel, letters: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        coded = compress_bytes(letters[:60], model, ttt=TTTConfig(method="full", weights={"chunk_tokens": 16}))
        assert coded.num_tokens > 16 and not caplog.records
        compress_bytes(letters[:60], model, ttt=TTTConfig(method="full"))
    assert "ttt.weights.chunk_tokens 32768 holds the longest stream" in caplog.text


def test_progress_is_reported(model: CodecModel, letters: bytes) -> None:
    reports: list[tuple[str, float, float]] = []
    coded = compress_bytes(letters[:90], model, streams=2, progress=lambda *a: reports.append(a[:3]))
    decompress_bytes(coded.data, model, progress=lambda *a: reports.append(a[:3]))
    total = coded.num_tokens
    assert ("compress", total, total) in reports and reports[-1] == ("decompress", total, total)


@pytest.mark.parametrize(
    ("chunk", "lengths", "warned"), [(9, (9, 4), True), (11, (9, 4), True), (8, (9, 4), False), (9, (), False)]
)
def test_chunks_that_are_as_long_as_a_stream_teach_nothing(
    chunk: int, lengths: tuple[int, ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [SimpleNamespace(tokens=range(length)) for length in lengths]
    for method in ("full", "none"):
        ttt = TTTConfig(method=method, weights={"chunk_tokens": chunk})
        codec_text._warn_of_long_chunks(ttt, streams)  # type: ignore[arg-type]
        words = f"chunk_tokens {chunk} holds the longest stream of 9 tokens"
        assert (words in caplog.text) == (warned and method == "full")
        caplog.clear()


def test_documents_whose_text_trains_the_model_are_not_coded(model: CodecModel) -> None:
    ttt = TTTConfig(method="lora", lora={"global_after": (5,), "chunk_tokens": 8})
    with pytest.raises(ConfigError, match=r"global_after trains the model's weights .* set ttt.lora.global_after \[\]"):
        compress_bytes(b"some text", model, ttt=ttt)
