"""Scale classes of rows and columns: which multiple of the common scale the values of each have.

The standard deviation of element (i, j) is taken for r_i * c_j. `gaussian_classes` fits r and c by maximum
likelihood, as if the integers were Gaussian noise that was rounded, and rounds them to 1/8 octave; being off by the 4
% in between takes 0.002 bits per weight. `exact_classes` chooses by exact code length, which is better for few
symbols. A class that many rows share is cheaper to store, and both count that in. Only the encoder runs this. Part of
`scale_model`.

Legend: R rows, C columns, n rows or columns, A candidate classes, N symbols.
"""

import functools
import math
from dataclasses import replace

import numpy as np

from bitgolf.artifact.frequency import CLASS_STEPS, MAX_SCALE, PRECISION, SCALE_STEPS, Contexts, Law, tables
from bitgolf.artifact.symbol_counts import Integers

_FARTHEST_OCTAVE = 8  # below the mean: the smallest variance of a row or column
_FARTHEST_CLASS = 63  # of a row or column, from the median class
_LOW_MEAN_SQUARE = 0.25  # of integers; below, rounding is not just added noise
_ALTERNATIONS = 5  # of fitting rows and columns in turn
_CLASS_ROUNDS = 2  # of choosing classes of rows and columns in turn
_COST_ROUNDS = 3  # of choosing classes given how often each is used
_UNUSED_COUNT = 0.25  # a class that no row uses counts as used this often
_WIDER = 12  # candidate classes beyond those in use
_CELLS_AT_ONCE = 1 << 20  # counts that are held at a time


def gaussian_classes(integers: Integers, by_row: bool, by_column: bool) -> tuple[np.ndarray, np.ndarray]:
    """(R,) and (C,) int64 scale classes, the smallest of each 0; all 0 where not asked for."""
    power = np.square(integers.levels())
    mean = float(power.mean())
    num_rows, num_columns = power.shape
    by_rows, by_columns = power.mean(axis=1), power.mean(axis=0)
    # Where rounding leaves next to nothing but zeros, an element says little about the scale of its column or row.
    live_rows, live_columns = np.ones(num_rows, dtype=np.float32), np.ones(num_columns, dtype=np.float32)
    if mean > _LOW_MEAN_SQUARE:
        live_rows[by_rows <= _LOW_MEAN_SQUARE] = 0
        live_columns[by_columns <= _LOW_MEAN_SQUARE] = 0
    added_rows, added_columns = _added_by_rounding(by_rows, num_columns), _added_by_rounding(by_columns, num_rows)
    floor = np.float32(4.0**-_FARTHEST_OCTAVE)

    def of_rows(variance_columns: np.ndarray) -> np.ndarray:
        shares = live_columns / variance_columns / max(live_columns.sum(), 1)
        return np.maximum(row_products(power, shares) - added_rows * shares.sum(), floor * mean)

    def of_columns(variance_rows: np.ndarray) -> np.ndarray:
        shares = live_rows / variance_rows / max(live_rows.sum(), 1)
        return np.maximum(column_products(shares, power) - added_columns * shares.sum(), floor)

    both = by_row and by_column
    variance_rows, variance_columns = np.full(num_rows, mean, np.float32), np.ones(num_columns, np.float32)
    for _ in range(_ALTERNATIONS if both else 1):
        variance_rows = of_rows(variance_columns) if by_row else variance_rows
        variance_columns = of_columns(variance_rows) if by_column else variance_columns
    rows, columns = np.zeros(num_rows, dtype=np.int64), np.zeros(num_columns, dtype=np.int64)
    for _ in range(_CLASS_ROUNDS if both else 1):
        if by_row:
            rows = _assign(of_rows(variance_columns), num_columns)
            variance_rows = (np.median(variance_rows) * 4.0 ** (rows / CLASS_STEPS)).astype(np.float32)
        if by_column:
            columns = _assign(of_columns(variance_rows), num_rows)
            variance_columns = (4.0 ** (columns / CLASS_STEPS)).astype(np.float32)
    return rows - rows.min(), columns - columns.min()


