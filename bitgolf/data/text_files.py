"""Reading files of text and of JSON lines, plain or compressed (.gz, .bz2, .xz, .zst, .zip), line by line.

Damage raises DataError with file and line. A file is never in memory as a whole.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from bitgolf.errors import DataError

MAX_LINE_BYTES = 256 * 1024 * 1024  # a longer JSON line is refused as damaged
_BLOCK = 1 << 20
_FREE_BYTES, _MAX_RATIO = 32 * 1024 * 1024, 100  # a compressed file may hold so much, and so many times its size
_ZSTD_BYTES = 512  # compressed bytes at a time: each four of them can stand for 128 KB


def text_lines(path: Path, most: int) -> Iterator[str]:
    """Lines of a UTF-8 file with unchanged line ends. Lines above `most` bytes come in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    try:
        with _opened(path) as handle:
            while line := handle.readline(most):
                yield decoder.decode(line)
                number += line.endswith(b"\n")
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number} is not UTF-8 ({error.reason}); convert the file to UTF-8, or leave it out"
        ) from error


def json_line_texts(paths: Iterable[Path], text_field: str) -> Iterator[str]:
    """The field `text_field` of every line of the files that is not empty."""
    for path in paths:
        with _opened(path) as file:
            for number, line in enumerate(read_lines(file, path), 1):
                if line.strip():
                    yield text_of_json_line(line, f"{path}, line {number}", text_field, first=number == 1)


def text_of_json_line(line: bytes, where: str, text_field: str = "text", first: bool = False) -> str:
    """The field `text_field` of a JSON line. A byte order mark is allowed in the first line of a file.

    Raises DataError, whose message begins with `where`, if the line is not JSON or has no such text.
    """
    try:
        record = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte 0x{line[error.start]:02X} at position {error.start}; convert the file to UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); it begins {line[:40]!r}") from error
    if not isinstance(record, dict) or text_field not in record:
        content = f"keys {sorted(record)[:8]}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(
            f'{where} has no field {text_field!r}: it is {content}; each line must be {{"{text_field}": "..."}}, or '
            "data.text_field must name another field"
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{where}: the field {text_field!r} is {type(text).__name__}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text contains the lone surrogate \\u{ord(text[error.start]):04x}, which has no "
            "UTF-8 form; remove it or write the complete pair"
        ) from error
    return text


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | io.BufferedReader]:
    """A file, decompressed according to its suffix. Damage raises DataError."""
    try:
        with path.open("rb") as raw:
            if (unpacked := _unpacked(raw, path)) is None:
                yield raw
            else:
                yield io.BufferedReader(_Limited(unpacked, path), _BLOCK)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged or truncated {path.suffix} file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _unpacked(raw: BinaryIO, path: Path) -> _Readable | None:
    """The content of a compressed file; None if its suffix names no compression."""
    match path.suffix:
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".xz":
            return lzma.open(raw)
        case ".zst" | ".zstd":
            return _ZstdFile(raw, path)
        case ".zip":
            return _only_file(raw, path)
    return None


def _only_file(raw: BinaryIO, path: Path) -> _Readable:
    """The one file that a zip archive holds."""
    try:
        archive = zipfile.ZipFile(raw)
        files = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(files) != 1:
            raise DataError(f"{path} holds {len(files)} files; unpack it, and give the folder or one of the files")
        return archive.open(files[0])
    except RuntimeError as error:  # another version or method of compression, or a password
        raise DataError(f"{path} cannot be unpacked here ({error}); unpack it, and give the file") from error


def read_lines(stream: BinaryIO | io.BufferedReader, name: str | Path) -> Iterator[bytes]:
    """Lines of `stream` with their ends. Raises DataError for a line above MAX_LINE_BYTES."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name} has a line longer than {MAX_LINE_BYTES:,} bytes; is it JSON lines?")
        yield line


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Limited(io.RawIOBase):
    """The content of a compressed file. More than its size allows raises DataError: such files hold no text."""

    def __init__(self, unpacked: _Readable, path: Path) -> None:
        self._unpacked, self._path = unpacked, path
        self._left = _FREE_BYTES + _MAX_RATIO * path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._unpacked.read(len(view))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path} unpacks to more than {_MAX_RATIO} times its size, which text does not; if it should, "
                "unpack it, and give the file"
            )
        view[: len(data)] = data
        return len(data)


class _ZstdFile:
    """Decompressed bytes of a zstd file with one or more frames and windows up to 2 GB (`zstd --long=31`).

    A frame without an end raises DataError. The stream reader of the library accepts such a file as a short one.
    """

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        self._raw, self._path = raw, path
        self._context = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._context.decompressobj()
        self._rest = b""  # compressed bytes after the end of the last frame
        self._ready = io.BytesIO()
        self._inside = False  # the last frame has begun and not ended

    def read(self, size: int) -> bytes:
        while not (data := self._ready.read(size)):
            block = self._rest or self._raw.read(_ZSTD_BYTES)
            if not block:
                if self._inside:
                    raise DataError(f"{self._path} is truncated: its last zstd frame has no end; download it again")
                return b""
            try:
                self._ready = io.BytesIO(self._frame.decompress(block))
            except zstandard.ZstdError as error:
                raise DataError(f"{self._path} is a corrupt zstd file: {error}; download it again") from error
            self._inside, self._rest = True, b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = self._context.decompressobj()
                self._inside = False
        return data
