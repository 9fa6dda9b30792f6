"""Codes one matrix of integers into a message: first the model of its distribution, then the integers.

Integers of one context are coded together, with the table of that context. A context is a scale class and, under a
trellis, also a quantizer and a parity. The vectors of a model (scale classes, rank-one mean) are coded the same way, as
matrices of one row. Decoding uses integer arithmetic alone, so every machine decodes the same.

Every `put` has a `get` that reads the same things in the same order. A damaged or hostile message decodes to arbitrary
numbers, so `get` checks every number of a model before it allocates memory or computes tables for it.

Legend: R rows, C columns, K contexts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bitgolf.artifact.frequency import (
    BETAS,
    GAUSSIAN,
    MAX_CELLS,
    MAX_SCALE,
    MAX_VALUE,
    SPIKE_BITS,
    Contexts,
    Law,
    adapt,
    normalize,
    tables,
)
from bitgolf.artifact.message import Reader, Writer
from bitgolf.artifact.parities import get_parities, put_parities, quantizers_of
from bitgolf.artifact.scale_model import ScaleModel, fit, predict
from bitgolf.artifact.symbol_counts import Integers
from bitgolf.errors import ArtifactError

MAX_CLASSES = 256  # scale classes of rows plus columns
_HAS_ROWS, _HAS_COLUMNS, _HAS_MEAN = 1, 2, 4  # flags: the vectors that a model has
_FLAG_BITS = 3
_MAX_SHIFT = 16  # of a law and of a stride
_SCALE_BITS = 11  # of `Law.scale`
_SYMBOL_COUNT_BITS = 3  # low bits of the number of symbols that are stored as they are
_CENTER_BITS = 4  # the same for the center
_MOST_ADAPTED = 1 << 16  # elements of a tensor whose table is learned while it is coded
_LONGEST_ADAPTED = 1 << 12  # symbols of such a table
_FIRST_BLOCK = 8  # elements before such a table is first corrected; each block is then half of all before it
_ELEMENTS_AT_ONCE = 1 << 20  # that are sorted by context together
_MODEL_WORK = 3_000  # units of computing (see `WorkBudget`) that reading a model takes
_TABLE_WORK = 1_000  # that a table takes in addition to one for each of its entries
_ADAPT_WORK = 300  # the same for correcting a table that is learned


def require(sound: bool) -> None:
    """Raise ArtifactError unless a decoded number is possible."""
    if not sound:
        raise ArtifactError("entropy-coded message describes its numbers in an impossible way; it is damaged")


def put_integers(out: Writer, values: np.ndarray, num_states: int = 0) -> None:
    """Append (R, C) integers; `num_states` of the trellis that they are a path of, 0 = none."""
    quantizers = quantizers_of(values & 1, num_states) if num_states else None
    model = fit(Integers(values, quantizers))
    law = model.law
    _put_model(out, model, min(values.shape) > 1)
    if law.num_symbols == 1:
        return
    offsets = ((values.astype(np.int32) - model.center) >> model.stride) - model.prediction()
    out.plain((offsets & (1 << law.shift) - 1).reshape(-1), law.shift)
    symbols = ((offsets >> law.shift) - law.low).reshape(-1)
    if quantizers is not None:
        parities = (symbols & 1).astype(np.uint8)
        put_parities(out, parities.reshape(values.shape), quantizers, num_states)
        for elements, table in _trellis_contexts(out, model, quantizers, parities):
            out.symbols(symbols[elements] >> 1, table)
    elif model.rows is None and model.columns is None:
        _put_in_one_context(out, symbols, _table(out, law, Contexts.one()))
    else:
        for elements, table in _class_contexts(out, model, values.shape):
            out.symbols(symbols[elements], table)


def get_integers(inp: Reader, shape: tuple[int, int], num_states: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """(R, C) int16 or int32 integers, and under a trellis their (R, C) uint8 quantizers."""
    model = _get_model(inp, shape, bool(num_states))
    law, count, dtype = model.law, shape[0] * shape[1], _dtype_of(model)
    quantizers = None
    if law.num_symbols == 1:
        symbols = np.zeros(count, dtype=np.int32)
        if num_states:
            quantizers = quantizers_of(np.full(shape, model.center & 1), num_states)
    elif num_states:
        parities, quantizers = get_parities(inp, shape, num_states)
        parities = parities.reshape(-1)
        symbols = np.empty(count, dtype=dtype)
        for elements, table in _trellis_contexts(inp, model, quantizers, parities):
            symbols[elements] = inp.symbols(len(elements), table)
        symbols *= 2
        symbols += parities
        symbols += law.low
    else:
        low_bits = inp.plain(count, law.shift)
        if model.rows is None and model.columns is None:
            symbols = _get_in_one_context(inp, count, _table(inp, law, Contexts.one()))
        else:
            symbols = np.empty(count, dtype=dtype)
            for elements, table in _class_contexts(inp, model, shape):
                symbols[elements] = inp.symbols(len(elements), table)
        symbols += law.low
        symbols <<= law.shift
        symbols += low_bits
    values = symbols.reshape(shape)
    if model.mean is None and not model.stride and not model.center:
        require(max(int(values.max()), -int(values.min())) <= MAX_VALUE)
    else:
        _add_mean_and_center_(values, model)
    return values, quantizers


def _dtype_of(model: ScaleModel) -> type[np.signedinteger[Any]]:
    """The type of decoded integers: int16 if none can leave it, which saves half of the memory."""
    law = model.law
    small = max(-law.low, law.high + 1) << law.shift <= 1 << 15
    return np.int16 if small and model.mean is None and not model.stride and not model.center else np.int32


def _add_mean_and_center_(
    values: np.ndarray,  # (R, C) int32, changed
    model: ScaleModel,
) -> None:
    """Turn residuals into values, block by block, because the intermediate results have 64 bits."""
    if model.mean is None:
        values = values.reshape(-1, 1)
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // values.shape[1])
    for start in range(0, len(values), rows_at_once):
        rows = slice(start, start + rows_at_once)
        block = values[rows].astype(np.int64)
        if model.mean is not None and model.coefficients is not None:
            block += predict(model.coefficients[rows], model.mean)
        block <<= model.stride
        block += model.center
        require(max(int(block.max()), -int(block.min())) <= MAX_VALUE)
        values[rows] = block


def _class_contexts(
    message: Writer | Reader, model: ScaleModel, shape: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices into the flat matrix of the elements of one scale class, and the table of that class."""
    tables: dict[int, np.ndarray] = {}
    for first, scale_classes in _blocks_of_classes(model, shape):
        for scale_class, elements in _by_context(scale_classes, first):
            if scale_class not in tables:
                tables[scale_class] = _table(message, model.law, Contexts.one(scale_class))
            yield elements, tables[scale_class]


