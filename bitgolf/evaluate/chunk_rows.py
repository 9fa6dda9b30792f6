"""Rows to learn from: a scored chunk cut into windows, and each rank's share of a batch of them.

A chunk of C targets gives C // T consecutive rows of T inputs and their T targets; the remainder is dropped (it is
scored all the same). Batches are defined over all ranks: a batch of R rows is dealt out in turn, and shares are
filled up with rows of weight zero, so that every rank takes part in every collective and any number of ranks does
the same arithmetic. Source: chunk test-time training of PR 461 and 549, with the batch made global.

Legend: R rows, T window.
"""

from __future__ import annotations

import numpy as np

from bitgolf.evaluate.tape import TokenReader
from bitgolf.run.ranks import World


def chunk_rows(
    revealed: TokenReader,
    start: int,  # first target of the chunk
    stop: int,  # one past the last
    window: int,  # T
) -> np.ndarray:
    """Rows of the chunk, (R, T + 1) int64: T inputs, and shifted by one their targets. R = (stop - start) // T."""
    count = (stop - start) // window
    tokens = revealed(start, start + count * window + 1) if count else np.zeros(1)
    starts = np.arange(count)[:, None] * window
    return tokens.astype(np.int64)[starts + np.arange(window + 1)]


def share(rows: np.ndarray, world: World) -> tuple[np.ndarray, np.ndarray]:
    """This rank's rows of a batch and their weights.

    Args:
        rows: (R, ...) the batch of all ranks, R >= 1.
    Returns:
        ceil(R / ranks) rows on every rank, and their weights (float32): ranks / R, or 0 where a row only fills up.
        The mean over ranks of each rank's weighted sum is the mean over the batch.
    """
    picked = np.arange(world.rank, world.rank + -(-len(rows) // world.size) * world.size, world.size)
    real = picked < len(rows)
    return rows[np.where(real, picked, 0)], np.where(real, world.size / len(rows), 0).astype(np.float32)
