"""Scale classes against plain loops over the code length, and against the scales that the integers were drawn with."""

import math

import numpy as np
import pytest

from bitgolf.artifact.frequency import Contexts, Law, tables
from bitgolf.artifact.scale_classes import _added_by_rounding, _assign, exact_classes, gaussian_classes
from bitgolf.artifact.symbol_counts import Integers


def drawn(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, sigma: float) -> np.ndarray:
    """Rounded Gaussians whose deviation is sigma * 2^((row class + column class) / 8)."""
    scales = sigma * 2.0 ** ((rows[:, None] + columns) / 8)
    return np.rint(rng.standard_normal(scales.shape) * scales).clip(-200, 200).astype(np.int64)


def cheapest(elements: list[list[float]], chosen: list[int]) -> list[int]:
    """Three rounds of choosing the candidate of each row by its bits, and those of a class that is used so often."""
    for _ in range(3):
        counts = [chosen.count(candidate) + 0.25 for candidate in range(len(elements[0]))]
        own = [-math.log2(count / sum(counts)) for count in counts]
        chosen = [min(range(len(own)), key=lambda c, row=row: row[c] + own[c]) for row in elements]
    return chosen


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_exact_classes_are_those_of_fewest_bits(by_column: bool, trellis: bool) -> None:
    rng = np.random.default_rng(5)
    rows = rng.choice([0, 6, 14], size=20)
    columns = rng.choice([0, 5], size=60) if by_column else np.zeros(60, dtype=np.int64)
    values = drawn(rng, rows, columns, 0.9)
    quantizers = rng.integers(0, 2, size=values.shape) if trellis else None
    law = Law(-200, 200, 16, 64 * 12 + 40)
    start = rows + rng.integers(-2, 3, size=20)
    classes, fitted = exact_classes(Integers(values, quantizers), law, start, columns if by_column else None)
    candidates = range(-12, int(start.max()) + 12)
    elements = []
    for i in range(len(values)):
        bits = []
        for candidate in candidates:
            total = 0.0
            for column in set(columns.tolist()):
                for quantizer in range(2 if trellis else 1):
                    table = tables(law, Contexts.one(candidate + column, quantizer))[0] / 2**24
                    which = (
                        columns == column if quantizers is None else (columns == column) & (quantizers[i] == quantizer)
                    )
                    total -= float(np.log2(table[values[i, which] + 200]).sum())
            bits.append(total)
        elements.append(bits)
    best = cheapest(elements, [bits.index(min(bits)) for bits in elements])
    smallest = min(best) - 12
    assert classes.tolist() == [place - min(best) for place in best]
    assert fitted == Law(-200, 200, 16, 64 * 12 + 40 + 8 * smallest)


def test_exact_classes_stay_within_the_scales_of_the_format() -> None:
    values = np.zeros((3, 40), dtype=np.int64)
    classes, fitted = exact_classes(Integers(values), Law(-3, 3, 16, 20), np.zeros(3, dtype=np.int64), None)
    assert classes.tolist() == [0, 0, 0] and fitted.scale >= 0


@pytest.mark.parametrize(("by_row", "by_column"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("sigma", [0.7, 6.0])
def test_gaussian_classes_are_the_scales_of_the_draw(by_row: bool, by_column: bool, sigma: float) -> None:
    rng = np.random.default_rng(6)
    rows, columns = rng.choice([0, 8, 20], size=300), rng.choice([0, 4, 12], size=400)
    values = drawn(rng, rows if by_row else 0 * rows, columns if by_column else 0 * columns, sigma)
    made_rows, made_columns = gaussian_classes(Integers(values), by_row, by_column)
    for made, true, asked in ((made_rows, rows, by_row), (made_columns, columns, by_column)):
        assert made.dtype == np.int64 and made.min() == 0
        off = made - true - np.median(made - true) if asked else made
        assert np.abs(off).max() <= 2 * asked and np.abs(off).mean() <= 0.5 * asked


def test_quantizers_of_a_trellis_move_the_levels() -> None:
    """Values of quantizer 1 stand for a half more: -1 and 0 are as far from zero, so both rows have one scale."""
    quantizers = np.ones((2, 400), dtype=np.int64)
    values = np.stack([np.full(400, -1), np.zeros(400, dtype=np.int64)])
    assert gaussian_classes(Integers(values, quantizers), True, False)[0].tolist() == [0, 0]
    assert gaussian_classes(Integers(values), True, False)[0].tolist() != [0, 0]


@pytest.mark.parametrize("sigma", [0.2, 0.3, 0.5, 0.8, 1.5])
def test_what_rounding_adds(sigma: float) -> None:
    points = np.linspace(-8 * sigma, 8 * sigma, 400_001)
    density = np.exp(-0.5 * (points / sigma) ** 2)
    square = float((np.rint(points) ** 2 * density).sum() / density.sum())
    assert _added_by_rounding(np.array([square]), 10**9)[0] == pytest.approx(square - sigma**2, abs=2e-4)
    if sigma > 1:
        assert square - sigma**2 == pytest.approx(1 / 12, abs=1e-3)


def test_rows_of_zeros_count_as_half_an_element() -> None:
    assert _added_by_rounding(np.zeros(1), 8)[0] == _added_by_rounding(np.array([1 / 16]), 8)[0]


def test_classes_of_variances_share_where_that_is_cheaper() -> None:
    variances = np.array([1.0, 1.02, 0.97, 4.0, 4.2, 3.9, 1.1, 64.0, 1.0])
    for num_each in (4, 40, 4_000):
        relative = variances / np.median(variances)
        nearest = [round(4 * math.log2(value)) for value in relative]
        candidates = range(min(nearest), max(nearest) + 1)
        elements = [[num_each * (c / 8 + v * 4 ** (-c / 8) / (2 * math.log(2))) for c in candidates] for v in relative]
        best = cheapest(elements, [value - candidates[0] for value in nearest])
        assert _assign(variances, num_each).tolist() == [candidates[place] for place in best]
