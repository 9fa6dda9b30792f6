"""General-purpose byte compressors behind one interface, each at its strongest setting.

The container compresses every stream with one of them. "range" is the entropy coder for numbers (see `streams`); given
other bytes, it takes the shortest of zstd, lzma and, for a tokenizer, lzma of the rearranged file (see
`tokenizer_bytes`), and its first byte says which. Compression is deterministic. Decompression is told the exact size to
expect, never produces more, and raises ArtifactError for damaged, truncated or longer input. A compressor that is not
installed raises ConfigError that names its package. No other compressor is used instead.
"""

import importlib
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import zstandard

from bitgolf.artifact import ans
from bitgolf.artifact import tokenizer_bytes as pieces
from bitgolf.errors import ArtifactError, ConfigError

_ZSTD_LEVEL = 22  # the strongest
_ZSTD_MAX_WINDOW = 1 << 27  # the largest that level 22 uses; frames that ask for more are refused
_ZSTD_MAX_EXPANSION = 1 << 15  # a block of 4 bytes yields at most 128 KiB
# First byte of "range"; 2 is an entropy-coded message.
_ZSTD_FOLLOWS, _LZMA_FOLLOWS, _PIECES_FOLLOW = b"\0", b"\1", b"\3"
_PIECES_SIZE = struct.Struct("<I")
_LZMA_MIN_DICTIONARY = 1 << 12  # the least that the format allows
_LZMA_MAX_DICTIONARY = 1 << 26  # of preset 9
_LZMA_PIECE = 1 << 20  # bytes that are decompressed at a time

Raw = TypeVar("Raw", bytes, bytearray)


def compressor_names() -> list[str]:
    """Names of all compressors, installed or not."""
    return list(_COMPRESSORS)


def missing_package(name: str) -> str | None:
    """The package that `compress` needs for `name` and that is not installed, or None.

    Raises ConfigError if the name is unknown.
    """
    if name not in _COMPRESSORS:
        raise ConfigError(f"unknown compressor {name!r}; choose from {', '.join(_COMPRESSORS)}")
    if name == "range" and ans.constriction is None:
        return "constriction>=0.4"
    return "brotli>=1.2" if name == "brotli" and _brotli() is None else None


def compress(name: str, data: bytes) -> bytes:
    """`data` compressed by `name` ("zstd", "lzma", "zlib", "brotli", "range"); the same input gives the same output.

    Empty data gives empty output. Raises ConfigError: the name is unknown, or its package not installed.
    """
    _require_installed(name)
    return _COMPRESSORS[name][0](data) if data else b""


def decompress(name: str, data: bytes | memoryview, raw_size: int) -> bytes | bytearray:
    """The `raw_size` bytes that `compress(name, ...)` made `data` from.

    Raises:
        ArtifactError: `data` is damaged, truncated, followed by other bytes, or expands to another size.
            No more than `raw_size` bytes (and a small margin) are ever produced.
        ConfigError: the name is unknown or its package is not installed.
    """
    if name != "range":  # reads without its package
        _require_installed(name)
    if raw_size < 0 or bool(raw_size) != bool(len(data)):
        raise ArtifactError(f"{name} stream of {len(data)} bytes cannot expand to the declared {raw_size}")
    raw = _COMPRESSORS[name][1](data, raw_size) if raw_size else b""
    if len(raw) != raw_size:
        raise ArtifactError(f"{name} stream expands to {len(raw)} bytes, {raw_size} were declared")
    return raw


def _require_installed(name: str) -> None:
    if package := missing_package(name):
        raise ConfigError(
            f"compressor {name!r} needs the package {package}, which is not installed: "
            f"pip install '{package}', or choose another compressor"
        )


def _zstd_compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True, write_checksum=False).compress(data)


def _zstd_decompress(data: bytes | memoryview, raw_size: int) -> bytes:
    if raw_size > _ZSTD_MAX_EXPANSION * len(data):
        raise ArtifactError(f"zstd stream of {len(data)} bytes cannot expand to the declared {raw_size}")
    try:
        frame = zstandard.get_frame_parameters(data)
        # The decoder allocates what the frame asks for, so ask first.
        if frame.content_size != raw_size:
            declared = "unknown" if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN else frame.content_size
            raise ArtifactError(f"zstd stream says its content is {declared} bytes, {raw_size} were declared")
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"zstd stream is damaged ({error})") from error


def _lzma_filters(raw_size: int) -> list[dict[str, Any]]:
    """Raw LZMA2, preset 9 extreme; the dictionary follows the data, so that decoding memory is bounded."""
    dictionary = 1 << max(raw_size - 1, 1).bit_length()
    dictionary = min(max(dictionary, _LZMA_MIN_DICTIONARY), _LZMA_MAX_DICTIONARY)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


