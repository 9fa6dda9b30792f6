"""The artifact file: written once by `pack`, read by everything after it. Data only, never code.

    offset  bytes  field
    0       8      magic
    8       2      format version, little-endian as all that follows
    10      4      bytes of the header in the file (zstd)
    14      4      bytes of the header before compression (JSON, see `header`)
    18      4      CRC-32 of the 18 bytes before and of the header as it lies in the file
    22      ...    header, then the streams back to back, in the order of `header.stream_layout`; then nothing

Codes are stored one per byte (the compressor does the entropy coding), tensors of a group one after another.
Scales (fp16) and floats are stored by byte plane: all first bytes, then all second bytes, because the high
bytes of floats resemble each other. Reading verifies every length and checksum before it allocates.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf import atomic
from bitgolf.compress import compressors, header
from bitgolf.compress.header import Header, StreamEntry, TensorEntry
from bitgolf.compress.sizes import ArtifactSizes, entropy_bits, share_out
from bitgolf.compress.stored import CODE_KINDS, FLOAT_KINDS, StoredTensor, role
from bitgolf.errors import ArtifactError
from bitgolf.grid import Grid

MAGIC = b"\x93bitgolf"  # the first byte is no ASCII and no UTF-8 start: not mistaken for text
FORMAT_VERSION = 1
MAX_BYTES = 1 << 31  # default bound on what reading may allocate
_PREAMBLE = struct.Struct("<8sHIII")
_SCALE_DTYPE = np.dtype("<f2")


@dataclass(frozen=True)
class Artifact:
    """A decoded artifact.

    Attributes:
        model_config: what the model is built from.
        tokenizer: the tokenizer's own file, byte for byte.
        tokenizer_meta: how to use it.
        meta: everything else the writer recorded.
        tensors: fp32 tensors by name, dequantized.
        kinds: how each was stored ("int6", "fp16", ...).
        groups: the role of each.
        sizes: where the bytes went.
        compressor: what the streams were compressed with.
        version: the format version of the file.
    """

    model_config: dict[str, Any]
    tokenizer: bytes
    tokenizer_meta: dict[str, Any]
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    kinds: dict[str, str]
    groups: dict[str, str]
    sizes: ArtifactSizes
    compressor: str
    version: int


def write_artifact(
    path: str | os.PathLike[str],
    *,
    model_config: dict[str, Any],
    tokenizer: bytes,
    tokenizer_meta: dict[str, Any],
    tensors: dict[str, StoredTensor],
    meta: dict[str, Any],
    compressor: str = "zstd",
) -> ArtifactSizes:
    """Write an artifact atomically and say where its bytes went; see `encode_artifact`."""
    data, sizes = encode_artifact(
        model_config=model_config,
        tokenizer=tokenizer,
        tokenizer_meta=tokenizer_meta,
        tensors=tensors,
        meta=meta,
        compressor=compressor,
    )
    atomic.write_bytes(path, data)
    return sizes


def encode_artifact(
    *,
    model_config: dict[str, Any],
    tokenizer: bytes,
    tokenizer_meta: dict[str, Any],
    tensors: dict[str, StoredTensor],
    meta: dict[str, Any],
    compressor: str = "zstd",
) -> tuple[bytes, ArtifactSizes]:
    """The bytes of an artifact. The same input, in any order of `tensors`, gives the same bytes.

    Args:
        model_config, tokenizer_meta, meta: JSON data (string keys, no NaN); tuples come back as lists.
        tokenizer: the tokenizer's own file.
        tensors: by name (letters, digits and `_.-`, at most 200 characters).
        compressor: a name of `compressors.compressor_names()`.
    Raises:
        ArtifactError: data that could not be read back.
        ConfigError: an unknown compressor, or one that is not installed.
    """
    unsorted = (TensorEntry(n, t.kind, t.group or role(n), t.shape) for n, t in tensors.items())
    entries = tuple(sorted(unsorted, key=lambda entry: (entry.group, _natural(entry.name))))
    layout = header.stream_layout(entries, len(tokenizer))
    raw_streams = {stream: _assemble(stream, entries, tensors, tokenizer) for stream in layout}
    # The compressors release the interpreter lock; a stream's bytes do not depend on what runs beside it.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        stored = list(pool.map(lambda raw: compressors.compress(compressor, raw), raw_streams.values()))
    streams = tuple(
        StreamEntry(name, layout[name], len(data), zlib.crc32(data)) for name, data in zip(layout, stored, strict=True)
    )
    described = Header(compressor, model_config, tokenizer_meta, meta, entries, streams)
    raw_header = header.encode(described)
    packed_header = compressors.compress("zstd", raw_header)
    prefix = _PREAMBLE.pack(MAGIC, FORMAT_VERSION, len(packed_header), len(raw_header), 0)[:-4]
    checksum = struct.pack("<I", zlib.crc32(packed_header, zlib.crc32(prefix)))
    entropies = {n: entropy_bits(t.values.numpy()) for n, t in tensors.items() if t.kind in CODE_KINDS}
    return (
        b"".join([prefix, checksum, packed_header, *stored]),
        _sizes(described, _PREAMBLE.size + len(packed_header), entropies),
    )


def read_artifact(source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> Artifact:
    """Read an artifact from a file or from its bytes.

    Args:
        source: path, or the bytes themselves.
        max_bytes: the most that the file, and its streams with the fp32 tensors made from them, may take.
    Raises:
        ArtifactError: missing, truncated, damaged, hostile or made by a newer version; says where.
        ConfigError: the streams need a compressor that is not installed.
    """
    if isinstance(source, bytes):
        return _decode(source, max_bytes)
    path = Path(source)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ArtifactError(f"{path}: the file has {size} bytes, {max_bytes} are allowed")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _decode(data, max_bytes)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _decode(data: bytes, max_bytes: int) -> Artifact:
    described, position = _read_header(data, max_bytes)
    header_bytes = position
    end = position + sum(stream.stored_bytes for stream in described.streams)
    if end != len(data):
        what = "is truncated" if end > len(data) else "is followed by other bytes"
        raise ArtifactError(f"the artifact {what}: the header declares {end} bytes, there are {len(data)}")
    view = memoryview(data)
    located: dict[str, tuple[StreamEntry, memoryview, int]] = {}
    for stream in described.streams:
        located[stream.name] = (stream, view[position : position + stream.stored_bytes], position)
        position += stream.stored_bytes
    scales = _scales(described, located)
    tensors: dict[str, Tensor] = {}
    entropies: dict[str, float] = {}
    for name in located:
        inside = [entry for entry in described.tensors if entry.stream == name]
        if not inside:
            continue
        raw = _expand(described.compressor, *located[name])
        if inside[0].kind in FLOAT_KINDS:
            tensors.update(_split_floats(raw, inside))
        else:
            for entry, codes in _split_codes(raw, inside):
                entropies[entry.name] = entropy_bits(codes)
                grid = Grid(CODE_KINDS[entry.kind])
                tensors[entry.name] = grid.dequantize(torch.from_numpy(codes.copy()), scales[entry.name])
    return Artifact(
        model_config=described.model_config,
        tokenizer=_expand(described.compressor, *located["tokenizer"]),
        tokenizer_meta=described.tokenizer_meta,
        meta=described.meta,
        tensors={entry.name: tensors[entry.name] for entry in described.tensors},
        kinds={entry.name: entry.kind for entry in described.tensors},
        groups={entry.name: entry.group for entry in described.tensors},
        sizes=_sizes(described, header_bytes, entropies),
        compressor=described.compressor,
        version=FORMAT_VERSION,
    )


def _read_header(data: bytes, max_bytes: int) -> tuple[Header, int]:
    """The verified header and the offset at which the streams begin."""
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(
            f"not a bitgolf artifact: it begins with {data[: len(MAGIC)]!r}"
            if data
            else "not a bitgolf artifact: it is empty"
        )
    if len(data) < _PREAMBLE.size:
        raise ArtifactError(f"the artifact is truncated: {len(data)} of {_PREAMBLE.size} preamble bytes")
    _, version, packed_bytes, raw_bytes, checksum = _PREAMBLE.unpack_from(data)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"made by a newer bitgolf (format v{version}), this one reads up to v{FORMAT_VERSION}: upgrade bitgolf"
        )
    if version < 1:
        raise ArtifactError(f"format version {version} does not exist; the file is damaged")
    end = _PREAMBLE.size + packed_bytes
    if raw_bytes > header.MAX_HEADER_BYTES or packed_bytes > header.MAX_HEADER_BYTES:
        raise ArtifactError(
            f"header of {raw_bytes} bytes ({packed_bytes} compressed) is above the limit of {header.MAX_HEADER_BYTES}"
        )
    if end > len(data):
        raise ArtifactError(f"the artifact is truncated in its header: {len(data)} of {end} bytes")
    if zlib.crc32(data[_PREAMBLE.size : end], zlib.crc32(data[: _PREAMBLE.size - 4])) != checksum:
        raise ArtifactError(f"header checksum mismatch (bytes 0 to {end}); the file is damaged")
    try:
        raw = compressors.decompress("zstd", data[_PREAMBLE.size : end], raw_bytes)
    except ArtifactError as error:
        raise ArtifactError(f"header: {error}") from error
    return header.decode(raw, max_bytes=max_bytes), end


def _expand(compressor: str, stream: StreamEntry, stored: memoryview, offset: int) -> bytes:
    where = f"stream {stream.name} (bytes {offset} to {offset + len(stored)})"
    if zlib.crc32(stored) != stream.crc32:
        raise ArtifactError(f"{where}: checksum mismatch; the file is damaged")
    try:
        return compressors.decompress(compressor, stored, stream.raw_bytes)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error


def _scales(described: Header, located: dict[str, tuple[StreamEntry, memoryview, int]]) -> dict[str, Tensor]:
    """(R,) fp32 row scales by tensor name, verified."""
    if "scales" not in located:
        return {}
    flat = _from_planes(_expand(described.compressor, *located["scales"]), _SCALE_DTYPE).astype(np.float32)
    scales, position = {}, 0
    for entry in described.tensors:
        if entry.kind in CODE_KINDS:
            rows = flat[position : position + entry.shape[0]]
            position += entry.shape[0]
            if not bool((np.isfinite(rows) & (rows > 0)).all()):
                raise ArtifactError(
                    f"stream scales: tensor {entry.name} has a row scale that is NaN, infinite or not above zero"
                )
            scales[entry.name] = torch.from_numpy(rows)
    return scales


def _split_codes(raw: bytes, entries: list[TensorEntry]) -> Iterable[tuple[TensorEntry, np.ndarray]]:
    """Each tensor of a code stream with its (R, C) codes, verified to lie on its grid."""
    position = 0
    for entry in entries:
        codes = _from_planes(raw[position : position + entry.raw_bytes], entry.dtype).reshape(entry.shape)
        position += entry.raw_bytes
        qmax = Grid(CODE_KINDS[entry.kind]).qmax
        if int(codes.max()) > qmax or int(codes.min()) < -qmax:
            raise ArtifactError(
                f"stream {entry.stream}: tensor {entry.name} has a code outside the {entry.kind} grid of +-{qmax}"
            )
        yield entry, codes


def _split_floats(raw: bytes, entries: list[TensorEntry]) -> dict[str, Tensor]:
    flat, position = _from_planes(raw, FLOAT_KINDS[entries[0].kind]), 0
    tensors = {}
    for entry in entries:
        size = entry.raw_bytes // flat.itemsize
        values = flat[position : position + size].astype(np.float32).reshape(entry.shape)
        position += size
        if not bool(np.isfinite(values).all()):
            raise ArtifactError(f"stream {entry.stream}: tensor {entry.name} holds NaN or infinite values")
        tensors[entry.name] = torch.from_numpy(values)
    return tensors


def _assemble(
    stream: str, entries: tuple[TensorEntry, ...], tensors: dict[str, StoredTensor], tokenizer: bytes
) -> bytes:
    """The raw bytes of one stream."""
    if stream == "tokenizer":
        return tokenizer
    if stream == "scales":
        rows = [scales for entry in entries if (scales := tensors[entry.name].scales) is not None]
        return _to_planes(np.concatenate([row.numpy() for row in rows]).astype(_SCALE_DTYPE))
    mine = [entry for entry in entries if entry.stream == stream]
    values = [tensors[entry.name].values.numpy().reshape(-1).astype(entry.dtype) for entry in mine]
    return _to_planes(np.concatenate(values)) if stream in FLOAT_KINDS else b"".join(map(_to_planes, values))


def _to_planes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T).tobytes()


def _from_planes(raw: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    planes = np.frombuffer(raw, dtype=np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def _sizes(described: Header, header_bytes: int, entropies: dict[str, float]) -> ArtifactSizes:
    tensor_bytes = {entry.name: 0 for entry in described.tensors}
    for stream in described.streams:
        if stream.name == "scales":
            shares = {e.name: float(e.scale_bytes) for e in described.tensors if e.scale_bytes}
        else:
            shares = {
                e.name: entropies.get(e.name, float(e.raw_bytes)) for e in described.tensors if e.stream == stream.name
            }
        if shares:
            for name, part in zip(shares, share_out(stream.stored_bytes, list(shares.values())), strict=True):
                tensor_bytes[name] += part
    group_bytes: dict[str, int] = {}
    for entry in described.tensors:
        group_bytes[entry.group] = group_bytes.get(entry.group, 0) + tensor_bytes[entry.name]
    stored = {stream.name: stream.stored_bytes for stream in described.streams}
    return ArtifactSizes(
        total=header_bytes + sum(stored.values()),
        header=header_bytes,
        streams=stored,
        streams_raw={stream.name: stream.raw_bytes for stream in described.streams},
        tensors=tensor_bytes,
        groups=group_bytes,
    )


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts block 2 before block 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"([0-9]+)", name)]
