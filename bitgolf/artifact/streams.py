"""A stream of an artifact: arrays that belong together, compressed by a general-purpose compressor or entropy-coded.

A general-purpose compressor gets the codes of one matrix after another, as one or two bytes each, and the floats of the
whole stream; all low bytes come before all high bytes, because high bytes resemble each other. The compressor "range"
gives codes and fp16 numbers to `entropy_coder` where that is shorter. The first byte of a "range" stream says which was
used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from bitgolf.artifact import compressors
from bitgolf.artifact import entropy_coder as coder
from bitgolf.artifact.entropy_coder import Matrix
from bitgolf.artifact.message import WorkBudget
from bitgolf.artifact.sizes import entropy_bits
from bitgolf.artifact.stored import FLOAT_KINDS

CODED = b"\2"  # first byte of a "range" stream that is a message of the entropy coder
_QUICK_LEVEL = 3  # of zstd
_QUICK_RATIO = 1.25  # to the coded size: if a quick compressor comes this close, its strongest setting is tried


@dataclass(frozen=True)
class Slot:
    """Type and shape of an array in a stream, and for codes the states of their trellis."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    trellis: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes before compression."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def encode(
    compressor: str,
    arrays: Sequence[np.ndarray],
    slots: Sequence[Slot],
    budget: WorkBudget,  # counts the computing that the file will ask for
    apply: coder.Map = map,  # to the matrices of the stream, and to its check
) -> bytes:
    """The bytes of a stream. `slots` describe `arrays`: all are codes, or all are floats of one type.
    Raises:
        ArtifactError: readers would refuse the stream.
        ConfigError: the compressor is unknown or not installed.
    """
    raw = to_planes(arrays, slots)
    if compressor != "range" or slots[0].dtype == FLOAT_KINDS["fp32"]:
        return compressors.compress(compressor, raw)
    floats = slots[0].dtype == FLOAT_KINDS["fp16"]
    message = coder.encode_floats(arrays) if floats else coder.encode_matrices(_matrices(arrays, slots), apply)
    num_states = None if floats else [slot.trellis for slot in slots]
    budget.take(sum(apply(coder.work_of_reading, [(message, arrays, num_states)])))
    message = CODED + message
    if not floats and not _repeats(arrays, raw, len(message)):
        return message
    return min(message, compressors.compress(compressor, raw), key=len)


def decode(
    compressor: str, data: bytes | memoryview, slots: Sequence[Slot], budget: WorkBudget
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The arrays of a stream, and the quantizers of a trellis if they are known. Codes may be wider than stored.

    Raises ArtifactError: `data` is damaged, holds something else, or asks for more computing than `budget` allows to
    the whole file. ConfigError: the compressor is not installed.
    """
    if compressor == "range" and data[:1] == CODED and slots[0].dtype != FLOAT_KINDS["fp32"]:
        shapes = [slot.shape for slot in slots]
        if slots[0].dtype == FLOAT_KINDS["fp16"]:
            yield from ((values, None) for values in coder.decode_floats(data[1:], shapes, budget))
        else:
            matrices = [(rows, columns) for rows, columns in shapes]
            yield from coder.decode_matrices(data[1:], matrices, [slot.trellis for slot in slots], budget)
        return
    raw = compressors.decompress(compressor, data, sum(slot.num_bytes for slot in slots))
    for values in from_planes(raw, slots):
        yield values, None


def to_planes(arrays: Sequence[np.ndarray], slots: Sequence[Slot]) -> bytes:
    """The bytes that a general-purpose compressor gets: low bytes first, of all floats together or of each matrix."""
    flat = [array.reshape(-1).astype(slot.dtype, copy=False) for array, slot in zip(arrays, slots, strict=True)]
    pieces = [np.concatenate(flat)] if slots[0].dtype.kind == "f" else flat
    return b"".join(piece.view(np.uint8).reshape(-1, piece.itemsize).T.tobytes() for piece in pieces)


def from_planes(raw: bytes | bytearray, slots: Sequence[Slot]) -> Iterator[np.ndarray]:
    """The inverse of `to_planes`."""
    if slots[0].dtype.kind == "f":
        values, position = _join(raw, slots[0].dtype), 0
        for slot in slots:
            count = slot.num_bytes // slot.dtype.itemsize
            yield values[position : position + count].reshape(slot.shape)
            position += count
        return
    position, view = 0, memoryview(raw)
    for slot in slots:
        yield _join(view[position : position + slot.num_bytes], slot.dtype).reshape(slot.shape)
        position += slot.num_bytes


def _join(planes: bytes | bytearray | memoryview, dtype: np.dtype[Any]) -> np.ndarray:
    by_plane = np.frombuffer(planes, dtype=np.uint8).reshape(dtype.itemsize, -1)
    return np.array(by_plane.T, order="C").reshape(-1).view(dtype)


def _matrices(arrays: Sequence[np.ndarray], slots: Sequence[Slot]) -> list[Matrix]:
    return [Matrix(array, slot.trellis) for array, slot in zip(arrays, slots, strict=True)]


def _repeats(arrays: Sequence[np.ndarray], raw: bytes, coded: int) -> bool:
    """Whether codes repeat so much that a general-purpose compressor may be shorter than the entropy coder.

    If a quick setting gets below the order-0 entropy, it has found repetition. The strongest setting is slow on codes.
    """
    quick = len(zstandard.ZstdCompressor(level=_QUICK_LEVEL).compress(raw))
    return quick < _QUICK_RATIO * coded and 8 * quick < sum(entropy_bits(array) for array in arrays)
