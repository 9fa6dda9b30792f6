"""Codes fp16 tensors into a message, bit for bit, as integers that order the numbers.

The bit pattern of an fp16 number without its sign, read as an integer, grows with the number. Small differences of
weights are then small differences of integers, which `integer_coder` codes well. For each tensor the shortest of these
ways is chosen, for the whole tensor or row by row:

    raw         16 bits per number
    ordered     the integers, negative numbers below zero
    magnitudes  signs as they are, then the integers without them
    palette     the different integers that occur, then for each number which of them it is
"""

import numpy as np

from bitgolf.artifact.integer_coder import get_integers, put_integers, require
from bitgolf.artifact.message import Reader, Writer

_ORDERED, _RAW, _MAGNITUDES, _PALETTE = 0, 1, 2, 3
_WAY_BITS = 2
_LARGEST_BITS = 0x7FFF  # of a number without its sign
_BEYOND = 1 << 20  # larger than any bit pattern; keeps sums of damaged gaps within int32
_SIZE_BITS = 4  # low bits of the size of a palette that are stored as they are
_FIRST_BITS = 12  # the same for its first entry
_MOST_ROWS = 64  # of a tensor whose rows may have a model each: fitting one takes 20 ms
_LEAST_COLUMNS = 16  # of such a tensor


def put_floats(out: Writer, values: np.ndarray) -> None:
    """Append an fp16 tensor of any shape."""
    bits = np.ascontiguousarray(values, dtype="<f2").view("<u2").astype(np.int32)
    signed = bool((bits >> 15).any())
    best: tuple[float, int, bool] = (16.0 * bits.size, _RAW, False)
    for way in (_ORDERED, _PALETTE, _MAGNITUDES) if signed else (_ORDERED, _PALETTE):
        if way == _PALETTE and len(np.unique(bits)) > bits.size // 2:
            continue
        for by_row in (False, True) if _may_go_by_row(bits.shape) else (False,):
            trial = Writer(dry=True)
            _put(trial, bits, way, by_row)
            best = min(best, (trial.bits, way, by_row))
    _, way, by_row = best
    out.plain(np.array([way]), _WAY_BITS)
    if way == _RAW:
        out.plain(bits.reshape(-1), 16)
        return
    if _may_go_by_row(bits.shape):
        out.plain(np.array([by_row]), 1)
    _put(out, bits, way, by_row)


def get_floats(inp: Reader, shape: tuple[int, ...]) -> np.ndarray:
    """The fp16 tensor of that shape."""
    count = int(np.prod(shape))
    way = int(inp.plain(1, _WAY_BITS)[0])
    if way == _RAW:
        bits = inp.plain(count, 16)
    else:
        by_row = _may_go_by_row(shape) and bool(inp.plain(1, 1)[0])
        signs = inp.plain(count, 1).astype(bool) if way == _MAGNITUDES else None
        get = _get_palette if way == _PALETTE else _get_ordered
        if by_row:
            ordered = np.concatenate([get(inp, shape[-1]) for _ in range(count // shape[-1])])
        else:
            ordered = get(inp, count)
        if signs is None:
            signs = ordered < 0
            np.invert(ordered, out=ordered, where=signs)  # -1 - ordered
        require(int(ordered.min()) >= 0 and int(ordered.max()) <= _LARGEST_BITS)
        bits = ordered.astype("<u2")
        bits |= signs.astype("<u2") << 15
    return bits.astype("<u2", copy=False).view("<f2").reshape(shape)


def _put(out: Writer, bits: np.ndarray, way: int, by_row: bool) -> None:
    magnitudes, signs = bits & _LARGEST_BITS, bits >> 15
    if way == _MAGNITUDES:
        out.plain(signs.reshape(-1), 1)
    ordered = magnitudes if way == _MAGNITUDES else np.where(signs == 1, -1 - magnitudes, magnitudes)
    for row in ordered.reshape(-1, bits.shape[-1]) if by_row else [ordered.reshape(-1)]:
        if way == _PALETTE:
            palette, row = np.unique(row, return_inverse=True)
            out.number(len(palette) - 1, _SIZE_BITS)
            out.signed(int(palette[0]), _FIRST_BITS)
            if len(palette) > 1:
                put_integers(out, np.diff(palette)[None])
        put_integers(out, row[None])


def _get_ordered(inp: Reader, count: int) -> np.ndarray:
    return get_integers(inp, (1, count))[0][0]


def _get_palette(inp: Reader, count: int) -> np.ndarray:
    size, first = inp.number(_SIZE_BITS) + 1, inp.signed(_FIRST_BITS)
    require(size <= min(count, 1 << 16) and abs(first) <= _LARGEST_BITS + 1)
    gaps = get_integers(inp, (1, size - 1))[0][0].astype(np.int64) if size > 1 else np.empty(0, dtype=np.int64)
    palette = (first + np.concatenate([[0], np.cumsum(gaps)])).clip(-_BEYOND, _BEYOND).astype(np.int32)
    indices = get_integers(inp, (1, count))[0][0]
    require(int(indices.min()) >= 0 and int(indices.max()) < size)
    return palette[indices]


def _may_go_by_row(shape: tuple[int, ...]) -> bool:
    """Whether the rows are few and long enough to have a model each."""
    return len(shape) > 1 and shape[-1] >= _LEAST_COLUMNS and 1 < int(np.prod(shape[:-1])) <= _MOST_ROWS
