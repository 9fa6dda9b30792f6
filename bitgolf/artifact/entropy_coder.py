"""The entropy coder for weights: integers of matrices, floats of small tensors -> bytes -> the same, bit for bit.

A message holds, tensor after tensor, the model of its integers (see `scale_model`) and then the integers, those of one
context in one go. Decoding is integer arithmetic alone, so every machine decodes the same. Row classes, column classes,
row scales and small tensors are coded the same way, as matrices of one row. Under a trellis the parities come first
(see `parities`), the rest given them.

Legend: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bitgolf.artifact.frequency import (
    BETAS,
    MAX_CELLS,
    MAX_SCALE,
    MAX_VALUE,
    SPIKE_BITS,
    Law,
    adapt,
    normalize,
    tables,
)
from bitgolf.artifact.message import Reader, Writer
from bitgolf.artifact.parities import get_parities, put_parities, quantizer_bits
from bitgolf.artifact.scale_model import MAX_CLASSES, ScaleModel, fit
from bitgolf.errors import ArtifactError

MAX_CODE = 32767
MAX_EXPANSION = 1 << 20  # integers that one byte may stand for: a constant matrix takes none at all
_ROWS, _COLUMNS, _MEAN = 1, 2, 4
_MAX_SHIFT = 16
_MOST_ADAPTED, _LONGEST_ADAPTED = 1 << 16, 1 << 12  # elements of a tensor whose table is learned; its symbols
_BLOCK = 1 << 20  # elements that are sorted by context at a time
_MOST_ROWS, _LEAST_COLUMNS = 64, 16  # of floats whose rows may each have a model of their own
_MOST_CELLS, _CELLS_A_NUMBER = 1 << 23, 4  # entries of all tables of a message: some, and more for its numbers
_ORDERED, _RAW, _MAGNITUDES, _PALETTE = 0, 1, 2, 3  # how the floats of a tensor are coded
_LARGEST_BITS, _BEYOND = 0x7FFF, 1 << 20  # bits of a magnitude; what no magnitude reaches


@dataclass(frozen=True)
class Matrix:
    """Integers to code.

    Attributes:
        codes: (R, C) integers from -32767 to 32767; contiguous or not.
        num_states: of the trellis they are a path of; 0 = none.
    """

    codes: np.ndarray
    num_states: int = 0


def encode_matrices(matrices: Sequence[Matrix]) -> bytes:
    """One message with all `matrices`. Raises ArtifactError when no reader would take it."""
    out = Writer()
    for matrix in matrices:
        _put_matrix(out, matrix.codes, matrix.num_states)
    return _finish(out, sum(matrix.codes.size for matrix in matrices))


def predict_bytes(matrices: Sequence[Matrix]) -> int:
    """Length of `encode_matrices(matrices)` to 0.05 % and a few bytes, from ideal code lengths; nothing is encoded."""
    out = Writer(dry=True)
    for matrix in matrices:
        _put_matrix(out, matrix.codes, matrix.num_states)
    return out.num_bytes


def decode_matrices(
    data: bytes | memoryview,
    shapes: Sequence[tuple[int, int]],
    num_states: Sequence[int],
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The (R, C) int32 codes of each matrix, and under a trellis the (R, C) uint8 bits z of its levels 2k + z.

    Raises ArtifactError when `data` is no such message; the last matrix may have been given out before.
    """
    inp = _open(data, sum(rows * columns for rows, columns in shapes))
    for (rows, columns), states in zip(shapes, num_states, strict=True):
        codes, halves = _get_matrix(inp, rows, columns, states)
        if max(int(codes.max()), -int(codes.min())) > MAX_CODE:
            raise ArtifactError(f"entropy-coded message holds a code beyond +-{MAX_CODE}; it is damaged")
        yield codes, halves
    inp.finish()


def encode_floats(
    tensors: Sequence[np.ndarray],  # fp16, any shapes
) -> bytes:
    """One message with all `tensors`. Raises ArtifactError when no reader would take it."""
    out = Writer()
    for values in tensors:
        _put_floats(out, values)
    return _finish(out, sum(values.size for values in tensors))


def predict_float_bytes(tensors: Sequence[np.ndarray]) -> int:
    """Length of `encode_floats(tensors)`, to a few bytes."""
    out = Writer(dry=True)
    for values in tensors:
        _put_floats(out, values)
    return out.num_bytes