def _trellis_contexts(
    message: Writer | Reader,
    model: ScaleModel,
    quantizers: np.ndarray,  # (R, C)
    parities: np.ndarray,  # (R * C,)
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same for each scale class, quantizer and parity; the table is that of symbol >> 1."""
    tables: dict[int, np.ndarray] = {}
    flat_quantizers = quantizers.reshape(-1)
    for first, scale_classes in _blocks_of_classes(model, quantizers.shape):
        block = slice(first, first + len(scale_classes))
        contexts = 4 * scale_classes + 2 * flat_quantizers[block] + parities[block]
        for context, elements in _by_context(contexts, first):
            if context not in tables:
                both_parities = _table(message, model.law, Contexts.one(context >> 2, context >> 1 & 1))
                for parity in (0, 1):
                    tables[context & ~1 | parity] = normalize(both_parities[None, parity::2])[0]
            yield elements, tables[context]


def _blocks_of_classes(model: ScaleModel, shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of some rows: index of the first element, and the uint16 scale classes of the elements, flat."""
    num_rows, num_columns = shape
    rows, columns = (
        np.zeros(count, dtype=np.uint16) if classes is None else classes.astype(np.uint16)
        for classes, count in ((model.rows, num_rows), (model.columns, num_columns))
    )
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // num_columns)
    for start in range(0, num_rows, rows_at_once):
        yield start * num_columns, (rows[start : start + rows_at_once, None] + columns).reshape(-1)


def _by_context(contexts: np.ndarray, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each context that occurs, and the indices of its elements, which begin at `first`."""
    order = np.argsort(contexts, kind="stable")
    order += first
    counts = np.bincount(contexts)
    ends = np.cumsum(counts)
    for context in np.flatnonzero(counts).tolist():
        yield context, order[ends[context] - counts[context] : ends[context]]


def _table(message: Writer | Reader, law: Law, context: Contexts) -> np.ndarray:
    """Frequencies in one context. A reader limits how much computing a message may ask for."""
    message.count_work(_TABLE_WORK + law.num_symbols)
    return tables(law, context)[0]


def _put_in_one_context(out: Writer, symbols: np.ndarray, table: np.ndarray) -> None:
    """Append symbols that share a context, with a table that is learned on the way if that saves bits."""
    learned = False
    if len(symbols) <= _MOST_ADAPTED and len(table) <= _LONGEST_ADAPTED:
        learning, fixed = Writer(dry=True), Writer(dry=True)
        _put_learning(learning, symbols, table)
        fixed.symbols(symbols, table)
        learned = learning.bits < fixed.bits
    out.plain(np.array([learned]), 1)
    (_put_learning if learned else Writer.symbols)(out, symbols, table)


def _get_in_one_context(inp: Reader, count: int, table: np.ndarray) -> np.ndarray:
    if not inp.plain(1, 1)[0]:
        return inp.symbols(count, table)
    seen = np.zeros_like(table)
    symbols = np.empty(count, dtype=np.int32)
    for start, end in _learning_blocks(count):
        inp.count_work(_ADAPT_WORK + len(table))
        symbols[start:end] = inp.symbols(end - start, adapt(table, seen))
        seen += np.bincount(symbols[start:end], minlength=len(table))
    return symbols


def _put_learning(out: Writer, symbols: np.ndarray, table: np.ndarray) -> None:
    seen = np.zeros_like(table)
    for start, end in _learning_blocks(len(symbols)):
        out.count_work(_ADAPT_WORK + len(table))
        out.symbols(symbols[start:end], adapt(table, seen))
        seen += np.bincount(symbols[start:end], minlength=len(table))


def _learning_blocks(count: int) -> Iterator[tuple[int, int]]:
    """Blocks that share a table: the first eight symbols, then always half as many as came before."""
    start, end = 0, min(_FIRST_BLOCK, count)
    while start < count:
        yield start, end
        start, end = end, min(end + end // 2, count)


def _put_model(out: Writer, model: ScaleModel, is_matrix: bool) -> None:
    """Append the description of a distribution. That of constant integers ends after the center."""
    law = model.law
    out.count_work(_MODEL_WORK)
    out.number(law.num_symbols - 1, _SYMBOL_COUNT_BITS)
    out.signed(model.center, _CENTER_BITS)
    if law.num_symbols == 1:
        return
    out.number(model.stride)
    out.number(law.shift)
    out.signed(law.low + law.num_symbols // 2)
    out.signed(law.beta - GAUSSIAN)
    out.plain(np.array([law.scale]), _SCALE_BITS)
    out.number(law.ends)
    out.number(law.spike)
    if law.spike:
        out.number(law.spike_at - law.low)
    if is_matrix:
        vectors = ((_HAS_ROWS, model.rows), (_HAS_COLUMNS, model.columns), (_HAS_MEAN, model.mean))
        out.plain(np.array([sum(flag for flag, vector in vectors if vector is not None)]), _FLAG_BITS)
        for vector in (model.rows, model.columns, model.coefficients, model.mean):
            if vector is not None:
                put_integers(out, vector[None])


def _get_model(inp: Reader, shape: tuple[int, int], trellis: bool) -> ScaleModel:
    inp.count_work(_MODEL_WORK)
    num_symbols = inp.number(_SYMBOL_COUNT_BITS) + 1
    center = inp.signed(_CENTER_BITS)
    if num_symbols == 1:
        return ScaleModel(center, 0, Law(0, 0, GAUSSIAN, 0))
    stride, law = _get_law(inp, num_symbols)
    flags = int(inp.plain(1, _FLAG_BITS)[0]) if min(shape) > 1 else 0
    if trellis:
        even = not (law.low & 1 or num_symbols & 1)
        require(even and not (law.shift or stride or center or flags & _HAS_MEAN))
    rows = _get_classes(inp, shape[0]) if flags & _HAS_ROWS else None
    columns = _get_classes(inp, shape[1]) if flags & _HAS_COLUMNS else None
    deepest = sum(int(vector.max()) for vector in (rows, columns) if vector is not None)
    require(deepest < MAX_CLASSES and (deepest + 1) * (2 if trellis else 1) * num_symbols <= 2 * MAX_CELLS)
    if not flags & _HAS_MEAN:
        return ScaleModel(center, stride, law, rows, columns)
    coefficients, mean = (get_integers(inp, (1, n))[0][0].astype(np.int64) for n in shape)
    return ScaleModel(center, stride, law, rows, columns, coefficients, mean)


def _get_law(inp: Reader, num_symbols: int) -> tuple[int, Law]:
    """The stride and the law."""
    stride, shift = inp.number(), inp.number()
    low = inp.signed() - num_symbols // 2
    high = low + num_symbols - 1
    beta = inp.signed() + GAUSSIAN
    scale = int(inp.plain(1, _SCALE_BITS)[0])
    ends, spike = inp.number(), inp.number()
    spike_at = low + inp.number() if spike else 0
    require(stride <= _MAX_SHIFT and shift <= _MAX_SHIFT and beta in BETAS and scale <= MAX_SCALE)
    require(num_symbols <= MAX_CELLS and max(abs(low), abs(high)) + 1 << stride + shift <= MAX_VALUE)
    require(4 * (ends + spike) <= 3 << SPIKE_BITS and (not spike or spike_at <= high))
    return stride, Law(low, high, beta, scale, shift, ends, spike, spike_at)


def _get_classes(inp: Reader, count: int) -> np.ndarray:
    classes = get_integers(inp, (1, count))[0][0].astype(np.int64)
    require(int(classes.min()) >= 0 and int(classes.max()) < MAX_CLASSES)
    return classes
