"""SentencePiece files rearranged: every byte comes back, in about half the compressed size."""

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitgolf.artifact.compressors import compress, decompress
from bitgolf.artifact.tokenizer_bytes import rearrange, restore
from bitgolf.errors import ArtifactError

SETTINGS = b"\x12\x05\x0a\x03abc"


def model(pieces: list[tuple[bytes, float, int]], rest: bytes = SETTINGS) -> bytes:
    """The protocol-buffer encoding, written independently."""
    entries = []
    for piece, score, kind in pieces:
        body = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + struct.pack("<f", score)
        body += b"\x18" + bytes([kind]) if kind else b""
        entries.append(b"\x0a" + bytes([len(body)]) + body)
    return b"".join(entries) + rest


def vocabulary(size: int) -> list[tuple[bytes, float, int]]:
    rng = np.random.default_rng(size)
    special = [(f"<0x{i:02X}>".encode(), 0.0, 6) for i in range(256)]
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype=np.uint8)
    words = [bytes(rng.choice(letters, rng.integers(2, 7), p=np.full(26, 1 / 26))) for _ in range(size)]
    return special + [(word, -float(i), 0) for i, word in enumerate(words)]


def test_scores_take_few_bytes() -> None:
    pieces = vocabulary(2000)
    data = model(pieces)
    packed = compress("range", data)
    alone = len(compress("lzma", b"\n".join(piece for piece, _, _ in pieces)))
    assert decompress("range", packed, len(data)) == data
    assert len(packed) < alone + 200 < 0.75 * len(compress("lzma", data))


@settings(max_examples=40, deadline=None)
@example(pieces=[(bytes(5), -1.0, 0)], rest=bytes(4))  # longer when rearranged
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=140), st.floats(width=32) | st.integers(-9, 0).map(float), st.sampled_from([0, 3, 255])
        ),
        max_size=6,
    ),
    st.binary(max_size=20),
)
def test_any_list_comes_back_or_is_left_alone(pieces: list[tuple[bytes, float, int]], rest: bytes) -> None:
    pieces = [(piece, score, kind) for piece, score, kind in pieces if len(piece) < 128]
    data = model(pieces, rest)
    rearranged = rearrange(data)
    assert rearranged is None or restore(rearranged) == data
    if pieces and all(len(piece) < 110 and abs(score) < 1e30 for piece, score, _ in pieces):
        assert rearranged is not None
    assert decompress("range", compress("range", data), len(data)) == data


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_other_bytes_are_left_alone_or_come_back(data: bytes) -> None:
    for start in (b"", b"\x0a", b"\x0a\x0c\x0a\x03abc\x15\0\0\0\0\x18\x03"):
        rearranged = rearrange(start + data)
        assert rearranged is None or restore(rearranged) == start + data


def test_an_entry_has_at_most_127_bytes() -> None:
    for letters, listed in ((118, True), (119, False)):  # besides 9 bytes of tags, score and type
        assert (rearrange(model([(b"x" * letters, -1.0, 3)])) is not None) is listed


def test_the_list_ends_where_an_entry_has_another_form() -> None:
    score = b"\x15\0\0\0\0"
    for body in (
        b"\x12\x01a" + score,
        b"\x0a\x01a\x1d\0\0\0\0",
        b"\x0a\x01a" + score + b"\x20\x01",
        b"\x0a\x01a\x15\0",
    ):
        data = model(vocabulary(5))[: -len(SETTINGS)] + b"\x0a" + bytes([len(body)]) + body + SETTINGS
        rearranged = rearrange(data)
        assert rearranged is not None and restore(rearranged) == data


def test_what_is_no_list_is_refused() -> None:
    sound = rearrange(model(vocabulary(5)))
    assert sound is not None
    for bad in (b"", sound[:4], sound[:100], b"\xff\xff\xff\xff\0", b"\x01\0\0\0\x07" + bytes(5) + b"no separator"):
        with pytest.raises(ArtifactError, match="list of"):
            restore(bad)
    with pytest.raises(ArtifactError, match="no number"):
        restore(struct.pack("<IBB", 1, 7, 0) + struct.pack("<I", 0x7FC00000 ^ 0xBF800000) + b"piece\x07")
    with pytest.raises(ArtifactError, match="too long"):
        restore(struct.pack("<IBB", 1, 7, 0) + bytes(4) + bytes(range(8, 140)) + b"\x07")


def test_damaged_streams_of_pieces_are_refused() -> None:
    data = model(vocabulary(300))
    packed = compress("range", data)
    assert packed[:1] == b"\3"
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(packed)
        bad[rng.integers(len(bad))] ^= int(rng.integers(1, 256))
        try:
            assert len(decompress("range", bytes(bad), len(data))) == len(data)
        except ArtifactError as error:
            assert str(error)
    for size, words in ((len(data) - 1, ""), (len(data) + 1, ""), (10, "bytes, more than the declared 10")):
        with pytest.raises(ArtifactError, match=words):
            decompress("range", packed, size)