def _lzma_compress(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_lzma_filters(len(data)))


def _lzma_decompress(data: bytes | memoryview, raw_size: int) -> bytes | bytearray:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_lzma_filters(raw_size))
    raw, pending = bytearray(), data
    try:
        # In pieces, because the decoder holds its whole output twice.
        while len(raw) <= raw_size and not decoder.eof:
            piece = decoder.decompress(pending, max_length=min(_LZMA_PIECE, raw_size + 1 - len(raw)))
            if not piece and decoder.needs_input:
                break
            raw += piece
            pending = b""
    except lzma.LZMAError as error:
        raise ArtifactError(f"lzma stream is damaged ({error})") from error
    return _whole("lzma", raw, raw_size, decoder.eof, bool(decoder.unused_data))


def _zlib_decompress(data: bytes | memoryview, raw_size: int) -> bytes:
    decoder = zlib.decompressobj()
    try:
        raw = decoder.decompress(data, raw_size + 1)
    except zlib.error as error:
        raise ArtifactError(f"zlib stream is damaged ({error})") from error
    return _whole("zlib", raw, raw_size, decoder.eof, bool(decoder.unused_data))


def _brotli() -> Any:
    """The brotli module, in a version whose decoder can be told when to stop; None if it is not installed."""
    try:
        module = importlib.import_module("brotli")
    except ImportError:
        return None
    return module if hasattr(getattr(module, "Decompressor", None), "can_accept_more_data") else None


def _brotli_compress(data: bytes) -> bytes:
    module = _brotli()
    return bytes(module.compress(data, mode=module.MODE_GENERIC, quality=11, lgwin=24))


def _brotli_decompress(data: bytes | memoryview, raw_size: int) -> bytes:
    module = _brotli()
    decoder = module.Decompressor()
    pieces, total, pending = [], 0, bytes(data)
    try:
        while total <= raw_size and not decoder.is_finished():
            piece = decoder.process(pending, output_buffer_limit=raw_size + 1 - total)
            if not piece and (decoder.can_accept_more_data() or not pending):
                break
            pieces.append(piece)
            total, pending = total + len(piece), b""
    except module.error as error:
        raise ArtifactError(f"brotli stream is damaged ({error})") from error
    return _whole("brotli", b"".join(pieces), raw_size, decoder.is_finished(), False)


def _range_compress(data: bytes) -> bytes:
    ways = [_ZSTD_FOLLOWS + _zstd_compress(data), _LZMA_FOLLOWS + _lzma_compress(data)]
    rearranged = pieces.rearrange(data)
    if rearranged is not None and len(rearranged) <= len(data):  # longer ones are refused by `_range_decompress`
        ways.append(_PIECES_FOLLOW + _PIECES_SIZE.pack(len(rearranged)) + _lzma_compress(rearranged))
    return min(ways, key=len)


def _range_decompress(data: bytes | memoryview, raw_size: int) -> bytes | bytearray:
    tag, rest = bytes(data[:1]), data[1:]
    if tag == _ZSTD_FOLLOWS and len(rest):
        return _zstd_decompress(rest, raw_size)
    if tag == _LZMA_FOLLOWS and len(rest):
        return _lzma_decompress(rest, raw_size)
    if tag != _PIECES_FOLLOW or len(rest) <= _PIECES_SIZE.size:
        raise ArtifactError(f"range stream of bytes begins with {tag!r}; it is damaged or holds something else")
    (size,) = _PIECES_SIZE.unpack(rest[: _PIECES_SIZE.size])
    if size > raw_size:
        raise ArtifactError(f"range stream holds pieces of {size} bytes, more than the declared {raw_size}")
    return pieces.restore(bytes(_lzma_decompress(rest[_PIECES_SIZE.size :], size)))


def _whole(name: str, raw: Raw, raw_size: int, finished: bool, followed: bool) -> Raw:
    """`raw`, once the stream is known to end where it should."""
    if len(raw) > raw_size:
        raise ArtifactError(f"{name} stream expands beyond the declared {raw_size} bytes")
    if not finished:
        raise ArtifactError(f"{name} stream is truncated after {len(raw)} of {raw_size} bytes")
    if followed:
        raise ArtifactError(f"{name} stream is followed by other bytes")
    return raw


# By name: compress(data), and decompress(data, raw size), which raises ArtifactError.
_COMPRESSORS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes | memoryview, int], bytes | bytearray]]] = {
    "zstd": (_zstd_compress, _zstd_decompress),
    "lzma": (_lzma_compress, _lzma_decompress),
    "zlib": (lambda data: zlib.compress(data, 9), _zlib_decompress),
    "brotli": (_brotli_compress, _brotli_decompress),
    "range": (_range_compress, _range_decompress),
}
