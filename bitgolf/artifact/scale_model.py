"""The distribution that a matrix of integers is coded with, and its fit.

Trained weights are Gaussian noise whose standard deviation varies by row and by column: sigma_ij = r_i * c_j. No other
structure has been found that a coder could use. So rows and columns get scale classes of 1/8 octave (see
`scale_classes`), and all elements share one `Law` (see `law_fit`). A rank-one mean is subtracted where that saves bits:
embedding rows of tokens that were hardly trained point in the same direction. Classes and mean are stored too; each is
used only if it saves more bits than it takes. Decoding needs `ScaleModel` alone; everything else here is the encoder's.

Legend: R rows, C columns.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from bitgolf.artifact.frequency import GAUSSIAN, MAX_CELLS, Law
from bitgolf.artifact.law_fit import FEW_SYMBOLS, fit_law
from bitgolf.artifact.scale_classes import column_products, exact_classes, gaussian_classes, row_products
from bitgolf.artifact.sizes import entropy_bits
from bitgolf.artifact.symbol_counts import Integers, count_symbols

COEFFICIENT_BITS = 6  # fraction bits of the coefficients of the rank-one mean; part of the format
_VECTOR_BITS = 50  # that a vector of classes or coefficients takes in addition to its entropy
_SHIFT_ABOVE = 7  # log2 of the standard deviation in symbols; finer bits are stored as they are
_MEAN_PEAK = 127  # largest element of the mean
_LARGEST_COEFFICIENT = 33_000  # times the peak, without its fraction bits, this is below 2^16
_MEAN_ROUNDS = 10  # of the power iteration that finds the direction of the mean
_MEAN_ROW_BITS = 6  # that the coefficient of a row takes, about
_MEAN_COLUMN_BITS = 8  # that an element of the mean takes
_MOST_EXPLAINED = 0.9999  # share of a row's squares that the mean explains, for its logarithm
_FREE_CELLS = 1 << 14  # table entries that any tensor may have
_CELLS_PER_NUMBER = 4  # and that it may have for each of its integers; more would take readers too long
_REASSIGNMENTS = 4  # rounds of choosing classes by exact code length
_GAUSSIAN_ROUNDS = 2  # of these keep the Gaussian shape


@dataclass(frozen=True)
class ScaleModel:
    """The distribution of a matrix: value = center + (round(coefficient_i * mean_j) + u) * 2^stride; u has `law`."""

    # center, stride: offset and power of two that all values share
    center: int
    stride: int
    law: Law  # distribution of u in scale class 0
    # rows, columns: (R,) and (C,) int64 scale classes, or None. Element (i, j) has the sum of the two.
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    # coefficients, mean: (R,) int64 in units of 1/64, and (C,) int64; both or neither
    coefficients: np.ndarray | None = None
    mean: np.ndarray | None = None
    bits: float = 0.0  # ideal length of the coded integers, without the description of the model

    def prediction(self) -> np.ndarray | int:
        """(R, C) int64 rank-one mean, or 0."""
        return 0 if self.mean is None or self.coefficients is None else predict(self.coefficients, self.mean)

    def classes(self) -> np.ndarray | None:
        """(R, 1), (1, C) or (R, C) scale classes of the elements; None = all 0."""
        if self.rows is None:
            return None if self.columns is None else self.columns[None, :]
        return self.rows[:, None] if self.columns is None else self.rows[:, None] + self.columns

    def cost(self) -> float:
        """Bits of the integers, and about those of the vectors that describe them."""
        vectors = (self.rows, self.columns, self.coefficients, self.mean)
        return self.bits + sum(entropy_bits(vector) + _VECTOR_BITS for vector in vectors if vector is not None)


def predict(coefficients: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(R, C) int64 rank-one mean, rounded. It is part of the format, so the arithmetic is in integers."""
    return (coefficients[:, None] * mean + (1 << COEFFICIENT_BITS - 1)) >> COEFFICIENT_BITS


def fit(integers: Integers) -> ScaleModel:
    """The model that codes the integers in the fewest bits, its own description included."""
    center, stride = _lattice(integers.values) if integers.quantizers is None else (0, 0)
    offsets = replace(integers, values=(integers.values.astype(np.int32) - center) >> stride)
    plain = _fit_plain(offsets, center, stride)
    if plain.law.num_symbols == 1 or min(integers.values.shape) == 1:
        return plain
    models = [plain]
    for by_row, by_column in ((True, False), (False, True), (True, True)):
        models.append(_fit_classes(offsets, plain, by_row, by_column) or plain)
    rank_one = _rank_one(offsets.values) if integers.quantizers is None else None
    if rank_one is not None:
        coefficients, mean = rank_one
        residuals = Integers(offsets.values - predict(coefficients, mean))
        around = replace(_fit_plain(residuals, center, stride), coefficients=coefficients, mean=mean)
        if around.law.num_symbols > 1:  # the format has no mean for constant residuals
            for by_column in (False, True):
                models.append(_fit_classes(residuals, around, True, by_column) or plain)
    best, best_cost = plain, plain.bits
    for model in models[1:]:
        if (cost := model.cost()) < best_cost:
            best, best_cost = model, cost
    return best


