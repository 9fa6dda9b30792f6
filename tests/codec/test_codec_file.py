"""The file format: small headers, exact fields, and ArtifactError for every other file."""

import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.codec import file_format
from bitgolf.codec.file_format import CodedStream, CodedText, read, write
from bitgolf.config import TTTConfig
from bitgolf.errors import ArtifactError

PLATFORM = {"bitgolf": "0.1.0", "device": "Some CPU", "dtype": "float32", "simd": "AVX2", "torch": "2.13.0+cpu"}
CODED = CodedText(
    num_bytes=400,
    text_digest=bytes(range(16)),
    model_digest=b"\xaa" * 8,
    platform=PLATFORM,
    threads=2,
    stride=64,
    ttt=None,
    streams=(CodedStream(90, b"abcdefgh", False), CodedStream(80, b"", True)),
    checkpoints=b"c",
)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.binary(max_size=5), st.booleans()), max_size=6),
    st.integers(1, 256),
    st.integers(1, 2048),
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=20).filter(str.isprintable), max_size=3),
    st.sampled_from([None, TTTConfig(method="full"), TTTConfig(method="lora", lora={"targets": ("k",), "rank": 3})]),
    st.binary(min_size=24, max_size=24),
)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(
    rows: list[tuple[int, bytes, bool]],
    threads: int,
    stride: int,
    platform: dict[str, str],
    ttt: TTTConfig | None,
    digests: bytes,
) -> None:
    streams = tuple(CodedStream(tokens, words * 4, joined) for tokens, words, joined in rows)
    num_bytes = 50 * len(streams)
    coded = CodedText(num_bytes, digests[:16], digests[16:], platform, threads, stride, ttt, streams, b"")
    assert read(write(coded)) == coded


def test_the_layout_is_the_documented_one() -> None:
    data = write(CODED)
    magic, version, header, checksum, model, text = struct.unpack_from("<4sBHI8s16s", data)
    assert (magic, version, model, text) == (b"\x93bgt", 2, CODED.model_digest, CODED.text_digest)
    assert checksum == zlib.crc32(data[:7] + data[11:])
    assert data[35 + header :] == b"abcdefgh" + b"c"
    value = json.loads(zlib.decompressobj(-15, zdict=file_format._DICTIONARIES[2]).decompress(data[35 : 35 + header]))
    assert value == {
        "bytes": 400,
        "platform": PLATFORM,
        "streams": [[90, 2, 0], [80, 0, 1]],
        "stride": 64,
        "threads": 2,
        "ttt": None,
    }


def test_the_dictionaries_never_change() -> None:
    checksums = {version: zlib.crc32(dictionary) for version, dictionary in file_format._DICTIONARIES.items()}
    assert checksums == {1: 4030696221, 2: 2768660496}


def test_a_file_of_version_1_is_read() -> None:
    """Written by commit 237e293, whose settings were flat."""
    data = bytes.fromhex(
        "93626774013a00a24c4f9baaaaaaaaaaaaaaaa000102030405060708090a0b0c0d0e0f83eb303130205a533030f180028580ff88f29da5"
        "818e11d88316063a063a86b1b138fc69349c8a0678294062c960604ccba20156580fa6a201006162636465666768"
    )
    lora = {"lora.chunk_tokens": 64, "lora.lr": 0.003}
    assert read(data) == replace(CODED, ttt=TTTConfig(method="lora").updated(lora), checkpoints=None)


def test_headers_are_small() -> None:
    one = replace(CODED, streams=CODED.streams[:1], num_bytes=180)
    assert len(write(one)) - 8 <= 35 + 46
    adapted = replace(one, ttt=TTTConfig(method="full", weights={"chunk_tokens": 1024, "lr": 0.01}))
    assert len(write(adapted)) - len(write(one)) <= 20
    streams = tuple(CodedStream(1000 + 7 * i % 91, bytes(400), False) for i in range(64))
    many = write(replace(CODED, streams=streams, num_bytes=160_000, checkpoints=b"12345"))
    assert len(many) - 64 * 400 <= 85 + 4 * 64


