"""Fit of the distribution that a matrix of integers is coded with; the encoder's half of `coder`, in floats.

Trained weights are Gaussian noise whose standard deviation varies by row and by column and in no other way that a
coder can use: sigma_ij = r_i * c_j. Rows and columns get scale classes of 1/8 octave (a scale that is off by the
4 % in between costs 0.002 bit), the rest is one `Law`. Row classes, column classes and a rank-one mean (embedding rows
of tokens that were hardly trained point the same way) are used where they save more bits than they take.

Legend: R rows, C columns, K contexts (scale class and, under a trellis, which quantizer), N symbols.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from bitgolf.artifact.frequency import (
    BETA_STEPS,
    BETAS,
    MAX_CELLS,
    MAX_SCALE,
    PRECISION,
    SCALE_STEPS,
    SMALLEST_LOG2,
    SPIKE_BITS,
    Law,
    tables,
)
from bitgolf.artifact.sizes import entropy_bits

CLASS_STEPS = 8  # scale classes an octave
MAX_CLASSES = 256
COEFFICIENT_BITS = 6  # fraction bits of the rank-one mean's row coefficients
_FARTHEST_OCTAVE, _FARTHEST_CLASS = 8, 63  # of a row or column from the median one
_LOW_RATE = 0.25  # mean square of integers below which rounding is not just added noise
_VECTOR_BITS = 50  # what a vector of classes takes beside its entropy
_MEAN_PEAK, _LARGEST_COEFFICIENT = 127, 33_000  # their product, with 6 bits less, is below 2^16
_FEW_SYMBOLS = 16  # up to which (below about 2 bits) classes go by exact code length
_CELLS_AT_ONCE = 1 << 20  # counts of rows by context that are held at a time
_SEARCHED_CELLS = 1 << 15  # contexts times symbols on which a law's shape is searched
_MANY_SYMBOLS = 1 << 13  # tables so long, for outliers, that the search is left out
_CELLS_FREE, _CELLS_A_NUMBER = 1 << 14, 4  # tables of a tensor that a reader takes the trouble to compute
_WIDER = 12  # classes beyond the present ones that are tried
_SHAPE_SCAN = (8, 10, 12, 14, 15, 16, 17, 18, 20, 24, 32)


@dataclass(frozen=True)
class ScaleModel:
    """How the integers of a matrix are coded: v = center + (round(coefficient_i * mean_j) + u) * 2^stride, u by `law`.

    Attributes:
        center, stride: offset and power of two that all values share.
        law: distribution of u in scale class 0.
        rows: (R,) int64 scale classes of the rows, or None; columns: the same, (C,). Element i, j has the sum.
        coefficients: (R,) int64, in 1/64; mean: (C,) int64; both or neither.
        bits: ideal length of the symbols with their low bits, without what describes the model.
    """

    center: int
    stride: int
    law: Law
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    coefficients: np.ndarray | None = None
    mean: np.ndarray | None = None
    bits: float = 0.0

    def prediction(self) -> np.ndarray | int:
        """(R, C) int64 rank-one mean, 0 without one."""
        return 0 if self.mean is None or self.coefficients is None else predict(self.coefficients, self.mean)

    def classes(self) -> np.ndarray | None:
        """(R, 1), (1, C) or (R, C) scale classes of the elements; None = all 0."""
        if self.rows is None:
            return None if self.columns is None else self.columns[None, :]
        return self.rows[:, None] if self.columns is None else self.rows[:, None] + self.columns


def predict(coefficients: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(R, C) int64: the rank-one mean, rounded; integer arithmetic, for it is part of the format."""
    return (coefficients[:, None] * mean + (1 << COEFFICIENT_BITS - 1)) >> COEFFICIENT_BITS


def fit(
    values: np.ndarray,  # (R, C) integers, |v| <= 2^17
    halves: np.ndarray | None = None,  # (R, C) of 0 and 1: under a trellis, value v stands for v + half / 2
) -> ScaleModel:
    """The model that codes `values` in the fewest bits, its own description counted."""
    center, stride = _lattice(values) if halves is None else (0, 0)
    offsets = (values.astype(np.int32) - center) >> stride
    plain = _fit_plain(offsets, halves, center, stride)
    if plain.law.num_symbols == 1 or min(values.shape) == 1:
        return plain
    best, best_cost = plain, plain.bits
    for rows, columns in ((True, False), (False, True), (True, True)):
        model = _fit_classes(offsets, halves, plain, rows, columns)
        best, best_cost = _better(best, best_cost, model)
    if halves is None:
        found = _rank_one(offsets)
        if found is not None:
            moved = offsets - predict(*found)
            around = replace(_fit_plain(moved, None, center, stride), coefficients=found[0], mean=found[1])
            if around.law.num_symbols == 1:  # the format has no mean beside constants
                return best
            for rows, columns in ((True, False), (True, True)):
                model = _fit_classes(moved, None, around, rows, columns)
                best, best_cost = _better(best, best_cost, model)
    return best