def decode_floats(data: bytes | memoryview, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The fp16 tensors of those shapes, every bit as it was. Raises ArtifactError when `data` is no such message."""
    inp = _open(data, sum(int(np.prod(shape)) for shape in shapes))
    tensors = [_get_floats(inp, shape) for shape in shapes]
    inp.finish()
    return tensors


def _open(data: bytes | memoryview, count: int) -> Reader:
    """A reader of `count` numbers whose tables may take no more work than that many deserve."""
    if count > MAX_EXPANSION * (1 + len(data)):
        raise ArtifactError(f"entropy-coded message of {len(data)} bytes cannot hold {count} numbers")
    return Reader(data, max_cells=_MOST_CELLS + _CELLS_A_NUMBER * count)


def _finish(out: Writer, count: int) -> bytes:
    allowed = _MOST_CELLS + _CELLS_A_NUMBER * count
    if out.cells > allowed:
        raise ArtifactError(
            f"{count} numbers spread so widely that their tables would have {out.cells} entries, and readers take "
            f"{allowed}; choose another compressor than range, or wider steps"
        )
    return out.finish()


def _put_matrix(out: Writer, values: np.ndarray, num_states: int = 0) -> None:
    halves = quantizer_bits(values & 1, num_states) if num_states else None
    model = fit(values, halves)
    _put_model(out, model, min(values.shape) > 1)
    law = model.law
    if law.num_symbols == 1:
        return
    offsets = (values.astype(np.int32) - model.center) >> model.stride
    if model.mean is not None:
        offsets -= model.prediction()
    out.plain((offsets & (1 << law.shift) - 1).reshape(-1), law.shift)
    symbols = ((offsets >> law.shift) - law.low).reshape(-1)
    parities = None
    if halves is not None:
        parities = (symbols & 1).astype(np.uint8)
        put_parities(out, parities.reshape(values.shape), halves, num_states)
        symbols = symbols >> 1
    elif model.rows is None and model.columns is None:
        table = _table(out, law)
        adaptive = _is_better_adapted(symbols, table)
        out.plain(np.array([adaptive]), 1)
        (_put_adaptive if adaptive else Writer.symbols)(out, symbols, table)
        return
    for chosen, table in _contexts(out, model, values.shape, halves, parities):
        out.symbols(symbols[chosen], table)


def _get_matrix(inp: Reader, rows: int, columns: int, num_states: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """(R, C) int32 values and the bits z of a trellis."""
    model = _get_model(inp, rows, columns, bool(num_states))
    law, count = model.law, rows * columns
    halves = None
    if law.num_symbols == 1:
        symbols = np.zeros(count, dtype=np.int32)
        if num_states:
            halves = quantizer_bits(np.full((rows, columns), model.center & 1), num_states)
    elif num_states:
        parities, halves = get_parities(inp, (rows, columns), num_states)
        parities = parities.reshape(-1)
        symbols = np.empty(count, dtype=np.int32)
        for chosen, table in _contexts(inp, model, (rows, columns), halves, parities):
            symbols[chosen] = inp.symbols(len(chosen), table)
        symbols *= 2
        symbols += parities
        symbols += law.low
    else:
        low_bits = inp.plain(count, law.shift)
        if model.rows is None and model.columns is None:
            table = _table(inp, law)
            symbols = _get_adaptive(inp, count, table) if inp.plain(1, 1)[0] else inp.symbols(count, table)
        else:
            symbols = np.empty(count, dtype=np.int32)
            for chosen, table in _contexts(inp, model, (rows, columns), None, None):
                symbols[chosen] = inp.symbols(len(chosen), table)
        symbols += law.low
        symbols <<= law.shift
        symbols += low_bits
    values = symbols.reshape(rows, columns)
    if model.mean is not None:
        values = values + model.prediction()
    if model.stride or model.center:
        values = (values << model.stride) + model.center
    _require(max(int(values.max()), -int(values.min())) <= MAX_VALUE)
    return values.astype(np.int32, copy=False), halves


def _is_better_adapted(symbols: np.ndarray, table: np.ndarray) -> bool:
    """Whether a tensor in one context is small and odd enough to gain from learning its table."""
    if len(symbols) > _MOST_ADAPTED or len(table) > _LONGEST_ADAPTED:
        return False
    adapted, fixed = Writer(dry=True), Writer(dry=True)
    _put_adaptive(adapted, symbols, table)
    fixed.symbols(symbols, table)
    return adapted.bits < fixed.bits


def _put_adaptive(out: Writer, symbols: np.ndarray, table: np.ndarray) -> None:
    counts = np.zeros_like(table)
    for start, end in _blocks(len(symbols)):
        out.symbols(symbols[start:end], adapt(table, counts))
        counts += np.bincount(symbols[start:end], minlength=len(table))


def _get_adaptive(inp: Reader, count: int, table: np.ndarray) -> np.ndarray:
    _require(count <= _MOST_ADAPTED and len(table) <= _LONGEST_ADAPTED)
    counts = np.zeros_like(table)
    symbols = np.empty(count, dtype=np.int32)
    for start, end in _blocks(count):
        symbols[start:end] = inp.symbols(end - start, adapt(table, counts))
        counts += np.bincount(symbols[start:end], minlength=len(table))
    return symbols


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Blocks that share a table: the first eight symbols, then always half as many as there were."""
    start, end = 0, min(8, count)
    while start < count:
        yield start, end
        start, end = end, min(end + end // 2, count)


def _contexts(
    message: Writer | Reader,
    model: ScaleModel,
    shape: tuple[int, ...],
    halves: np.ndarray | None,  # (R, C)
    parities: np.ndarray | None,  # (R * C,)
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices into the flat matrix of the elements that share a context, and their table; in blocks of some rows.

    Under a trellis a context is a class, the quantizer in use and the parity, and the table is that of symbol >> 1.
    """
    num_rows, num_columns = shape
    by_row, by_column = (
        np.zeros(count, dtype=np.uint16) if classes is None else classes.astype(np.uint16)
        for classes, count in ((model.rows, num_rows), (model.columns, num_columns))
    )
    known: dict[int, np.ndarray] = {}
    step = max(1, _BLOCK // num_columns)
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        first = start * num_columns
        contexts = (by_row[rows, None] + by_column).reshape(-1)
        if halves is not None and parities is not None:
            contexts = 4 * contexts + 2 * halves[rows].reshape(-1) + parities[first : rows.stop * num_columns]
        order = np.argsort(contexts, kind="stable") + first
        counts = np.bincount(contexts)
        ends = np.cumsum(counts)
        for context in np.flatnonzero(counts).tolist():
            if context not in known:
                if halves is None:
                    known[context] = _table(message, model.law, context)
                else:  # of even and of odd symbols
                    both = _table(message, model.law, context >> 2, context >> 1 & 1)
                    for parity in (0, 1):
                        known[context & ~1 | parity] = normalize(both[None, parity::2])[0]
            yield order[ends[context] - counts[context] : ends[context]], known[context]


def _table(message: Writer | Reader, law: Law, scale_class: int = 0, half: int = 0) -> np.ndarray:
    """Frequencies in one scale class; a hostile message may not ask for many that are large."""
    message.count_cells(law.num_symbols)
    return tables(law, np.array([scale_class]), np.array([half]))[0]


def _put_model(out: Writer, model: ScaleModel, is_matrix: bool) -> None:
    """The description of a tensor's integers; constant ones end after the center."""
    law = model.law
    out.number(law.num_symbols - 1, 3)
    out.signed(model.center, 4)
    if law.num_symbols == 1:
        return
    out.number(model.stride)
    out.number(law.shift)
    out.signed(law.low + law.num_symbols // 2)
    out.signed(law.beta - 16)
    out.plain(np.array([law.scale]), 11)
    out.number(law.ends)
    out.number(law.spike)
    if law.spike:
        out.number(law.spike_at - law.low)
    if is_matrix:
        flags = (_ROWS if model.rows is not None else 0) | (_COLUMNS if model.columns is not None else 0)
        out.plain(np.array([flags | (_MEAN if model.mean is not None else 0)]), 3)
        for vector in (model.rows, model.columns, model.coefficients, model.mean):
            if vector is not None:
                _put_matrix(out, vector[None])


def _get_model(inp: Reader, rows: int, columns: int, trellis: bool) -> ScaleModel:
    num_symbols = inp.number(3) + 1
    center = inp.signed(4)
    if num_symbols == 1:
        _require(abs(center) < MAX_VALUE)
        return ScaleModel(center, 0, Law(0, 0, 16, 0))
    stride, shift = inp.number(), inp.number()
    low = inp.signed() - num_symbols // 2
    high = low + num_symbols - 1
    beta = inp.signed() + 16
    scale = int(inp.plain(1, 11)[0])
    ends, spike = inp.number(), inp.number()
    spike_at = low + inp.number() if spike else 0
    _require(stride <= _MAX_SHIFT and shift <= _MAX_SHIFT and beta in BETAS and scale <= MAX_SCALE)
    _require(num_symbols <= MAX_CELLS and max(abs(low), abs(high)) + 1 << stride + shift <= MAX_VALUE)
    _require(abs(center) < MAX_VALUE and 4 * (ends + spike) <= 3 << SPIKE_BITS and (not spike or spike_at <= high))
    law = Law(low, high, beta, scale, shift, ends, spike, spike_at)
    flags = int(inp.plain(1, 3)[0]) if min(rows, columns) > 1 else 0
    if trellis:
        _require(not (low & 1 or num_symbols & 1 or shift or stride or center or flags & _MEAN))
    by_row = _get_classes(inp, rows) if flags & _ROWS else None
    by_column = _get_classes(inp, columns) if flags & _COLUMNS else None
    deepest = sum(int(vector.max()) for vector in (by_row, by_column) if vector is not None)
    _require(deepest < MAX_CLASSES and (deepest + 1) * (2 if trellis else 1) * num_symbols <= 2 * MAX_CELLS)
    model = ScaleModel(center, stride, law, by_row, by_column)
    if flags & _MEAN:
        coefficients, mean = (_get_matrix(inp, 1, n)[0][0].astype(np.int64) for n in (rows, columns))
        model = ScaleModel(center, stride, law, by_row, by_column, coefficients, mean)
    return model


def _get_classes(inp: Reader, count: int) -> np.ndarray:
    classes = _get_matrix(inp, 1, count)[0][0].astype(np.int64)
    _require(int(classes.min()) >= 0 and int(classes.max()) < MAX_CLASSES)
    return classes


def _require(sound: bool) -> None:
    if not sound:
        raise ArtifactError("entropy-coded message describes its numbers in an impossible way; it is damaged")


def _put_floats(out: Writer, values: np.ndarray) -> None:
    """A tensor of fp16, whole or row by row, by the integers that order the numbers; the shortest way is searched."""
    bits = np.ascontiguousarray(values, dtype="<f2").view("<u2").astype(np.int32)
    signed = bool((bits >> 15).any())
    best: tuple[float, int, bool] = (16.0 * bits.size, _RAW, False)
    for kind in (_ORDERED, _PALETTE, _MAGNITUDES) if signed else (_ORDERED, _PALETTE):
        for by_row in (False, True) if _has_rows(bits.shape) else (False,):
            if kind == _PALETTE and len(np.unique(bits)) > bits.size // 2:
                continue
            trial = Writer(dry=True)
            _put_ordered(trial, bits, kind, by_row)
            best = min(best, (trial.bits, kind, by_row))
    _, kind, by_row = best
    out.plain(np.array([kind]), 2)
    if kind == _RAW:
        out.plain(bits.reshape(-1), 16)
        return
    if _has_rows(bits.shape):
        out.plain(np.array([by_row]), 1)
    _put_ordered(out, bits, kind, by_row)


def _put_ordered(out: Writer, bits: np.ndarray, kind: int, by_row: bool) -> None:
    magnitudes, signs = bits & _LARGEST_BITS, bits >> 15
    if kind == _MAGNITUDES:
        out.plain(signs.reshape(-1), 1)
    ordered = magnitudes if kind == _MAGNITUDES else np.where(signs == 1, -1 - magnitudes, magnitudes)
    for row in ordered.reshape(-1, bits.shape[-1]) if by_row else [ordered.reshape(-1)]:
        if kind == _PALETTE:
            palette, row = np.unique(row, return_inverse=True)
            out.number(len(palette) - 1, 4)
            out.signed(int(palette[0]), 12)
            if len(palette) > 1:
                _put_matrix(out, np.diff(palette)[None])
        _put_matrix(out, row[None])


def _get_floats(inp: Reader, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    kind = int(inp.plain(1, 2)[0])
    if kind == _RAW:
        bits = inp.plain(count, 16)
    else:
        by_row = _has_rows(shape) and bool(inp.plain(1, 1)[0])
        signs = inp.plain(count, 1) if kind == _MAGNITUDES else None
        width = shape[-1] if by_row else count
        ordered = np.concatenate([_get_ordered(inp, width, kind) for _ in range(count // width)])
        if signs is None:
            signs = (ordered < 0).astype(np.int32)
            ordered = np.where(signs == 1, -1 - ordered, ordered)
        _require(int(ordered.min()) >= 0 and int(ordered.max()) <= _LARGEST_BITS)
        bits = ordered | signs << 15
    return bits.astype("<u2").view("<f2").reshape(shape)


def _get_ordered(inp: Reader, count: int, kind: int) -> np.ndarray:
    if kind != _PALETTE:
        return _get_matrix(inp, 1, count)[0][0]
    size, first = inp.number(4) + 1, inp.signed(12)
    _require(size <= count and abs(first) <= _LARGEST_BITS + 1)
    gaps = _get_matrix(inp, 1, size - 1)[0][0].astype(np.int64) if size > 1 else np.empty(0, dtype=np.int64)
    indices = _get_matrix(inp, 1, count)[0][0]
    _require(int(indices.min()) >= 0 and int(indices.max()) < size)
    return (first + np.concatenate([[0], np.cumsum(gaps)]))[indices].clip(-_BEYOND, _BEYOND).astype(np.int32)


def _has_rows(shape: tuple[int, ...]) -> bool:
    """Whether rows are so few and so long that each can afford a model of its own."""
    return len(shape) > 1 and shape[-1] >= _LEAST_COLUMNS and 1 < int(np.prod(shape[:-1])) <= _MOST_ROWS