def test_every_truncation_extension_and_flipped_byte_is_refused() -> None:
    data = write(CODED)
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            read(data[:length])
    with pytest.raises(ArtifactError, match="checksum"):
        read(data + b"\0")
    for position in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(data)
            bad[position] ^= flip
            with pytest.raises(ArtifactError):
                read(bytes(bad))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"plain text", "it begins with b'plai'"),
        (b"\x93bgt\x01", "truncated: 5 of 35"),
        (b"\x93bgt\x03" + bytes(40), r"newer bitgolf \(format v3\)"),
        (b"\x93bgt\x00" + bytes(40), "version 0 does not exist"),
    ],
)
def test_other_files_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "must be an object with the keys"),
        ({"bytes": -1}, "bytes -1"),
        ({"bytes": True}, "bytes True"),
        ({"bytes": 4.0}, "bytes 4.0"),
        ({"bytes": 2**31 + 1}, "2,147,483,648"),
        ({"bytes": 0}, "streams of 0 bytes"),
        ({"streams": []}, "streams of 400 bytes"),
        ({"streams": 5}, "streams of 400 bytes"),
        ({"streams": [[1, 0, 0]] * 5000}, "streams of 400 bytes"),
        ({"streams": [[90, 2]]}, r"stream 0 must be \[tokens"),
        ({"streams": [[90, 3, 0]]}, "stream 0: words 3"),
        ({"streams": [[90, 1, 0], [80, 0, 1]]}, r"declares a file of \d+ bytes"),
        ({"streams": [[0, 2, 0], [80, 0, 1]]}, "stream 0: tokens 0"),
        ({"streams": [[90, 2, 0], [80, 0, 2]]}, "stream 1: joined 2"),
        ({"streams": [[9_000, 2, 0], [1, 0, 1]]}, "2 streams of up to 9,000 tokens are more than a file of"),
        ({"streams": [[2**31 + 1, 2, 0], [1, 0, 1]]}, "stream 0: tokens 2147483649"),
        ({"ttt": {"method": "full", "weights": {"epochs": 10**9}}}, "epochs 1000000000 is above the limit of 100"),
        ({"platform": {"torch": 2}}, "platform"),
        ({"platform": {"torch": "x" * 999}}, "platform"),
        ({"platform": []}, "platform"),
        ({"platform": {"device": "\x1b[2J"}}, "printable"),
        ({"threads": 0}, "threads 0"),
        ({"threads": 257}, "threads 257"),
        ({"stride": 0}, "stride 0"),
        ({"ttt": []}, "test-time training"),
        ({"ttt": {"method": "magic"}}, "test-time training"),
        ({"ttt": {"surprise": 1}}, "test-time training"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_lie_are_refused(change: dict[str, Any], message: str) -> None:
    data = write(CODED)
    value = json.loads(fuzz.header_text(data)) | change
    with pytest.raises(ArtifactError, match=message):
        read(fuzz.with_header(data, json.dumps(value).encode()))


EMPTY = replace(CODED, num_bytes=0, streams=(), checkpoints=b"")


@pytest.mark.parametrize(
    ("last", "first", "message"),
    [
        ({"threads": 256}, {"threads": 257}, "threads 257 must be a whole number from 1 to 256"),
        ({"stride": 2**24}, {"stride": 2**24 + 1}, "stride 16777217 must be a whole number from 1 to 16,777,216"),
        (
            {"ttt": {"method": "full", "weights": {"epochs": 100}}},
            {"ttt": {"method": "full", "weights": {"epochs": 101}}},
            "epochs 101 is above the limit of 100",
        ),
        ({"platform": {"device": "x" * 199}}, {"platform": {"device": "x" * 200}}, "platform must be an object"),
        ({"platform": {"x" * 199: "y"}}, {"platform": {"x" * 200: "y"}}, "platform must be an object"),
    ],
    ids=str,
)
def test_the_last_allowed_value_is_read_and_the_next_refused(
    last: dict[str, Any], first: dict[str, Any], message: str
) -> None:
    data = write(EMPTY)
    value = json.loads(fuzz.header_text(data))
    read(fuzz.with_header(data, json.dumps(value | last).encode()))
    with pytest.raises(ArtifactError, match=message):
        read(fuzz.with_header(data, json.dumps(value | first).encode()))


def test_sizes_of_texts_headers_and_streams_are_exact_limits() -> None:
    data = write(EMPTY)
    text = fuzz.header_text(data)
    assert read(fuzz.with_header(data, text + b" " * (2**18 - len(text)))) == EMPTY
    with pytest.raises(ArtifactError, match="above the limit of 262,144 bytes"):
        read(fuzz.with_header(data, text + b" " * (2**18 - len(text) + 1)))
    most = replace(CODED, num_bytes=4096, streams=(CodedStream(1, b"", False),) * 4096, checkpoints=b"")
    assert read(write(most), max_text_bytes=4096) == most
    with pytest.raises(ArtifactError, match="bytes 4096 must be a whole number from 0 to 4,095"):
        read(write(most), max_text_bytes=4095)
    with pytest.raises(ArtifactError, match="cannot be the streams of 4097 bytes"):
        read(write(replace(most, num_bytes=4097, streams=most.streams[:1] * 4097)))


@pytest.mark.parametrize(("num_streams", "steps"), [(1, 4_000_000), (4096, 500), (7, 2**31)])
def test_work_is_bounded_by_the_size_of_the_file(num_streams: int, steps: int) -> None:
    rows = [[steps, 2, 0]] + [[1, 0, 0]] * (num_streams - 1)
    value = {**json.loads(fuzz.header_text(write(CODED))), "bytes": 2**31, "streams": rows}
    with pytest.raises(ArtifactError, match="are more than a file of"):
        read(fuzz.with_header(write(CODED), json.dumps(value).encode()))


def test_a_file_of_little_information_is_lengthened_by_zeros() -> None:
    repetitive = replace(CODED, streams=(CodedStream(50_000, b"word", False),), num_bytes=50_000, checkpoints=b"c" * 29)
    data = write(repetitive)
    assert len(data) == 50_000 / 16 and read(data) == repetitive
    for bad in (data[:-1], data[:-1] + b"z", data + b"\0"):
        with pytest.raises(ArtifactError):
            read(fuzz.resealed(bad))


@pytest.mark.parametrize(("tokens", "accepted"), [(512, True), (513, False)])
def test_long_files_of_version_1_are_unchecked_and_need_consent(tokens: int, accepted: bool) -> None:
    streams = (CodedStream(tokens, b"word", False), CodedStream(2, b"", True))
    data = fuzz.as_version_1(replace(CODED, num_bytes=2_000, streams=streams))
    assert read(data, allow_unchecked=True).streams == streams
    if accepted:
        assert read(data).checkpoints is None
    else:
        with pytest.raises(ArtifactError, match=r"version 1 with .* --allow-unchecked"):
            read(data)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"NaN", b"[" * 100_000, b'{"bytes":1e999}', b"\xff", b"1" * 5000], ids=len
)
def test_headers_that_are_no_json_object_are_refused(text: bytes) -> None:
    with pytest.raises(ArtifactError):
        read(fuzz.with_header(write(CODED), text))


