"""The fit of a `Law` to counted symbols: shape, scale and spikes that code them in the fewest bits.

The search starts at the scale of maximum likelihood for each shape, and improves scale and shape in steps as long as
the exact code length falls. Symbols that occur more often than the law explains get spikes: one symbol inside (zeros,
where weights were pruned) and the two ends (where weights were clipped). Only the encoder runs this, in floating
point; the law itself is a few integers. Part of `scale_model`.

Legend: K contexts, N symbols.
"""

import math
from dataclasses import replace

import numpy as np

from bitgolf.artifact.frequency import (
    BETA_STEPS,
    BETAS,
    CLASS_STEPS,
    GAUSSIAN,
    MAX_SCALE,
    PRECISION,
    SCALE_STEPS,
    SMALLEST_LOG2,
    SPIKE_BITS,
    Law,
    tables,
)
from bitgolf.artifact.symbol_counts import SymbolCounts

FEW_SYMBOLS = 16  # up to here, below about 2 bits per value, exact code lengths differ much from those of a Gaussian
_MANY_SYMBOLS = 1 << 13  # above, only outliers make the tables so long, and the search is left out
_SEARCHED_CELLS = 1 << 15  # contexts times symbols on which shape and scale are searched
_SHAPES = (8, 10, 12, 14, 15, 16, 17, 18, 20, 24, 32)  # values of `beta` tried by maximum likelihood
_FINE_STEPS = (16, 8, 4, 2, 1)  # of the scale, for few symbols
_COARSE_STEPS = (4, 1)  # of the scale, otherwise
_SPIKE_GAIN = 40  # bits that spikes must save, as describing them takes about as many


def fit_law(counted: SymbolCounts, shift: int, gaussian: bool = False) -> tuple[Law, float]:
    """The law of a certain shift that codes the counted symbols in the fewest bits, and those bits.

    With `gaussian` it has the shape of a Gaussian.
    """
    num_symbols = counted.counts.shape[1]
    whole = _LawSearch(counted, shift, gaussian)
    search = whole
    if counted.counts.size > _SEARCHED_CELLS:  # the contexts with most values are enough
        largest = np.argsort(-counted.counts.sum(axis=1), kind="stable")
        search = _LawSearch(counted[largest[: max(1, _SEARCHED_CELLS // num_symbols)]], shift, gaussian)
    law, bits = search.best_near_likelihood(Law(counted.low, counted.low + num_symbols - 1, GAUSSIAN, 0, shift))
    spiked = search.with_spikes(law)
    if spiked != law:
        spiked, _ = search.best_near_likelihood(spiked)
        spiked = search.with_spikes(spiked)
        if search.cost(spiked) < bits - _SPIKE_GAIN:
            law = spiked
    return law, whole.cost(law)


class _LawSearch:
    """The search for shape, scale and spikes on some counts."""

    def __init__(self, counted: SymbolCounts, shift: int, gaussian: bool) -> None:
        self.counts, self.contexts = counted.counts, counted.contexts
        self._shapes = (GAUSSIAN,) if gaussian else _SHAPES
        symbols = np.arange(counted.low, counted.low + self.counts.shape[1])
        centers = (symbols << shift) + 0.5 * ((1 << shift) - 1) + 0.5 * self.contexts.quantizers[:, None]
        # (K, N) log2 of the distance from the center, in units of the scale of the context
        octaves = self.contexts.scale_classes[:, None] / CLASS_STEPS
        self._log_distance = np.log2(np.maximum(np.abs(centers), 0.25)) - octaves

    def cost(self, law: Law) -> float:
        """Bits of all symbols under `law`."""
        return float((self.counts * (PRECISION - np.log2(tables(law, self.contexts)))).sum())

    def best_near_likelihood(self, law: Law) -> tuple[Law, float]:
        """The best shape and scale near those of maximum likelihood, and the bits; spikes stay."""
        counts = self._without_spikes(law)
        likely = {beta: self._likely(counts, beta) for beta in self._shapes}
        beta = min(likely, key=lambda b: likely[b][1])
        best = replace(law, beta=beta, scale=likely[beta][0])
        bits = self.cost(best)
        if best.num_symbols > _MANY_SYMBOLS:
            return best, bits
        best, bits = self._improve_scale(best, bits)
        return self._improve_shape(best, bits, counts) if len(self._shapes) > 1 else (best, bits)

    def _improve_scale(self, best: Law, bits: float) -> tuple[Law, float]:
        for step in _FINE_STEPS if best.num_symbols <= FEW_SYMBOLS else _COARSE_STEPS:
            for sign in (1, -1):
                improved = False
                while 0 <= best.scale + sign * step <= MAX_SCALE:
                    moved = replace(best, scale=best.scale + sign * step)
                    if (cost := self.cost(moved)) >= bits:
                        break
                    best, bits, improved = moved, cost, True
                if improved:
                    break
        return best, bits

    def _improve_shape(self, best: Law, bits: float, counts: np.ndarray) -> tuple[Law, float]:
        """The scale follows the shape as maximum likelihood says."""
        for sign in (1, -1):
            while (beta := best.beta + sign) in BETAS:
                change = self._likely(counts, beta)[0] - self._likely(counts, best.beta)[0]
                moved = replace(best, beta=beta, scale=min(max(best.scale + change, 0), MAX_SCALE))
                if (cost := self.cost(moved)) >= bits:
                    break
                best, bits = moved, cost
        return best, bits

    def with_spikes(self, law: Law) -> Law:
        """`law` with extra probability for its ends and for the symbol inside that most exceeds its share."""
        expected = self.counts.sum(axis=1) @ (tables(replace(law, ends=0, spike=0), self.contexts))
        excess = self.counts.sum(axis=0) / self.counts.sum() - expected / (self.counts.sum() << PRECISION)
        unit = 1 << SPIKE_BITS
        ends = min(max(round(unit * (excess[0] + excess[-1])), 0), unit // 2) & ~1
        if len(excess) < 4:
            return replace(law, ends=0, spike=0)
        inside = 1 + int(excess[1:-1].argmax())
        spike = min(max(round(unit * excess[inside]), 0), unit // 4)
        return replace(law, ends=ends, spike=spike, spike_at=law.low + inside if spike else 0)

    def _without_spikes(self, law: Law) -> np.ndarray:
        """(K, N) counts minus those that the spikes explain."""
        counts = self.counts.astype(np.float64)
        totals = counts.sum(axis=1) / (1 << SPIKE_BITS)
        if law.ends:
            counts[:, 0] -= 0.5 * law.ends * totals
            counts[:, -1] -= 0.5 * law.ends * totals
        if law.spike:
            counts[:, law.spike_at - law.low] -= law.spike * totals
        return np.maximum(counts, 0)

    def _likely(self, counts: np.ndarray, beta: int) -> tuple[int, float]:
        """The scale of maximum likelihood for a shape and the bits per value, as if values were not rounded."""
        power = beta / BETA_STEPS
        moment = float((counts * np.exp2(power * self._log_distance)).sum() / counts.sum())
        log_alpha = math.log2(power * math.log(2) * moment) / power
        bits = log_alpha + math.log2(2 / power) + (math.lgamma(1 / power) - math.log(math.log(2)) / power) / math.log(2)
        scale = round(SCALE_STEPS * (log_alpha - SMALLEST_LOG2))
        return min(max(scale, 0), MAX_SCALE), bits + 1 / (power * math.log(2))