def exact_classes(
    integers: Integers,
    law: Law,
    rows: np.ndarray,  # (R,) classes to start from
    columns: np.ndarray | None,  # (C,) classes; None = all 0
) -> tuple[np.ndarray, Law]:
    """(R,) row classes that take fewest bits under `law`, the smallest of them 0, and the law with its scale adjusted.

    For columns, pass everything transposed.
    """
    column_classes = np.zeros(integers.values.shape[1], dtype=np.int64) if columns is None else columns
    kinds, kind_of = np.unique(column_classes, return_inverse=True)
    lowest = max(-_WIDER, -(law.scale // (SCALE_STEPS // CLASS_STEPS)))
    candidates = np.arange(lowest, int(rows.max()) + _WIDER)
    # Tables depend on the sum of the two classes alone, and few sums differ.
    first = int(candidates[0] + kinds[0])
    sums = np.arange(first, int(candidates[-1] + kinds[-1]) + 1)
    picked = candidates[:, None] + kinds - first  # (A, kinds)
    bits = [
        (PRECISION - np.log2(tables(law, Contexts(sums, np.full(len(sums), quantizer))))).astype(np.float32)[picked]
        for quantizer in range(integers.num_quantizers)
    ]  # (A, kinds, N) each
    costs = np.stack(bits, axis=1).reshape(len(candidates), -1)
    cells = kind_of * law.num_symbols + (integers.values - law.low)
    if integers.quantizers is not None:
        cells = cells + len(kinds) * law.num_symbols * integers.quantizers.astype(np.int64)
    classes = _cheapest(costs_of_rows := _costs_by_row(cells, costs), candidates, costs_of_rows.argmin(axis=1))
    smallest = int(classes.min())
    scale = min(max(law.scale + SCALE_STEPS // CLASS_STEPS * smallest, 0), MAX_SCALE)
    return np.minimum(classes - smallest, 2 * _FARTHEST_CLASS), replace(law, scale=scale)


def _costs_by_row(
    cells: np.ndarray,  # (R, C) index of each element's bits in a row of `costs`
    costs: np.ndarray,  # (A, width) bits of each cell under each candidate
) -> np.ndarray:  # (R, A) fp32
    """Bits of each row under each candidate, from how often each cell occurs in it."""
    width = costs.shape[1]
    sums = np.empty((len(cells), len(costs)), dtype=np.float32)
    at_once = max(1, _CELLS_AT_ONCE // width)
    for start in range(0, len(cells), at_once):
        some = cells[start : start + at_once]
        flat = (some + width * np.arange(len(some))[:, None]).reshape(-1)
        counts = np.bincount(flat, minlength=len(some) * width).reshape(len(some), width)
        sums[start : start + at_once] = counts.astype(np.float32) @ costs.T
    return sums


def _added_by_rounding(
    mean_squares: np.ndarray,  # (n,) of integers
    num_each: int,
) -> np.ndarray:  # (n,)
    """Mean squares of rounded Gaussians minus the variances before: 1/12, or far below 0 where most round to 0."""
    log_squares, added = _rounded_gaussians()
    return np.interp(np.log2(np.maximum(mean_squares, 0.5 / num_each)), log_squares, added).astype(np.float32)


@functools.cache
def _rounded_gaussians() -> tuple[np.ndarray, np.ndarray]:
    """Gaussians rounded to integers: log2 of their mean squares, ascending; the mean squares minus the variances."""
    sigmas = 2.0 ** np.arange(-3, 1, 1 / 16)
    steps = np.arange(1, 32)[:, None]
    beyond = np.vectorize(math.erfc)((steps - 0.5) / (sigmas * math.sqrt(2)))  # probability that |integer| >= step
    squares = ((2 * steps - 1) * beyond).sum(axis=0)
    return np.log2(squares), squares - sigmas**2


def _assign(
    variances: np.ndarray,  # (n,) float > 0
    num_each: int,
) -> np.ndarray:  # (n,) int64
    """Scale classes around the median one, each the cheapest for its elements and for itself together."""
    relative = variances / np.median(variances)
    nearest = np.rint(0.5 * CLASS_STEPS * np.log2(relative)).clip(-_FARTHEST_CLASS, _FARTHEST_CLASS).astype(np.int64)
    candidates = np.arange(nearest.min(), nearest.max() + 1)
    elements = num_each * (
        candidates / CLASS_STEPS + relative[:, None] * 4.0 ** (-candidates / CLASS_STEPS) / (2 * math.log(2))
    )
    return _cheapest(elements, candidates, nearest - candidates[0])


def _cheapest(
    elements: np.ndarray,  # (n, A) bits of the elements under each candidate
    candidates: np.ndarray,  # (A,) classes
    start: np.ndarray,  # (n,) indices of candidates
) -> np.ndarray:  # (n,) int64
    """The candidates that take fewest bits for the elements and for storing the class, which is -log2 of its share."""
    chosen = start
    for _ in range(_COST_ROUNDS):
        counts = np.bincount(chosen, minlength=len(candidates)) + _UNUSED_COUNT
        chosen = (elements - np.log2(counts / counts.sum())).argmin(axis=1)
    return candidates[chosen]


def row_products(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(R, C) times (C,), by einsum: the threads of BLAS slow each other down when tensors are coded in parallel."""
    return np.asarray(np.einsum("rc,c->r", matrix, vector))


def column_products(vector: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(R,) times (R, C)."""
    return np.asarray(np.einsum("r,rc->c", vector, matrix))