@pytest.mark.parametrize("change", [lambda header: header + b"x", lambda header: header[:-1]], ids=["longer", "cut"])
def test_a_compressed_header_of_another_length_is_refused(change: Callable[[bytes], bytes]) -> None:
    data = write(CODED)
    size = int.from_bytes(data[5:7], "little")
    header = change(data[35 : 35 + size])
    bad = data[:5] + len(header).to_bytes(2, "little") + data[7:35] + header + data[35 + size :]
    with pytest.raises(ArtifactError, match=r"cut off or followed by other bytes|does not inflate"):
        read(fuzz.resealed(bad))


def test_a_header_that_swells_is_cut_off() -> None:
    with pytest.raises(ArtifactError, match="above the limit"):
        read(fuzz.with_header(write(CODED), b" " * 10_000_000))


def test_too_many_streams_to_describe_are_refused_when_written() -> None:
    rng = random.Random(0)
    streams = tuple(CodedStream(rng.randrange(2**30), bytes(4 * rng.randrange(40)), False) for _ in range(20_000))
    with pytest.raises(ArtifactError, match="use fewer streams"):
        write(replace(CODED, streams=streams))


@pytest.mark.parametrize(("temperature", "is_read"), [(1.0, True), (1.2, False)])
def test_files_of_earlier_versions_are_read_unless_they_used_a_removed_setting(
    temperature: float, is_read: bool
) -> None:
    ttt = TTTConfig(method="full").model_dump(mode="json") | {"temperature": temperature, "temperature_lr": 0.0}
    if is_read:
        assert file_format._ttt(ttt) == TTTConfig(method="full")
    else:
        with pytest.raises(ArtifactError, match="not settings of test-time training"):
            file_format._ttt(ttt)
