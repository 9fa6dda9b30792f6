"""Sources yield every document in a fixed order, and name file and line of bad input."""

import bz2
import contextlib
import errno
import gzip
import io
import itertools
import json
import lzma
import os
import re
import sysconfig
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import memory_below

from bitgolf.data import text_files
from bitgolf.data.cut_text import cut_text
from bitgolf.data.sources import iterate_documents, parse_source, source_files
from bitgolf.errors import ConfigError, DataError

TEXTS = ["first", "second\nwith lines", "", "café 😀 \0 ▁", "last " * 50_000]


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": t}, ensure_ascii=False).encode() + b"\n" for t in texts)


def zipped(*files: bytes) -> bytes:
    """A zip archive of these files in a folder."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("folder")
        for number, data in enumerate(files):
            file.writestr(f"folder/{number}", data)
    return archive.getvalue()


def frames(data: bytes) -> bytes:
    """Two zstd frames, the second with a 128 MB window."""
    half = len(data) // 2
    wide = zstandard.ZstdCompressionParameters(window_log=27)
    tail = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    return zstandard.compress(data[:half]) + tail.compress(data[half:]) + tail.flush()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.zip", zipped),
        ("a.jsonl.zst", frames),
        ("b.zst", frames),
    ],
)
def test_jsonl_in_every_packing(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(jsonl(TEXTS)))
    assert list(iterate_documents(f"jsonl:{tmp_path / name}")) == TEXTS


def test_jsonl_globs_in_sorted_order(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        (tmp_path / f"part-{i}.jsonl").write_bytes(jsonl([f"{i}a", f"{i}b"]))
    (tmp_path / "odd[1].jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["odd"]) + b"\n  \n")
    assert list(iterate_documents(f"jsonl:{tmp_path}/part-*.jsonl")) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert list(iterate_documents(f"jsonl:{tmp_path}/odd[1].jsonl")) == ["odd"]
    with pytest.raises(DataError, match="no file matches"):
        list(iterate_documents(f"jsonl:{tmp_path}/none-*.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "caf\xe9"}', "line 2 is not UTF-8: byte 0xE9 at position 13"),
        (b'{"body": "x", "id": 3}', r"line 2 has no field 'text': it is keys \['body', 'id'\]"),
        (b'["text"]', "line 2 has no field 'text': it is a list"),
        (b'{"text": 5}', "line 2: the field 'text' is int"),
        (b'{"text": null}', "line 2: the field 'text' is NoneType"),
        (b'{"text": "cut', "line 2 is not JSON"),
        (b"plain words", "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'{"text": "ab\\ud800"}', r"line 2: the text contains the lone surrogate \\ud800"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "after"}\n')
    documents = iterate_documents(f"jsonl:{path}")
    assert next(documents) == "good"
    with pytest.raises(DataError, match=message) as caught:
        next(documents)
    assert str(path) in str(caught.value)


def test_a_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}\n')
    assert list(iterate_documents(f"jsonl:{tmp_path}/a.jsonl")) == ["😀"]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - b for b in data[middle : middle + 20]) + data[middle + 20 :]


def later_version(archive: bytes) -> bytes:
    """A zip archive that says that it needs a program of a version to come."""
    entry = archive.rindex(b"PK\1\2")
    return archive[: entry + 6] + b"\x99" + archive[entry + 7 :]


CHECKED = zstandard.ZstdCompressor(write_checksum=True)


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        ("zst", frames(jsonl(TEXTS))[:-9], "truncated: its last zstd frame has no end"),
        ("zst", flip(CHECKED.compress(jsonl([str(i) for i in range(9999)]))), "corrupt zst"),
        ("zst", b"no zstd at all" * 9, "corrupt zst"),
        ("gz", gzip.compress(jsonl(TEXTS))[:-9], "damaged or truncated .gz"),
        ("gz", flip(gzip.compress(jsonl([str(i) for i in range(9999)]))), "damaged or truncated .gz"),
        ("gz", b"no gzip at all", "damaged or truncated .gz"),
        ("bz2", bz2.compress(jsonl(TEXTS))[:-9], "damaged or truncated .bz2"),
        ("bz2", b"no bzip2 at all", "cannot read"),
        ("xz", lzma.compress(jsonl(TEXTS))[:-9], "damaged or truncated .xz"),
        ("xz", flip(lzma.compress(jsonl([str(i) for i in range(9999)]))), "damaged or truncated .xz"),
        ("zip", zipped(jsonl(TEXTS))[:-9], "damaged or truncated .zip"),
        ("zip", flip(zipped(jsonl([str(i) for i in range(9999)]))), "damaged or truncated .zip"),
        ("zip", zipped(b"one", b"two"), "holds 2 files"),
        ("zip", later_version(zipped(b"one")), "cannot be unpacked here"),
    ],
)
def test_damaged_archives_are_named(tmp_path: Path, suffix: str, data: bytes, message: str) -> None:
    path = tmp_path / f"x.jsonl.{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(iterate_documents(f"jsonl:{path}"))
    assert str(path) in str(caught.value)


def repeated_byte(num_blocks: int) -> bytes:
    """A zstd frame whose blocks of four bytes stand for 128 KB each."""
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"a"
    last = (1 << 17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"a"
    return b"\x28\xb5\x2f\xfd\x00\x38" + block * (num_blocks - 1) + last


@pytest.mark.parametrize(
    ("suffix", "data"),
    [("zst", repeated_byte(4_000)), ("gz", gzip.compress(bytes(1 << 27)))],  # 512 MB of 16 KB, 128 MB of 130 KB
    ids=["zst", "gz"],
)
def test_a_file_that_unpacks_to_far_more_than_text_does_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"x.txt.{suffix}"
    path.write_bytes(data)
    with memory_below(64 << 20), pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        deque(iterate_documents(f"file:{path}"), maxlen=0)


def test_directory_of_text(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub" / "b.md").write_bytes("zwei\r\nlines é".encode())
    (tmp_path / "a.txt").write_bytes(b"eins")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"\xff\xfe")
    (tmp_path / ".git" / "c.txt").write_bytes(b"hidden")
    assert list(iterate_documents(f"dir:{tmp_path}")) == ["eins", "zwei\r\nlines é"]
    assert [p.name for p in source_files(f"dir:{tmp_path}")] == ["a.txt", "empty.txt", "b.md"]


def test_directory_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a directory"):
        list(iterate_documents(f"dir:{tmp_path}/none"))
    with pytest.raises(DataError, match="no text files"):
        list(iterate_documents(f"dir:{tmp_path}"))
    (tmp_path / "latin.txt").write_bytes(b"good\nbad \xe9\nmore")
    with pytest.raises(DataError, match=r"latin\.txt, line 2 is not UTF-8"):
        list(iterate_documents(f"dir:{tmp_path}"))
    (tmp_path / "latin.txt").write_bytes(b"cut \xe2\x96")
    with pytest.raises(DataError, match=r"latin\.txt, line 1 is not UTF-8"):
        list(iterate_documents(f"dir:{tmp_path}"))


def test_a_long_file_without_newlines_is_cut_between_characters(tmp_path: Path) -> None:
    text = "é▁😀x" * 50_000
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    parts = list(iterate_documents(f"dir:{tmp_path}"))
    assert "".join(parts) == text and max(len(p.encode()) for p in parts) <= 65_536


@given(st.text(st.sampled_from("ab \n\né😀"), max_size=300), st.integers(4, 40))
@settings(max_examples=300, deadline=None)
def test_cut_text_keeps_everything(text: str, limit: int) -> None:
    parts = list(cut_text(text.splitlines(keepends=True), limit))
    assert "".join(parts) == text
    assert all(0 < len(part.encode()) <= limit for part in parts)


def test_a_blank_line_at_exactly_half_of_the_limit_is_used() -> None:
    assert list(cut_text(["a\n", "\n", "b\n", "c\n"], 6)) == ["a\n\n", "b\nc\n"]
    assert list(cut_text(["a\n", "\n", "b\n", "c\n", "d\n"], 8)) == ["a\n\nb\nc\n", "d\n"]


def test_cut_text_prefers_blank_lines() -> None:
    paragraphs = ["a" * 30 + "\n", "b" * 30 + "\n", "\n", "c" * 30 + "\n"]
    assert list(cut_text(paragraphs, 80)) == ["".join(paragraphs[:3]), paragraphs[3]]


def test_stdlib_is_deterministic_bounded_and_mixed() -> None:
    first = list(itertools.islice(iterate_documents("stdlib"), 150))
    assert first == list(itertools.islice(iterate_documents("stdlib"), 150))
    assert max(len(d.encode()) for d in first) <= 16 * 1024
    assert sum("def " in d for d in first) > 20 and sum("def " not in d for d in first) > 5


def test_tests_and_packages_are_no_part_of_stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "a.py",
        "sub/b.py",
        "test/c.py",
        "site-packages/d.py",
        "sub/tests/e.py",
        "_sysconfigdata_x.py",
        "f.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"mark = '{Path(name).stem} was read'\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    read = re.findall(r"'(\w+) was read'", "\n".join(iterate_documents("stdlib")))
    assert sorted(read) == ["a", "b"]
    for path in (tmp_path / "a.py", tmp_path / "sub" / "b.py"):
        path.unlink()
    with pytest.raises(DataError, match="has no library sources under"):
        next(iter(iterate_documents("stdlib")))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("jsnol:x", "did you mean 'jsonl'.*allowed: a path, stdlib"),
        ("", "unknown data source ''; allowed"),
        ("jsonl:", "needs a path"),
        ("dir", "needs a path"),
        ("stdlib:3", "takes no argument"),
    ],
)
def test_bad_source_names(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_source(source)


def test_token_sources_hold_no_text() -> None:
    with pytest.raises(ConfigError, match="contains tokens"):
        iterate_documents("shards:x")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("some words")
    assert list(iterate_documents("dir:~/notes")) == ["some words"]


@pytest.mark.parametrize(
    "source", ["dir:~no-such-user/notes", "jsonl:~no-such-user/a.jsonl", "shards:~no-such-user", "~no-such-user/a"]
)
def test_an_unknown_home_folder_is_named(source: str) -> None:
    with pytest.raises(ConfigError, match=r"the home folder of '~no-such-user' is unknown; write the full path"):
        parse_source(source)


def test_a_missing_home_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no HOME, and no entry of the user
    with pytest.raises(ConfigError, match="the home folder of '~' is unknown"):
        parse_source("dir:~/notes")


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "sub" / "private").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the directory .*sub/private: Permission denied"):
        source_files(f"dir:{tmp_path}")
    (tmp_path / "sub" / ".private").mkdir()
    (tmp_path / "sub" / "private").rmdir()
    assert [path.name for path in source_files(f"dir:{tmp_path}")] == ["a.txt"], "hidden directories are not opened"


def encrypted(archive: bytes) -> bytes:
    """A zip archive whose entries say that they have a password."""
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        flags = archive.rindex(mark) + place
        archive = archive[:flags] + bytes([archive[flags] | 1]) + archive[flags + 1 :]
    return archive


@pytest.mark.parametrize(("archive", "message"), [(zipped(), "holds 0 files"), (encrypted(zipped(b"a")), "password")])
def test_archives_without_a_file_to_read_are_named(tmp_path: Path, archive: bytes, message: str) -> None:
    (tmp_path / "a.txt.zip").write_bytes(archive)
    with pytest.raises(DataError, match=message):
        list(iterate_documents(f"file:{tmp_path}/a.txt.zip"))


def test_both_suffixes_and_long_windows_of_zstd_are_read(tmp_path: Path) -> None:
    window_of_256_mib, raw_block = bytes([18 << 3]), (5 << 3 | 1).to_bytes(3, "little")  # RFC 8878
    (tmp_path / "a.txt.zstd").write_bytes(b"\x28\xb5\x2f\xfd\x00" + window_of_256_mib + raw_block + b"hello")
    assert "".join(text_files.text_lines(tmp_path / "a.txt.zstd", 99)) == "hello"


def test_a_compressed_file_may_hold_32_mib_and_a_hundred_times_its_size(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(bytes(10))
    most = 32 * 1024 * 1024 + 1000
    assert len(io.BufferedReader(text_files._Limited(io.BytesIO(bytes(most)), tmp_path / "a.gz")).read()) == most
    with pytest.raises(DataError, match="unpacks to more than 100 times"):
        io.BufferedReader(text_files._Limited(io.BytesIO(bytes(most + 1)), tmp_path / "a.gz")).read()


def test_lines_of_json_have_a_length_and_only_the_first_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"text": "abc"}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b" \n" + line)
    assert list(text_files.json_line_texts([path], "text")) == ["abc", "abc"]
    path.write_bytes(line + b"\xef\xbb\xbf" + line)
    with pytest.raises(DataError, match="line 2 is not JSON"):
        list(text_files.json_line_texts([path], "text"))
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(DataError, match="line 1 is not JSON"):
        list(text_files.json_line_texts([path], "text"))
    path.write_bytes(line)
    for most, refused in ((len(line), False), (len(line) - 1, True)):
        monkeypatch.setattr(text_files, "MAX_LINE_BYTES", most)
        with pytest.raises(DataError, match="longer than 15 bytes") if refused else contextlib.nullcontext():
            assert list(text_files.json_line_texts([path], "text")) == ["abc"]


def test_a_line_that_is_not_utf8_is_numbered_whatever_the_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"long line\nsecond\nbad \xff")
    with pytest.raises(DataError, match="line 3 is not UTF-8"):
        list(text_files.text_lines(tmp_path / "a.txt", 4))


def test_two_stars_match_folders_of_any_depth(tmp_path: Path) -> None:
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "folder.txt").mkdir()
    assert source_files(f"file:{tmp_path}/**/*.txt") == [tmp_path / name for name in ("a.txt", "b/c.txt", "b/d/e.txt")]
