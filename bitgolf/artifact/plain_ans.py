"""Popping an ANS stack in plain Python, where constriction is not installed. It takes about 0.5 us per value.

The state has 64 bits, a word 32, a probability 24 (PRECISION). A value is popped like this:

    quantile = state mod 2^24    the value is the one whose interval of the table holds the quantile
    state = (state >> 24) * length of the interval + quantile - begin of the interval
    if state < 2^32: state = state * 2^32 + next word

Source: Bamler 2022, arXiv 2201.01741.
"""

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from bitgolf.artifact.frequency import PRECISION

_WORD = 32  # bits


class PlainDecoder:
    """Pops values in plain Python."""

    def __init__(self, words: np.ndarray) -> None:
        self._words: list[int] = words.tolist()
        self._state = 0
        while self._words and self._state < 1 << _WORD:
            self._state = self._state << _WORD | self._words.pop()

    def pop(self, table: np.ndarray | int, count: int) -> np.ndarray:
        """The next `count` values, (count,) int32, by a table as in `ans`."""
        values = np.empty(count, dtype=np.int32)
        lengths = [(1 << PRECISION) // table] * table if isinstance(table, int) else table.tolist()
        begins = [0, *accumulate(lengths)]
        state, words, lowest, mask = self._state, self._words, 1 << _WORD, (1 << PRECISION) - 1
        for position in range(count):
            quantile = state & mask
            value = bisect_right(begins, quantile) - 1
            values[position] = value
            state = (state >> PRECISION) * lengths[value] + quantile - begins[value]
            if state < lowest and words:
                state = state << _WORD | words.pop()
        self._state = state
        return values

    def is_empty(self) -> bool:
        return self._state == 0 and not self._words
