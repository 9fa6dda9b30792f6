"""The fitted law of integers codes draws of a generalized Gaussian in their entropy."""

from dataclasses import replace

import numpy as np
import pytest

from bitgolf.artifact.frequency import Contexts, Law
from bitgolf.artifact.law_fit import _LawSearch, fit_law
from bitgolf.artifact.symbol_counts import SymbolCounts

LAST = 2000


def counts_of(power: float, width: float = 150.0) -> np.ndarray:
    """(1, N) counts in proportion to exp(-|x / width|^power)."""
    density = np.exp(-(np.abs(np.arange(-LAST, LAST + 1) / width) ** power))
    return np.round(1e7 * density / density.sum()).astype(np.int64)[None]


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_the_fitted_law_takes_the_entropy_and_likelihood_predicts_it(power: float) -> None:
    counts = counts_of(power)
    counted, total = SymbolCounts(counts, Contexts.one(), -LAST), counts.sum()
    shares = counts[counts > 0] / total
    entropy = -float(shares @ np.log2(shares))
    law, bits = fit_law(counted, 0)
    assert law.beta == 8 * power and bits / total == pytest.approx(entropy, abs=1e-3)
    search = _LawSearch(counted, 0, False)
    for beta in (8, int(8 * power), 20):
        scale, expected = search._likely(counts, beta)
        cost = search.cost(Law(-LAST, LAST, beta, scale, 0)) / total
        assert expected == pytest.approx(cost, abs=0.04)
        for other in (scale - 24, scale + 24):  # the scale is the best one for the shape
            assert search.cost(Law(-LAST, LAST, beta, other, 0)) / total > cost


def test_values_that_were_clipped_or_are_often_zero_get_a_share_of_their_own() -> None:
    counts = counts_of(2.0)
    law, _ = fit_law(SymbolCounts(counts, Contexts.one(), -LAST), 0)
    assert (law.ends, law.spike) == (0, 0)
    counts[0, [0, -1]] += 40_000
    counts[0, LAST + 7] += 500_000
    counted = SymbolCounts(counts, Contexts.one(), -LAST)
    law, bits = fit_law(counted, 0)
    total = counts.sum()
    assert law.ends / 2**16 == pytest.approx(80_000 / total, rel=0.05)
    assert law.spike / 2**16 == pytest.approx(500_000 / total, rel=0.05) and law.spike_at == 7
    search = _LawSearch(counted, 0, False)
    assert bits == search.cost(law) < search.cost(replace(law, ends=0)) and bits < search.cost(replace(law, spike=0))