def _better(best: ScaleModel, best_cost: float, model: ScaleModel | None) -> tuple[ScaleModel, float]:
    if model is None:
        return best, best_cost
    cost = _cost(model)
    return (model, cost) if cost < best_cost else (best, best_cost)


def _cost(model: ScaleModel) -> float:
    """Bits of the symbols, and about those of the vectors that describe them."""
    vectors = (model.rows, model.columns, model.coefficients, model.mean)
    return model.bits + sum(entropy_bits(vector) + _VECTOR_BITS for vector in vectors if vector is not None)


def _lattice(values: np.ndarray) -> tuple[int, int]:
    """Center and power of two: every value is center + n * 2^stride."""
    first = int(values.flat[0])
    differences = int(np.bitwise_or.reduce(values.astype(np.int32) - first, axis=None))
    if differences == 0:
        return first, 0
    stride = (differences & -differences).bit_length() - 1
    middle = np.median(values) if values.size < 1 << 16 else values.mean()
    return first + (round(float(middle) - first) >> stride << stride), stride


def _fit_plain(offsets: np.ndarray, halves: np.ndarray | None, center: int, stride: int) -> ScaleModel:
    """All elements in one scale class."""
    low, high = int(offsets.min()), int(offsets.max())
    if low == high:
        return ScaleModel(center + (low << stride), stride, Law(0, 0, BETA_STEPS * 2, 0))
    sigma = math.sqrt(float(np.square(offsets, dtype=np.float64).mean()))
    shift = 0 if halves is not None else max(0, int(math.log2(max(sigma, 1.0))) - 7)
    low, high = low >> shift, high >> shift
    if halves is not None:
        low, high = low & ~1, high | 1  # as many even codes as odd ones
    histogram, classes, half = _histogram(offsets >> shift, halves, None, low, high)
    law, bits = _fit_law(histogram, classes, half, low, shift)
    return ScaleModel(center, stride, law, bits=bits + offsets.size * shift)


def _fit_classes(
    offsets: np.ndarray, halves: np.ndarray | None, plain: ScaleModel, by_row: bool, by_column: bool
) -> ScaleModel | None:
    """The same with classes by row, by column or both; None where the tables would grow too large."""
    rows, columns = _classes(offsets, halves, by_row, by_column)
    model = replace(plain, rows=rows if by_row else None, columns=columns if by_column else None)
    law, element_classes = plain.law, model.classes()
    assert element_classes is not None
    contexts = (1 + int(element_classes.max())) * (1 if halves is None else 2)
    if contexts * law.num_symbols > min(MAX_CELLS, _CELLS_FREE + _CELLS_A_NUMBER * offsets.size):
        return None
    few = law.num_symbols <= _FEW_SYMBOLS
    counted = _histogram(offsets >> law.shift, halves, element_classes, law.low, law.high)
    law, bits = _fit_law(*counted, law.low, law.shift, gaussian=few)
    model = replace(model, law=law, bits=bits + offsets.size * law.shift)
    return _reassigned(offsets, halves, model) if few else model


def _reassigned(offsets: np.ndarray, halves: np.ndarray | None, model: ScaleModel) -> ScaleModel:
    """The same with classes by exact code length: at low rates a Gaussian says too little of rounded integers."""
    for attempt in range(4):
        law = model.law
        rows, columns = model.rows, model.columns
        if rows is not None:
            rows, law = _exact_classes(offsets, halves, law, rows, columns)
        if columns is not None:
            swapped = None if halves is None else halves.T
            columns, law = _exact_classes(offsets.T, swapped, law, columns, rows)
        moved = replace(model, rows=rows, columns=columns)
        counted = _histogram(offsets, halves, moved.classes(), law.low, law.high)
        law, bits = _fit_law(*counted, law.low, 0, gaussian=attempt < 2)
        moved = replace(moved, law=law, bits=bits)
        if _cost(moved) >= _cost(model):
            break
        model = moved
    return model


