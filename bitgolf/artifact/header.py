"""The header of an artifact: the list of its tensors and streams, and the checks that make it safe to use.

The header is JSON, compressed with zstd. `decode` treats it as hostile. It checks sizes, names, kinds, shapes and the
total that reading would allocate, before anything is allocated for the streams. Names and raw lengths of the streams
follow from the tensors, so they cannot contradict each other. The number of elements is limited by the size of the
file, so that the work and the memory of reading are in proportion to it.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitgolf.artifact import compressors
from bitgolf.artifact.stored import CODE_KINDS, FLOAT_KINDS, KINDS
from bitgolf.artifact.trellis import STATE_COUNTS
from bitgolf.errors import ArtifactError, ForeignError
from bitgolf.foreign import parse_json, printable

MAX_HEADER_BYTES = 1 << 20  # raw JSON; a hundred tensors need about 10 KB
MAX_TENSORS = 4_096  # a model of 256 layers, the most that can be configured, has about 3,000
MAX_TOKENIZER_BYTES = 1 << 22  # before compression; 65,536 pieces, the most there can be, need about 1 MB
MAX_COLUMNS = 1 << 20  # of a matrix of codes; its rows are decoded in blocks, one row at least
FREE_ELEMENTS = 1 << 22  # that any artifact may hold, as a freshly initialized model compresses to almost nothing
ELEMENTS_PER_BYTE = 32  # and that it may hold for each of its bytes: a quarter of a bit per weight
MAX_DIMENSIONS = 4
_SHOWN = 120  # characters of a value in a message
MAX_NAME_LENGTH = 200
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_KEYS = {"compressor", "meta", "model_config", "streams", "tensors", "tokenizer_bytes", "tokenizer_meta"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: name, kind, group and shape; for codes also whether columns have scales, and the trellis's states."""

    name: str
    kind: str
    group: str
    shape: tuple[int, ...]
    column_scales: bool = False
    trellis: int = 0

    @property
    def stream(self) -> str:
        """The stream that holds its codes or values."""
        return f"codes/{self.group}" if self.kind in CODE_KINDS else self.kind

    @property
    def raw_bytes(self) -> int:
        """Its bytes in that stream: one per code (two above 8 bits), two or four per float."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian type of its codes or values in that stream."""
        if self.kind in FLOAT_KINDS:
            return FLOAT_KINDS[self.kind]
        return np.dtype("<i1" if CODE_KINDS[self.kind] <= 8 else "<i2")

    @property
    def scale_bytes(self) -> int:
        """Its bytes in the stream "scales": fp16 numbers, of the rows and then of the columns."""
        return 2 * sum(self.scale_counts)

    @property
    def scale_counts(self) -> tuple[int, ...]:
        """The number of its row scales and, if it has any, of its column scales."""
        if self.kind not in CODE_KINDS:
            return ()
        return self.shape if self.column_scales else self.shape[:1]


@dataclass(frozen=True)
class StreamEntry:
    """One stream: name, bytes before and after compression, CRC-32 of the bytes in the file."""

    name: str
    raw_bytes: int
    stored_bytes: int
    crc32: int


@dataclass(frozen=True)
class Header:
    """The decoded header; tensors and streams in file order."""

    compressor: str
    model_config: dict[str, Any]
    tokenizer_meta: dict[str, Any]
    meta: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    streams: tuple[StreamEntry, ...]


def stream_layout(tensors: tuple[TensorEntry, ...], tokenizer_bytes: int) -> dict[str, int]:
    """Names and raw bytes of the streams that `tensors` need, in file order.

    Scales, codes by group in order of first appearance, floats by kind, then the tokenizer.
    """
    layout: dict[str, int] = {}
    scale_bytes = sum(entry.scale_bytes for entry in tensors)
    if scale_bytes:
        layout["scales"] = scale_bytes
    for kinds in (CODE_KINDS, FLOAT_KINDS):
        for entry in tensors:
            if entry.kind in kinds:
                layout[entry.stream] = layout.get(entry.stream, 0) + entry.raw_bytes
    layout["tokenizer"] = tokenizer_bytes
    return layout


def encode(header: Header) -> bytes:
    """The header as JSON bytes. The same header gives the same bytes.

    Raises ArtifactError if `decode` would refuse a name, shape or dictionary.
    """
    value = {
        "compressor": header.compressor,
        "meta": header.meta,
        "model_config": header.model_config,
        "streams": [[s.stored_bytes, f"{s.crc32:08x}"] for s in header.streams],
        "tensors": [
            [t.name, t.kind, t.group, list(t.shape)]
            + ([int(t.column_scales), t.trellis] if t.column_scales or t.trellis else [])
            for t in header.tensors
        ],
        "tokenizer_bytes": next(s.raw_bytes for s in header.streams if s.name == "tokenizer"),
        "tokenizer_meta": header.tokenizer_meta,
    }
    try:
        raw = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"model_config, tokenizer_meta and meta must be JSON data: {error}") from error
    if len(raw) > MAX_HEADER_BYTES:
        raise ArtifactError(
            f"the header takes {len(raw)} bytes, {MAX_HEADER_BYTES} are allowed; store fewer tensors or less metadata"
        )
    decode(raw, file_bytes=sum(stream.stored_bytes for stream in header.streams), max_bytes=1 << 62)
    return raw


