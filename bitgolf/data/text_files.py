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
from typing import BinaryIO, cast

import zstandard

from bitgolf.errors import DataError

MAX_LINE_BYTES = 256 * 1024 * 1024  # a longer JSON line is refused as damaged
_BLOCK = 1 << 20


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
            match path.suffix:
                case ".gz":
                    yield io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK)
                case ".bz2":
                    yield io.BufferedReader(bz2.BZ2File(raw), _BLOCK)
                case ".xz":
                    with lzma.open(raw) as unpacked:
                        yield io.BufferedReader(cast(io.RawIOBase, unpacked), _BLOCK)
                case ".zst" | ".zstd":
                    yield io.BufferedReader(_ZstdFile(raw, path), _BLOCK)
                case ".zip":
                    yield io.BufferedReader(_only_file(raw, path), _BLOCK)
                case _:
                    yield raw
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged or truncated {path.suffix} file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _only_file(raw: BinaryIO, path: Path) -> io.RawIOBase:
    """The one file that a zip archive holds."""
    archive = zipfile.ZipFile(raw)
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(files) != 1:
        raise DataError(f"{path} holds {len(files)} files; unpack it, and give the folder or one of the files")
    try:
        return cast(io.RawIOBase, archive.open(files[0]))
    except (NotImplementedError, RuntimeError) as error:  # another method of compression, or a password
        raise DataError(f"{path} cannot be unpacked here ({error}); unpack it, and give the file") from error


def read_lines(stream: BinaryIO | io.BufferedReader, name: str | Path) -> Iterator[bytes]:
    """Lines of `stream` with their ends. Raises DataError for a line above MAX_LINE_BYTES."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name} has a line longer than {MAX_LINE_BYTES:,} bytes; is it JSON lines?")
        yield line


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a zstd file with one or more frames and windows up to 2 GB (`zstd --long=31`).

    A frame without an end raises DataError. The stream reader of the library accepts such a file as a short one.
    """

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        self._raw, self._path = raw, path
        self._context = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._context.decompressobj()
        self._rest = b""  # compressed bytes after the end of the last frame
        self._ready = b""
        self._inside = False  # the last frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._ready:
            block = self._rest or self._raw.read(_BLOCK // 8)
            if not block:
                if self._inside:
                    raise DataError(f"{self._path} is truncated: its last zstd frame has no end; download it again")
                return 0
            try:
                self._ready = self._frame.decompress(block)
            except zstandard.ZstdError as error:
                raise DataError(f"{self._path} is a corrupt zstd file: {error}; download it again") from error
            self._inside, self._rest = True, b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = self._context.decompressobj()
                self._inside = False
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