def _exact_classes(
    offsets: np.ndarray,  # (R, C)
    halves: np.ndarray | None,
    law: Law,
    rows: np.ndarray,  # (R,)
    columns: np.ndarray | None,  # (C,)
) -> tuple[np.ndarray, Law]:
    """Row classes that are cheapest under `law` and the column classes; the smallest is 0, the law's scale follows."""
    contexts = np.zeros(offsets.shape[1], dtype=np.int64) if columns is None else columns
    kinds, kind_of = np.unique(contexts, return_inverse=True)
    candidates = np.arange(max(-_WIDER, -(law.scale >> 3)), int(rows.max()) + _WIDER)
    # Tables depend on the sum of the two classes alone, and few sums differ.
    first = int(candidates[0] + kinds[0])
    sums = np.arange(first, int(candidates[-1] + kinds[-1]) + 1)
    picked = candidates[:, None] + kinds - first  # (A, K)
    bits = [
        (PRECISION - np.log2(tables(law, sums, np.full(len(sums), half)))).astype(np.float32)[picked]
        for half in range(1 if halves is None else 2)
    ]  # (A, K, N) each
    costs = np.stack(bits, axis=1).reshape(len(candidates), -1)
    cells = kind_of * law.num_symbols + (offsets - law.low)
    if halves is not None:
        cells = cells + len(kinds) * law.num_symbols * halves.astype(np.int64)
    width = costs.shape[1]
    elements = np.empty((len(rows), len(candidates)), dtype=np.float32)
    at_once = max(1, _CELLS_AT_ONCE // width)
    for start in range(0, len(rows), at_once):
        some = cells[start : start + at_once]
        flat = (some + width * np.arange(len(some))[:, None]).reshape(-1)
        counts = np.bincount(flat, minlength=len(some) * width).reshape(len(some), width)
        elements[start : start + at_once] = counts.astype(np.float32) @ costs.T
    classes = _cheapest(elements, candidates, elements.argmin(axis=1))
    smallest = int(classes.min())
    scale = min(max(law.scale + SCALE_STEPS // CLASS_STEPS * smallest, 0), MAX_SCALE)
    return np.minimum(classes - smallest, 2 * _FARTHEST_CLASS), replace(law, scale=scale)


def _histogram(
    symbols: np.ndarray,  # (R, C)
    halves: np.ndarray | None,
    classes: np.ndarray | None,  # broadcastable to (R, C)
    low: int,
    high: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, N) counts of the symbols low ... high in each context that occurs; (K,) its class; (K,) its half."""
    num_symbols = high - low + 1
    contexts: np.ndarray | int = 0 if classes is None else classes.astype(np.int32)
    if halves is not None:
        contexts = 2 * contexts + halves
    cells = symbols - low + np.multiply(contexts, num_symbols, dtype=np.int32)
    counts = np.bincount(cells.reshape(-1))
    counts = np.pad(counts, (0, -len(counts) % num_symbols)).reshape(-1, num_symbols)
    present = np.flatnonzero(counts.any(axis=1))
    if halves is None:
        return counts[present], present, np.zeros(len(present), dtype=np.int64)
    return counts[present], present >> 1, present & 1


def _classes(
    offsets: np.ndarray, halves: np.ndarray | None, by_row: bool, by_column: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) and (C,) int64 scale classes, the smallest of each 0, by maximum likelihood of a Gaussian and their cost."""
    levels = offsets.astype(np.float32)
    if halves is not None:
        levels += 0.5 * halves
    power = np.square(levels)
    mean = float(power.mean())
    num_rows, num_columns = power.shape
    by_rows, by_columns = power.mean(axis=1), power.mean(axis=0)
    # Where rounding leaves next to nothing but zeros, an element says little about the scale of its column or row.
    live_rows, live_columns = np.ones(num_rows, dtype=np.float32), np.ones(num_columns, dtype=np.float32)
    if mean > _LOW_RATE:
        live_rows[by_rows <= _LOW_RATE] = 0
        live_columns[by_columns <= _LOW_RATE] = 0
    added_rows, added_columns = _added_by_rounding(by_rows, num_columns), _added_by_rounding(by_columns, num_rows)
    floor = np.float32(4.0**-_FARTHEST_OCTAVE)

    def of_rows(variance_columns: np.ndarray) -> np.ndarray:
        shares = live_columns / variance_columns / max(live_columns.sum(), 1)
        return np.maximum(_by_rows(power, shares) - added_rows * shares.sum(), floor * mean)

    def of_columns(variance_rows: np.ndarray) -> np.ndarray:
        shares = live_rows / variance_rows / max(live_rows.sum(), 1)
        return np.maximum(_by_columns(shares, power) - added_columns * shares.sum(), floor)

    variance_rows, variance_columns = np.full(num_rows, mean, np.float32), np.ones(num_columns, np.float32)
    for _ in range(5 if by_row and by_column else 1):
        variance_rows = of_rows(variance_columns) if by_row else variance_rows
        variance_columns = of_columns(variance_rows) if by_column else variance_columns
    rows, columns = np.zeros(num_rows, dtype=np.int64), np.zeros(num_columns, dtype=np.int64)
    for _ in range(2 if by_row and by_column else 1):
        if by_row:
            rows = _assign(of_rows(variance_columns), num_columns)
            variance_rows = (np.median(variance_rows) * 4.0 ** (rows / CLASS_STEPS)).astype(np.float32)
        if by_column:
            columns = _assign(of_columns(variance_rows), num_rows)
            variance_columns = (4.0 ** (columns / CLASS_STEPS)).astype(np.float32)
    return rows - rows.min(), columns - columns.min()


def _added_by_rounding(
    mean_squares: np.ndarray,  # (n,) of integers
    num_each: int,
) -> np.ndarray:  # (n,)
    """Mean squares of rounded Gaussians less the variances before: 1/12, and far below 0 where few round up."""
    log_squares, added = _rounded_gaussians()
    return np.interp(np.log2(np.maximum(mean_squares, 0.5 / num_each)), log_squares, added).astype(np.float32)


@functools.cache
def _rounded_gaussians() -> tuple[np.ndarray, np.ndarray]:
    """Gaussians rounded to integers: log2 of their mean squares, ascending, and the mean square less the variance."""
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
    """The candidates that cost least for their elements and themselves, the latter by how often each is used."""
    chosen = start
    for _ in range(3):
        counts = np.bincount(chosen, minlength=len(candidates)) + 0.25
        chosen = (elements - np.log2(counts / counts.sum())).argmin(axis=1)
    return candidates[chosen]


def _by_rows(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(R, C) times (C,). Not by BLAS: its threads stand in each other's way where tensors are coded side by side."""
    return np.asarray(np.einsum("rc,c->r", matrix, vector))


def _by_columns(vector: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(R,) times (R, C)."""
    return np.asarray(np.einsum("r,rc->c", vector, matrix))


def _rank_one(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(R,) coefficients and (C,) mean of a rank-one part worth its bits; None when there is none."""
    num_columns = offsets.shape[1]
    levels = offsets.astype(np.float32)
    norms = np.sqrt(np.square(levels).sum(axis=1, dtype=np.float64))
    units = levels / np.maximum(norms, 1e-9)[:, None].astype(np.float32)
    direction = units[norms.argmax()]
    for _ in range(10):
        direction = _by_columns(_by_rows(units, direction), units)
        direction /= max(float(np.linalg.norm(direction)), 1e-30)
    shares = np.square(_by_rows(units, direction), dtype=np.float64)
    gains = -0.5 * num_columns * np.log2(1 - np.minimum(shares, 0.9999)) - 6
    if np.maximum(gains, 0).sum() < 8 * num_columns:
        return None
    mean = np.rint(direction * (_MEAN_PEAK / np.abs(direction).max())).astype(np.int64)
    exact = _by_rows(levels, mean.astype(np.float32)) / float(np.square(mean).sum())
    # A coefficient need be no finer than what is left around the mean.
    left = norms * np.sqrt((1 - np.minimum(shares, 0.9999)) / num_columns)
    step = 0.5 * float(np.median(left[gains > 0])) / _MEAN_PEAK
    coarse = 2.0 ** min(max(math.floor(math.log2(step * (1 << COEFFICIENT_BITS))), 0), COEFFICIENT_BITS)
    coefficients = np.rint(np.where(gains > 0, exact, 0) * (1 << COEFFICIENT_BITS) / coarse) * coarse
    return coefficients.clip(-_LARGEST_COEFFICIENT, _LARGEST_COEFFICIENT).astype(np.int64), mean


def _fit_law(
    histogram: np.ndarray,  # (K, N)
    classes: np.ndarray,  # (K,)
    halves: np.ndarray,  # (K,)
    low: int,
    shift: int,
    gaussian: bool = False,
) -> tuple[Law, float]:
    """The law that codes the counts in the fewest bits, and those bits; `gaussian` fixes its shape."""
    every = _Shape(histogram, classes, halves, low, shift, gaussian)
    shape = every
    if histogram.size > _SEARCHED_CELLS:  # the contexts with most elements tell enough
        most = np.argsort(-histogram.sum(axis=1), kind="stable")[: max(1, _SEARCHED_CELLS // histogram.shape[1])]
        shape = _Shape(histogram[most], classes[most], halves[most], low, shift, gaussian)
    law, bits = shape.search(Law(low, low + histogram.shape[1] - 1, 2 * BETA_STEPS, 0, shift))
    spiked = shape.spikes(law)
    if spiked != law:
        spiked, _ = shape.search(spiked)
        spiked = shape.spikes(spiked)
        if shape.cost(spiked) < bits - 40:
            law = spiked
    return law, every.cost(law)


class _Shape:
    """Search for shape and scale of a law by exact code length, started by maximum likelihood."""

    def __init__(
        self, histogram: np.ndarray, classes: np.ndarray, halves: np.ndarray, low: int, shift: int, gaussian: bool
    ) -> None:
        self.histogram, self.classes, self.halves = histogram, classes, halves
        self._shapes = (2 * BETA_STEPS,) if gaussian else _SHAPE_SCAN
        symbols = np.arange(low, low + histogram.shape[1])
        centers = (symbols << shift) + 0.5 * ((1 << shift) - 1) + 0.5 * halves[:, None]
        self._log_distance = np.log2(np.maximum(np.abs(centers), 0.25)) - classes[:, None] / CLASS_STEPS  # (K, N)

    def cost(self, law: Law) -> float:
        """Bits of all symbols under `law`."""
        return float((self.histogram * (PRECISION - np.log2(tables(law, self.classes, self.halves)))).sum())

    def search(self, law: Law) -> tuple[Law, float]:
        """The best shape and scale near those of maximum likelihood; spikes stay."""
        counts = self._without_spikes(law)
        likely = {beta: self._likely(counts, beta) for beta in self._shapes}
        beta = min(likely, key=lambda b: likely[b][1])
        best = replace(law, beta=beta, scale=likely[beta][0])
        bits = self.cost(best)
        if best.num_symbols > _MANY_SYMBOLS:
            return best, bits
        steps = (16, 8, 4, 2, 1) if best.num_symbols <= _FEW_SYMBOLS else (4, 1)
        for step in steps:
            for sign in (1, -1):
                ahead = 0
                while 0 <= best.scale + sign * step <= MAX_SCALE:
                    moved = replace(best, scale=best.scale + sign * step)
                    if (cost := self.cost(moved)) >= bits:
                        break
                    best, bits, ahead = moved, cost, ahead + 1
                if ahead:
                    break
        for sign in (1, -1) if len(self._shapes) > 1 else ():
            while (beta := best.beta + sign) in BETAS:
                ahead = self._likely(counts, beta)[0] - self._likely(counts, best.beta)[0]
                moved = replace(best, beta=beta, scale=min(max(best.scale + ahead, 0), MAX_SCALE))
                if (cost := self.cost(moved)) >= bits:
                    break
                best, bits = moved, cost
        return best, bits

    def spikes(self, law: Law) -> Law:
        """`law` with the extra probability of its ends, and of the symbol that most exceeds its share."""
        expected = self.histogram.sum(axis=1) @ (tables(replace(law, ends=0, spike=0), self.classes, self.halves))
        excess = self.histogram.sum(axis=0) / self.histogram.sum() - expected / (self.histogram.sum() << PRECISION)
        unit = 1 << SPIKE_BITS
        ends = min(max(round(unit * (excess[0] + excess[-1])), 0), unit // 2) & ~1
        if len(excess) < 4:
            return replace(law, ends=0, spike=0)
        inside = 1 + int(excess[1:-1].argmax())
        spike = min(max(round(unit * excess[inside]), 0), unit // 4)
        return replace(law, ends=ends, spike=spike, spike_at=law.low + inside if spike else 0)

    def _without_spikes(self, law: Law) -> np.ndarray:
        """(K, N) counts less what the spikes account for."""
        counts = self.histogram.astype(np.float64)
        totals = counts.sum(axis=1) / (1 << SPIKE_BITS)
        if law.ends:
            counts[:, 0] -= 0.5 * law.ends * totals
            counts[:, -1] -= 0.5 * law.ends * totals
        if law.spike:
            counts[:, law.spike_at - law.low] -= law.spike * totals
        return np.maximum(counts, 0)

    def _likely(self, counts: np.ndarray, beta: int) -> tuple[int, float]:
        """Scale of maximum likelihood for a shape, were values not rounded; and its bits per value."""
        power = beta / BETA_STEPS
        moment = float((counts * np.exp2(power * self._log_distance)).sum() / counts.sum())
        log_alpha = math.log2(power * math.log(2) * moment) / power
        bits = log_alpha + math.log2(2 / power) + (math.lgamma(1 / power) - math.log(math.log(2)) / power) / math.log(2)
        scale = round(SCALE_STEPS * (log_alpha - SMALLEST_LOG2))
        return min(max(scale, 0), MAX_SCALE), bits + 1 / (power * math.log(2))