def decode(raw: bytes, *, file_bytes: int, max_bytes: int) -> Header:
    """Parse and verify a header.

    Args:
        raw: JSON bytes, at most MAX_HEADER_BYTES of them.
        file_bytes: size of the streams or of the whole file, which limits the number of elements.
        max_bytes: most bytes of all streams and of the fp32 tensors made from them together.
    Raises:
        ArtifactError: an entry is malformed, contradictory, unknown or too large; names the entry.
    """
    try:
        value = parse_json(raw)
    except ForeignError as error:
        raise ArtifactError(f"header: {error}") from error
    if not isinstance(value, dict) or set(value) != _KEYS:
        keys = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ArtifactError(f"header must be an object with the keys {sorted(_KEYS)}, found {_short(keys)}")
    for key in ("meta", "model_config", "tokenizer_meta"):
        if not isinstance(value[key], dict):
            raise ArtifactError(f"header: {key} must be an object, found {_short(value[key])}")
    if value["compressor"] not in (names := compressors.compressor_names()):
        name = _short(value["compressor"])
        raise ArtifactError(f"header: unknown compressor {name}; this version knows {', '.join(names)}")
    tensors = _tensors(value["tensors"])
    tokenizer_bytes = _count(value["tokenizer_bytes"], "header: tokenizer_bytes")
    if tokenizer_bytes > MAX_TOKENIZER_BYTES:
        raise ArtifactError(f"header: tokenizer of {tokenizer_bytes} bytes, {MAX_TOKENIZER_BYTES} are allowed")
    layout = stream_layout(tensors, tokenizer_bytes)
    elements = sum(math.prod(entry.shape) for entry in tensors)
    allowed = FREE_ELEMENTS + ELEMENTS_PER_BYTE * file_bytes
    if elements > allowed:
        raise ArtifactError(
            f"header declares {elements} elements, and streams of {file_bytes} bytes may hold {allowed} at most"
        )
    needed = sum(layout.values()) + 4 * elements
    if needed > max_bytes:
        raise ArtifactError(
            f"header asks for {needed} bytes in memory, {max_bytes} are allowed; "
            "raise max_bytes if the artifact can be trusted"
        )
    streams = _streams(value["streams"], layout)
    return Header(value["compressor"], value["model_config"], value["tokenizer_meta"], value["meta"], tensors, streams)


def _tensors(value: Any) -> tuple[TensorEntry, ...]:
    if not isinstance(value, list):
        raise ArtifactError(f"header: tensors must be a list, found {_short(value)}")
    if len(value) > MAX_TENSORS:
        raise ArtifactError(f"header: {len(value)} tensors, {MAX_TENSORS} are allowed")
    entries: list[TensorEntry] = []
    seen: set[str] = set()
    for position, row in enumerate(value):
        where = f"header: tensor {position}"
        if not isinstance(row, list) or len(row) not in (4, 6):
            raise ArtifactError(
                f"{where} must be [name, kind, group, shape] or those and [column scales, trellis], found {_short(row)}"
            )
        name, kind, group, shape = row[:4]
        for what, text in (("name", name), ("group", group)):
            if not isinstance(text, str) or len(text) > MAX_NAME_LENGTH or not _NAME.fullmatch(text):
                raise ArtifactError(
                    f"{where}: {what} {_short(text)} must be 1 to {MAX_NAME_LENGTH} characters from A-Z a-z 0-9 _ . -"
                )
        if name in seen:
            raise ArtifactError(f"{where}: the name {name!r} occurs twice")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ArtifactError(f"{where} ({name}): unknown kind {_short(kind)}; this version knows {', '.join(KINDS)}")
        dimensions = range(2, 3) if kind in CODE_KINDS else range(MAX_DIMENSIONS + 1)
        if not isinstance(shape, list) or len(shape) not in dimensions:
            raise ArtifactError(f"{where} ({name}): shape {_short(shape)} does not suit {kind}")
        sizes = tuple(_count(size, f"{where} ({name}): size", at_least=1) for size in shape)
        if kind in CODE_KINDS and sizes[1] > MAX_COLUMNS:
            raise ArtifactError(f"{where} ({name}): {sizes[1]} columns, {MAX_COLUMNS} are allowed")
        column_scales, trellis = (_count(number, f"{where} ({name}): flag") for number in row[4:] or (0, 0))
        if column_scales > 1 or trellis not in STATE_COUNTS or (kind in FLOAT_KINDS and (column_scales or trellis)):
            raise ArtifactError(f"{where} ({name}): column scales and trellis {_short(row[4:])} do not suit {kind}")
        seen.add(name)
        entries.append(TensorEntry(name, kind, group, sizes, bool(column_scales), trellis))
    return tuple(entries)


def _streams(value: Any, layout: dict[str, int]) -> tuple[StreamEntry, ...]:
    if not isinstance(value, list) or len(value) != len(layout):
        raise ArtifactError(
            f"header: streams must list the {len(layout)} streams {_short(list(layout))}, found {_short(value)}"
        )
    entries = []
    for (name, raw_bytes), row in zip(layout.items(), value, strict=True):
        where = f"header: stream {name}"
        if not isinstance(row, list) or len(row) != 2:
            raise ArtifactError(f"{where} must be [bytes, checksum], found {_short(row)}")
        stored_bytes = _count(row[0], f"{where}: bytes")
        if not isinstance(row[1], str) or not re.fullmatch(r"[0-9a-f]{8}", row[1]):
            raise ArtifactError(f"{where}: checksum {_short(row[1])} must be 8 hexadecimal digits")
        entries.append(StreamEntry(name, raw_bytes, stored_bytes, int(row[1], 16)))
    return tuple(entries)


def _count(value: Any, where: str, at_least: int = 0) -> int:
    """A size: a whole number that fits 62 bits, so that sums and products stay cheap."""
    if type(value) is not int or not at_least <= value < 1 << 62:
        raise ArtifactError(f"{where} {_short(value)} must be a whole number from {at_least} to 2^62")
    return value


def _short(value: Any) -> str:
    return printable(repr(value), _SHOWN)