def _lattice(values: np.ndarray) -> tuple[int, int]:
    """Center and stride: every value is center + n * 2^stride."""
    first = int(values.flat[0])
    differences = int(np.bitwise_or.reduce(values.astype(np.int32) - first, axis=None))
    if differences == 0:
        return first, 0
    stride = (differences & -differences).bit_length() - 1
    middle = np.median(values) if values.size < 1 << 16 else values.mean()
    return first + (round(float(middle) - first) >> stride << stride), stride


def _fit_plain(offsets: Integers, center: int, stride: int) -> ScaleModel:
    """The model with all elements in one scale class."""
    low, high = int(offsets.values.min()), int(offsets.values.max())
    if low == high:
        return ScaleModel(center + (low << stride), stride, Law(0, 0, GAUSSIAN, 0))
    trellis = offsets.quantizers is not None
    sigma = math.sqrt(float(np.square(offsets.values, dtype=np.float64).mean()))
    shift = 0 if trellis else max(0, int(math.log2(max(sigma, 1.0))) - _SHIFT_ABOVE)
    low, high = low >> shift, high >> shift
    if trellis:
        low, high = low & ~1, high | 1  # as many even codes as odd ones
    counted = count_symbols(replace(offsets, values=offsets.values >> shift), None, low, high)
    law, bits = fit_law(counted, shift)
    return ScaleModel(center, stride, law, bits=bits + offsets.values.size * shift)


def _fit_classes(offsets: Integers, plain: ScaleModel, by_row: bool, by_column: bool) -> ScaleModel | None:
    """`plain` with classes by row, by column or both; None if the tables would grow too large."""
    rows, columns = gaussian_classes(offsets, by_row, by_column)
    model = replace(plain, rows=rows if by_row else None, columns=columns if by_column else None)
    law, classes = plain.law, model.classes()
    assert classes is not None
    num_contexts = (1 + int(classes.max())) * offsets.num_quantizers
    if num_contexts * law.num_symbols > min(MAX_CELLS, _FREE_CELLS + _CELLS_PER_NUMBER * offsets.values.size):
        return None
    few = law.num_symbols <= FEW_SYMBOLS
    counted = count_symbols(replace(offsets, values=offsets.values >> law.shift), classes, law.low, law.high)
    law, bits = fit_law(counted, law.shift, gaussian=few)
    model = replace(model, law=law, bits=bits + offsets.values.size * law.shift)
    return _reassigned(offsets, model) if few else model


def _reassigned(offsets: Integers, model: ScaleModel) -> ScaleModel:
    """The model with classes by exact code length. For few symbols a Gaussian describes rounded integers badly."""
    for attempt in range(_REASSIGNMENTS):
        law, rows, columns = model.law, model.rows, model.columns
        if rows is not None:
            rows, law = exact_classes(offsets, law, rows, columns)
        if columns is not None:
            columns, law = exact_classes(offsets.transposed(), law, columns, rows)
        moved = replace(model, rows=rows, columns=columns)
        counted = count_symbols(offsets, moved.classes(), law.low, law.high)
        law, bits = fit_law(counted, 0, gaussian=attempt < _GAUSSIAN_ROUNDS)
        moved = replace(moved, law=law, bits=bits)
        if moved.cost() >= model.cost():
            break
        model = moved
    return model


def _rank_one(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(R,) coefficients and (C,) mean of a rank-one part that saves bits; None if there is none."""
    num_columns = offsets.shape[1]
    levels = offsets.astype(np.float32)
    norms = np.sqrt(np.square(levels).sum(axis=1, dtype=np.float64))
    units = levels / np.maximum(norms, 1e-9)[:, None].astype(np.float32)
    direction = units[norms.argmax()]
    for _ in range(_MEAN_ROUNDS):
        direction = column_products(row_products(units, direction), units)
        direction /= max(float(np.linalg.norm(direction)), 1e-30)
    explained = np.square(row_products(units, direction), dtype=np.float64)
    gains = -0.5 * num_columns * np.log2(1 - np.minimum(explained, _MOST_EXPLAINED)) - _MEAN_ROW_BITS
    if np.maximum(gains, 0).sum() < _MEAN_COLUMN_BITS * num_columns:
        return None
    mean = np.rint(direction * (_MEAN_PEAK / np.abs(direction).max())).astype(np.int64)
    exact = row_products(levels, mean.astype(np.float32)) / float(np.square(mean).sum())
    # A coefficient need not be finer than the noise around the mean.
    noise = norms * np.sqrt((1 - np.minimum(explained, _MOST_EXPLAINED)) / num_columns)
    step = 0.5 * float(np.median(noise[gains > 0])) / _MEAN_PEAK
    coarse = 2.0 ** min(max(math.floor(math.log2(step * (1 << COEFFICIENT_BITS))), 0), COEFFICIENT_BITS)
    coefficients = np.rint(np.where(gains > 0, exact, 0) * (1 << COEFFICIENT_BITS) / coarse) * coarse
    return coefficients.clip(-_LARGEST_COEFFICIENT, _LARGEST_COEFFICIENT).astype(np.int64), mean
