"""The artifact file: `pack` writes it once, and every later stage reads it. It holds data only, never code.

    offset  bytes  field
    0       8      magic
    8       2      format version; all numbers are little-endian
    10      4      bytes of the header in the file (zstd)
    14      4      bytes of the header before compression (JSON, see `header`)
    18      4      CRC-32 of the 18 bytes before and of the header as it lies in the file
    22      ...    header, then the streams back to back, in the order of `header.stream_layout`, then nothing

The header says what each stream holds: scales, the codes of a group, floats, or the tokenizer. `streams` describes how
one is compressed. Reading checks every length and checksum before it allocates memory.

Legend: R rows, C columns.
"""

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgolf.artifact import compressors, header, streams
from bitgolf.artifact.entropy_coder import Map, require_readable, work_budget
from bitgolf.artifact.header import Header, StreamEntry, TensorEntry
from bitgolf.artifact.message import WorkBudget
from bitgolf.artifact.parities import quantizers_of
from bitgolf.artifact.sizes import ArtifactSizes, share_out
from bitgolf.artifact.stored import CODE_KINDS, FLOAT_KINDS, StoredTensor, largest_code
from bitgolf.artifact.streams import Slot
from bitgolf.errors import ArtifactError, ForeignError
from bitgolf.foreign import read_at_most, require_regular
from bitgolf.grids.grid import scale_levels
from bitgolf.grids.roles import role

MAGIC = b"\x93bitgolf"  # no text begins with this byte, neither in ASCII nor in UTF-8
FORMAT_VERSION = 1
MAX_BYTES = 1 << 31  # most bytes that reading may allocate, by default
_PREAMBLE = struct.Struct("<8sHIII")
_RESTORED_AT_ONCE = 1 << 18  # elements of a matrix whose levels are computed together
_SCALE_DTYPE = FLOAT_KINDS["fp16"]
_Scales = tuple[Tensor | None, Tensor | None]  # (R,) and (C,), fp16
EncodedStreams = dict[str, tuple[list[StoredTensor], bytes, int]]
"""By name of the stream: the tensors in it, its bytes, and the computing that it asks for."""
_Located = dict[str, tuple[str, memoryview]]  # by stream: its place in the file for messages, and its bytes


@dataclass(frozen=True)
class Artifact:
    model_config: dict[str, Any]  # what the model is built from
    tokenizer: bytes  # the tokenizer's own file, byte for byte
    tokenizer_meta: dict[str, Any]  # how to use it
    meta: dict[str, Any]  # everything else that the writer recorded
    tensors: dict[str, Tensor]  # fp32 tensors by name, dequantized
    kinds: dict[str, str]  # form in which each is stored ("int6", "fp16", ...)
    compressor: str  # of the streams


