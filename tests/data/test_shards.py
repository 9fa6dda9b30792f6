"""The shard format, byte by byte, and streams over many files."""

import hashlib
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitgolf.data.shards import ShardWriter, TokenShards, find_shards, read_header, write_shard
from bitgolf.errors import DataError


def independent_write(path: Path, tokens: list[int]) -> None:
    """The challenge's format with `struct` alone."""
    header = [20240520, 1, len(tokens)] + [0] * 253
    path.write_bytes(struct.pack("<256i", *header) + struct.pack(f"<{len(tokens)}H", *tokens))


def test_format_is_the_challenges(tmp_path: Path) -> None:
    tokens = [1, 5, 65535, 0, 258]
    independent_write(tmp_path / "a.bin", tokens)
    write_shard(tmp_path / "b.bin", np.array(tokens))
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert TokenShards([tmp_path / "a.bin"]).read(0, 5).tolist() == tokens


@given(st.lists(st.lists(st.integers(0, 65535), max_size=30), max_size=12), st.integers(1, 17))
@settings(max_examples=60, deadline=None)
def test_writer_cuts_a_stream_that_reads_back(tmp_path_factory, parts: list[list[int]], size: int) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("writer")
    whole = [t for part in parts for t in part]
    with ShardWriter(folder, "train", size) as writer:
        for part in parts:
            writer.append(np.array(part, dtype=np.uint16))
    assert [info["tokens"] for info in writer.shards] == [len(whole[i : i + size]) for i in range(0, len(whole), size)]
    assert writer.num_tokens == len(whole)
    assert len(list(folder.iterdir())) == len(writer.shards)
    for number, info in enumerate(writer.shards):
        path = folder / info["file"]
        assert info["file"] == f"train_{number:06d}.bin"
        assert path.stat().st_size == 1024 + 2 * info["tokens"]
        assert info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    if whole:
        stream = TokenShards(find_shards(folder, "train"))
        assert stream.num_tokens == len(whole)
        assert [t for chunk in stream.chunks(5) for t in chunk.tolist()] == whole


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_read_crosses_files(tmp_path_factory, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("cross")
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    whole = np.arange(sum(sizes), dtype=np.uint16)
    cuts = np.cumsum([0, *sizes])
    for i, (a, b) in enumerate(pairwise(cuts)):
        write_shard(folder / f"x_val_{i:06d}.bin", whole[a:b])
    stream = TokenShards.open(folder, "val")
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    read = stream.read(start, length)
    assert read.dtype == np.uint16 and read.tolist() == whole[start : start + length].tolist()


def test_reading_outside_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(10))
    stream = TokenShards([tmp_path / "a.bin"])
    for start, length in ((-1, 2), (0, 11), (10, 1), (3, -1)):
        with pytest.raises(DataError, match="outside the stream of 10 tokens"):
            stream.read(start, length)


def test_find_shards_leaves_sidecars_out(tmp_path: Path) -> None:
    names = ["fineweb_val_000001.bin", "fineweb_val_000000.bin", "fineweb_val_bytes_000000.bin", "fineweb_train_0.bin"]
    for name in [*names, "val.bin", "fineweb_val_0.idx"]:
        (tmp_path / name).touch()
    assert [p.name for p in find_shards(tmp_path, "val")] == ["fineweb_val_000000.bin", "fineweb_val_000001.bin"]
    assert [p.name for p in find_shards(tmp_path, "train")] == ["fineweb_train_0.bin"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read shard"),
        (b"", "is empty: 0 bytes"),
        (b"\0" * 500, "is truncated: 500 bytes"),
        (struct.pack("<256i", 20240521, 1, 1, *[0] * 253) + b"ab", "starts with 20240521, shards with 20240520"),
        (struct.pack("<256i", 20240520, 2, 1, *[0] * 253) + b"ab", "version 2"),
        (struct.pack("<256i", 20240520, 1, 0, *[0] * 253), "says 0 tokens"),
        (struct.pack("<256i", 20240520, 1, -5, *[0] * 253), "says -5 tokens"),
        (struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + b"abcd", "truncated: 1,028 bytes.*3 tokens = 1,030"),
        (struct.pack("<256i", 20240520, 1, 1, *[0] * 253) + b"abcd", "too long: 1,028 bytes"),
        (struct.pack("<256i", 20240520, 1, 2**31 - 1, *[0] * 253) + b"abcd", "truncated"),
    ],
)
def test_damaged_shards_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x_train_000000.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=message):
        TokenShards([path])


def test_ids_beyond_the_vocabulary_are_found(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.full(100, 9))
    tokens = np.full(50, 9)
    tokens[37] = 10
    write_shard(tmp_path / "b.bin", tokens)
    stream = TokenShards([tmp_path / "a.bin", tmp_path / "b.bin"])
    stream.validate(11)
    with pytest.raises(DataError, match=r"b\.bin: token 37 is id 10, beyond the vocabulary of 10"):
        stream.validate(10)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for value in (-1, 65536):
        with pytest.raises(DataError, match="do not fit"):
            write_shard(tmp_path / "a.bin", np.array([3, value]))
    assert not list(tmp_path.iterdir())


def test_a_failing_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "train", 4) as writer:
        writer.append(np.arange(6))
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["train_000000.bin"]
    assert read_header(tmp_path / "train_000000.bin") == 4


def test_no_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one"):
        TokenShards([])
    with pytest.raises(DataError, match=r"no shards named \*val_\*\.bin"):
        TokenShards.open(tmp_path, "val")
