"""Integers to be coded, and how often each symbol occurs in each context: what the fit of a distribution works on.

Legend: R rows, C columns, K contexts, N symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitgolf.artifact.frequency import Contexts


@dataclass(frozen=True)
class Integers:
    """A matrix of integers, and under a trellis the quantizer of each."""

    values: np.ndarray  # (R, C) integers, at most 2^17 in magnitude
    # (R, C) of 0 and 1, or None without a trellis. In quantizer 1 a value v stands for v + 1/2.
    quantizers: np.ndarray | None = None

    @property
    def num_quantizers(self) -> int:
        """2 under a trellis, else 1."""
        return 1 if self.quantizers is None else 2

    def transposed(self) -> Integers:
        """Rows and columns exchanged."""
        return Integers(self.values.T, None if self.quantizers is None else self.quantizers.T)

    def levels(self) -> np.ndarray:
        """(R, C) fp32: the numbers that the values stand for."""
        levels = self.values.astype(np.float32)
        if self.quantizers is not None:
            levels += 0.5 * self.quantizers
        return levels


@dataclass(frozen=True)
class SymbolCounts:
    """How often the symbols `low`, `low` + 1, ... occur in each context that occurs."""

    counts: np.ndarray  # (K, N) integers
    contexts: Contexts  # the K contexts
    low: int  # the first symbol

    def __getitem__(self, chosen: np.ndarray) -> SymbolCounts:
        return SymbolCounts(self.counts[chosen], self.contexts[chosen], self.low)


def count_symbols(
    symbols: Integers,
    scale_classes: np.ndarray | None,  # broadcastable to (R, C); None = all 0
    low: int,
    high: int,
) -> SymbolCounts:
    """Counts of the symbols low ... high."""
    num_symbols = high - low + 1
    contexts: np.ndarray | int = 0 if scale_classes is None else scale_classes.astype(np.int32)
    if symbols.quantizers is not None:
        contexts = 2 * contexts + symbols.quantizers
    cells = symbols.values - low + np.multiply(contexts, num_symbols, dtype=np.int32)
    counts = np.bincount(cells.reshape(-1))
    counts = np.pad(counts, (0, -len(counts) % num_symbols)).reshape(-1, num_symbols)
    present = np.flatnonzero(counts.any(axis=1))
    bits = symbols.num_quantizers - 1  # low bits of a context, which name its quantizer
    return SymbolCounts(counts[present], Contexts(present >> bits, present & bits), low)