def encode_artifact(
    *,
    # model_config, tokenizer_meta, meta: JSON data (string keys, no NaN); tuples come back as lists.
    model_config: dict[str, Any],
    tokenizer: bytes,  # the tokenizer's own file
    tokenizer_meta: dict[str, Any],
    tensors: dict[str, StoredTensor],  # by name (letters, digits and `_.-`, at most 200 characters)
    meta: dict[str, Any],
    compressor: str = "zstd",  # a name of `compressors.compressor_names()`; "range" is the coder made for weights
    # streams of an earlier file with the same compressor. Those that hold the same tensors are taken from there, and
    # the new ones are added.
    earlier: EncodedStreams | None = None,
    apply: Map = map,  # `map`, or something like it that codes matrices in several processes (see `processes`)
) -> tuple[bytes, ArtifactSizes]:
    """The bytes of an artifact. The same input, in any order of `tensors`, gives the same bytes.

    Raises:
        ArtifactError: data that readers would refuse.
        ConfigError: an unknown compressor, or one that is not installed.
    """
    entries = _entries(tensors)
    layout = header.stream_layout(entries, len(tokenizer))
    earlier = {} if earlier is None else earlier
    inside = _by_stream(entries)

    def encoded(name: str, contents: tuple[list[np.ndarray], list[Slot]]) -> tuple[bytes, int]:
        parts = [tensors[entry.name] for entry in (entries if name == "scales" else inside[name])]
        before, data, work = earlier.get(name, ([], b"", 0))
        if len(before) != len(parts) or any(a is not b for a, b in zip(before, parts, strict=True)):
            used = WorkBudget(None)
            data = streams.encode(compressor, *contents, used, apply)
            work = used.used
            earlier[name] = parts, data, work
        return data, work

    # The compressors release the interpreter lock. The bytes of a stream do not depend on the other streams.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(encoded, *content) for content in _contents(entries, tensors).items()]
        last = pool.submit(compressors.compress, compressor, tokenizer)
        results = [future.result() for future in futures]
        stored = [data for data, _ in results] + [last.result()]
    require_readable(sum(work for _, work in results), sum(len(data) for data in stored))
    listed = tuple(
        StreamEntry(name, layout[name], len(data), zlib.crc32(data)) for name, data in zip(layout, stored, strict=True)
    )
    described = Header(compressor, model_config, tokenizer_meta, meta, entries, listed)
    packed_header, preamble = _pack_header(described)
    entropies = {name: tensor.entropy_bits for name, tensor in tensors.items() if tensor.kind in CODE_KINDS}
    sizes = _sizes(described, len(preamble) + len(packed_header), entropies)
    return b"".join([preamble, packed_header, *stored]), sizes


def read_artifact(source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> Artifact:
    """Read an artifact from a file or from its bytes.

    `max_bytes`: most bytes of the file, and of its streams together with the fp32 tensors made from them. Raises
    ArtifactError, which says where, if the file is missing, truncated, damaged, hostile or made by a newer version, and
    ConfigError if the streams need a compressor that is not installed.
    """
    if isinstance(source, bytes):
        return _decode(source, max_bytes)
    data = _load(Path(source), max_bytes)
    with _naming(str(source)):
        return _decode(data, max_bytes)


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Puts the name of the file, or of the place in it, in front of errors about its contents."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{place}: {error}") from error


def _load(path: Path, max_bytes: int) -> bytes:
    try:
        require_regular(path)
        size = path.stat().st_size
        if size > max_bytes:
            raise ArtifactError(f"{path}: the file has {size} bytes, {max_bytes} are allowed")
        with path.open("rb") as file:
            data = read_at_most(file, max_bytes + 1)
    except (OSError, ForeignError) as error:
        raise ArtifactError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from error
    if len(data) > max_bytes:
        raise ArtifactError(f"{path}: the file has more than the {max_bytes} bytes that are allowed")
    return data


def _decode(data: bytes, max_bytes: int) -> Artifact:
    described, located = _locate(data, max_bytes)
    tensors: dict[str, Tensor] = {}
    for entry, values, quantizers, (rows, columns) in _tensors(described, located):
        if rows is None:
            tensors[entry.name] = torch.from_numpy(values.astype(np.float32, copy=False))
        else:
            if quantizers is None and entry.trellis:
                quantizers = quantizers_of(values & 1, entry.trellis)
            tensors[entry.name] = _dequantize(values, quantizers, rows, columns)
    return Artifact(
        described.model_config,
        _tokenizer(described, located),
        described.tokenizer_meta,
        described.meta,
        tensors={entry.name: tensors[entry.name] for entry in described.tensors},
        kinds={entry.name: entry.kind for entry in described.tensors},
        compressor=described.compressor,
    )


