"""Compressors: lossless on any bytes, deterministic, and bounded on hostile ones."""

import lzma
import sys
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import memory_below

from bitgolf.artifact.compressors import compress, compressor_names, decompress, missing_package
from bitgolf.errors import ArtifactError, ConfigError

NAMES = [name for name in compressor_names() if missing_package(name) is None]
ALL = [
    pytest.param(name, marks=[] if name in NAMES else pytest.mark.skip(reason=f"{name} is not installed"))
    for name in compressor_names()
]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=30, deadline=None)
@given(data=st.one_of(st.binary(max_size=400), st.binary(max_size=8).map(lambda piece: piece * 300)))
def test_round_trip(name: str, data: bytes) -> None:
    packed = compress(name, data)
    assert packed == compress(name, data)
    assert decompress(name, packed, len(data)) == data
    assert decompress(name, memoryview(packed), len(data)) == data


@pytest.mark.parametrize("name", ALL)
def test_codes_compress_close_to_their_entropy(name: str) -> None:
    codes = np.clip(np.round(np.random.default_rng(0).normal(0, 8, 1 << 17)), -31, 31).astype(np.int8)
    counts = np.bincount(codes.view(np.uint8), minlength=256)
    share = counts[counts > 0] / codes.size
    ideal = -(share * np.log2(share)).sum() * codes.size / 8
    packed = compress(name, codes.tobytes())
    assert ideal < len(packed) < (1.10 if name == "zlib" else 1.04) * ideal
    assert decompress(name, packed, codes.size) == codes.tobytes()


@pytest.mark.parametrize("name", ALL)
def test_every_truncation_and_extension_is_refused(name: str) -> None:
    data = b"the quick brown fox jumps over the lazy dog " * 8
    packed = compress(name, data)
    for bad in [*(packed[:n] for n in range(len(packed))), packed + b"\0", packed + packed]:
        with pytest.raises(ArtifactError):
            decompress(name, bad, len(data))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("declared", [-1, 0, 1, 351, 353, 1 << 40])
def test_a_wrong_size_is_refused(name: str, declared: int) -> None:
    data = b"the quick brown fox jumps over the lazy dog " * 8
    assert len(data) == 352
    with pytest.raises(ArtifactError):
        decompress(name, compress(name, data), declared)


@pytest.mark.parametrize("name", ALL)
def test_flipped_bytes_never_give_more_than_declared(name: str) -> None:
    random = np.random.default_rng(1)
    data = random.normal(0, 3, 600).astype(np.int8).tobytes()
    packed = compress(name, data)
    for _ in range(250):
        bad = bytearray(packed)
        for position in random.integers(0, len(bad), random.integers(1, 4)):
            bad[position] ^= int(random.integers(1, 256))
        try:
            raw = decompress(name, bytes(bad), len(data))
        except ArtifactError:
            continue
        assert len(raw) == len(data)


def bomb(name: str, size: int) -> bytes:
    """`size` zero bytes, packed so that the stream does not say how many."""
    data = bytes(size)
    if name == "zstd":
        return zstandard.ZstdCompressor(level=3, write_content_size=False).compress(data)
    if name == "lzma":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 1}]
        return lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)
    return zlib.compress(data, 9) if name == "zlib" else compress(name, data)


@pytest.mark.parametrize("name", ALL)
def test_a_bomb_stops_at_the_declared_size(name: str) -> None:
    packed = bomb(name, 1 << 22)
    with memory_below(1 << 20), pytest.raises(ArtifactError):
        decompress(name, packed, 10_000)


def test_zstd_frames_that_ask_for_a_large_window_are_refused_before_they_get_it() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=29)
    encoder = zstandard.ZstdCompressor(compression_params=parameters)
    with encoder.stream_writer(sink := _Sink(), size=-1) as writer:
        writer.write(b"x" * 1000)
    with pytest.raises(ArtifactError):
        decompress("zstd", sink.data, 1000)


class _Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, piece: bytes) -> int:
        self.data += bytes(piece)
        return len(piece)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for use in (lambda: compress("zpaq", b"x"), lambda: decompress("zpaq", b"x", 1), lambda: missing_package("zpaq")):
        with pytest.raises(ConfigError, match="zstd, lzma, zlib, brotli"):
            use()


def test_a_missing_package_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    assert missing_package("brotli") == "brotli>=1.2"
    assert missing_package("zstd") is None
    for use in (lambda: compress("brotli", b"x"), lambda: decompress("brotli", b"x", 1)):
        with pytest.raises(ConfigError, match=r"pip install .brotli>=1\.2"):
            use()


def test_an_old_brotli_without_a_bound_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldBrotli:
        class Decompressor:
            def process(self, data: bytes) -> bytes:
                return data

    monkeypatch.setitem(sys.modules, "brotli", OldBrotli)
    assert missing_package("brotli") == "brotli>=1.2"


def test_a_zstd_frame_that_declares_a_gigabyte_is_refused_before_it_is_allocated() -> None:
    size = 1 << 30
    frame = b"\x28\xb5\x2f\xfd\xa0" + size.to_bytes(4, "little") + b"\x01\0\0"  # one empty block
    with pytest.raises(ArtifactError, match="12 bytes cannot expand to the declared 1073741824"):
        decompress("zstd", frame, size)