def _dequantize(
    codes: np.ndarray,  # (R, C) integers
    quantizers: np.ndarray | None,  # (R, C) of 0 and 1; None without a trellis
    row_scales: Tensor,  # (R,)
    column_scales: Tensor | None,  # (C,)
) -> Tensor:  # (R, C) fp32
    """The weights of codes, in blocks of rows, so that little memory is needed beyond theirs."""
    weight = torch.empty(codes.shape, dtype=torch.float32)
    rows_at_once = max(1, _RESTORED_AT_ONCE // codes.shape[1])
    for start in range(0, len(codes), rows_at_once):
        rows = slice(start, start + rows_at_once)
        levels = codes[rows].astype(np.int32)
        if quantizers is not None:
            levels = 2 * levels + quantizers[rows]
        weight[rows] = scale_levels(torch.from_numpy(levels), row_scales[rows], column_scales)
    return weight


def _locate(data: bytes, max_bytes: int) -> tuple[Header, _Located]:
    """The verified header, and each stream after its checksum is verified."""
    described, position = _read_header(data, max_bytes)
    end = position + sum(stream.stored_bytes for stream in described.streams)
    if end != len(data):
        what = "is truncated" if end > len(data) else "is followed by other bytes"
        raise ArtifactError(f"the artifact {what}: the header declares {end} bytes, there are {len(data)}")
    view = memoryview(data)
    located: _Located = {}
    for stream in described.streams:
        after = position + stream.stored_bytes
        where = f"stream {stream.name} (bytes {position} to {after})"
        if zlib.crc32(view[position:after]) != stream.crc32:
            raise ArtifactError(f"{where}: checksum mismatch; the file is damaged")
        located[stream.name] = where, view[position:after]
        position = after
    return described, located


def _tensors(
    described: Header, located: _Located
) -> Iterator[tuple[TensorEntry, np.ndarray, np.ndarray | None, _Scales]]:
    """Every tensor, stream by stream: its codes or floats, the quantizers of a trellis if known, and its scales."""
    budget = work_budget(sum(stream.stored_bytes for stream in described.streams))
    scales = _scales(described, located, budget)
    for name, inside in _by_stream(described.tensors).items():
        arrays = _expand(described, located[name], [_slot(entry) for entry in inside], budget)
        for entry, (values, quantizers) in zip(inside, arrays, strict=True):
            _verify(entry, values)
            yield entry, values, quantizers, scales.get(entry.name, (None, None))


def _read_header(data: bytes, max_bytes: int) -> tuple[Header, int]:
    """The verified header and the offset at which the streams begin."""
    if data[: len(MAGIC)] != MAGIC:
        what = f"begins with {data[: len(MAGIC)]!r}" if data else "is empty"
        raise ArtifactError(f"not a bitgolf artifact: it {what}")
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
    with _naming("header"):
        raw = compressors.decompress("zstd", data[_PREAMBLE.size : end], raw_bytes)
    return header.decode(bytes(raw), file_bytes=len(data) - end, max_bytes=max_bytes), end


def _expand(
    described: Header, located: tuple[str, memoryview], slots: list[Slot], budget: WorkBudget
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The arrays of a stream. Errors name the stream and its bytes."""
    where, stored = located
    with _naming(where):
        yield from streams.decode(described.compressor, stored, slots, budget)


def _tokenizer(described: Header, located: _Located) -> bytes:
    where, stored = located["tokenizer"]
    raw_bytes = next(stream.raw_bytes for stream in described.streams if stream.name == "tokenizer")
    with _naming(where):
        return bytes(compressors.decompress(described.compressor, stored, raw_bytes))


def _scales(described: Header, located: _Located, budget: WorkBudget) -> dict[str, _Scales]:
    """(R,) row scales and, where there are any, (C,) column scales by tensor name; fp16, verified."""
    if "scales" not in located:
        return {}
    quantized = [entry for entry in described.tensors if entry.scale_counts]
    arrays = _expand(described, located["scales"], _scale_slots(quantized), budget)
    scales: dict[str, _Scales] = {}
    for entry in quantized:
        parts = []
        for what, _ in zip(("row", "column"), entry.scale_counts, strict=False):
            part = torch.from_numpy(next(arrays)[0])
            if not bool((torch.isfinite(part) & (part > 0)).all()):
                raise ArtifactError(
                    f"stream scales: tensor {entry.name} has a {what} scale that is NaN, infinite or not above zero"
                )
            parts.append(part)
        scales[entry.name] = (parts[0], parts[1] if len(parts) > 1 else None)
    if next(arrays, None) is not None:  # also lets the decoder check the end of the stream
        raise AssertionError("the stream of scales has as many arrays as the tensors need")
    return scales


def _verify(entry: TensorEntry, values: np.ndarray) -> None:
    """Raise ArtifactError unless codes lie on their grid and floats are finite."""
    if entry.kind in FLOAT_KINDS:
        if not bool(np.isfinite(values).all()):
            raise ArtifactError(f"stream {entry.stream}: tensor {entry.name} holds NaN or infinite values")
        return
    limit = largest_code(entry.kind)
    if int(values.max()) > limit or int(values.min()) < -limit:
        raise ArtifactError(
            f"stream {entry.stream}: tensor {entry.name} has a code outside the {entry.kind} grid of +-{limit}"
        )


def _entries(tensors: Mapping[str, StoredTensor]) -> tuple[TensorEntry, ...]:
    """The tensors in file order."""
    unsorted = (
        TensorEntry(name, t.kind, t.group or role(name), t.shape, t.column_scales is not None, t.trellis)
        for name, t in tensors.items()
    )
    return tuple(sorted(unsorted, key=lambda entry: (entry.group, _natural(entry.name))))


def _by_stream(entries: Iterable[TensorEntry]) -> dict[str, list[TensorEntry]]:
    """The tensors by the stream that holds their codes or floats."""
    inside: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        inside.setdefault(entry.stream, []).append(entry)
    return inside


def _slot(entry: TensorEntry) -> Slot:
    return Slot(entry.dtype, entry.shape, entry.trellis)


def _scale_slots(entries: Iterable[TensorEntry]) -> list[Slot]:
    """The arrays of the stream "scales": row scales and then column scales, tensor by tensor."""
    return [Slot(_SCALE_DTYPE, (count,)) for entry in entries for count in entry.scale_counts]


def _contents(
    entries: tuple[TensorEntry, ...], tensors: Mapping[str, StoredTensor]
) -> dict[str, tuple[list[np.ndarray], list[Slot]]]:
    """The arrays of each stream except the tokenizer, and their slots; by name, in the order of `stream_layout`."""
    inside = _by_stream(entries)
    contents: dict[str, tuple[list[np.ndarray], list[Slot]]] = {}
    for name in header.stream_layout(entries, 0):
        if name == "scales":
            pairs = [(tensors[entry.name].scales, tensors[entry.name].column_scales) for entry in entries]
            scales = [part.numpy().astype(_SCALE_DTYPE) for pair in pairs for part in pair if part is not None]
            contents[name] = (scales, _scale_slots(entries))
        elif name != "tokenizer":
            arrays = [tensors[e.name].values.numpy().astype(e.dtype, copy=False) for e in inside[name]]
            contents[name] = (arrays, [_slot(entry) for entry in inside[name]])
    return contents


def _pack_header(described: Header) -> tuple[bytes, bytes]:
    """The compressed header, and the preamble that comes before it."""
    raw = header.encode(described)
    packed = compressors.compress("zstd", raw)
    prefix = _PREAMBLE.pack(MAGIC, FORMAT_VERSION, len(packed), len(raw), 0)[:-4]
    return packed, prefix + struct.pack("<I", zlib.crc32(packed, zlib.crc32(prefix)))


def _sizes(described: Header, header_bytes: int, entropies: dict[str, float]) -> ArtifactSizes:
    tensor_bytes = {entry.name: 0 for entry in described.tensors}
    by_stream = _by_stream(described.tensors)
    for stream in described.streams:
        if stream.name == "scales":
            shares = {e.name: float(e.scale_bytes) for e in described.tensors if e.scale_bytes}
        else:
            shares = {e.name: entropies.get(e.name, float(e.raw_bytes)) for e in by_stream.get(stream.name, [])}
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
        tensors=tensor_bytes,
        groups=group_bytes,
    )


def _natural(name: str) -> list[int | str]:
    """Sort key that puts block 2 before block 10: texts, and numbers between them."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
