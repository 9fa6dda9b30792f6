"""Where the bytes of an artifact go: by stream, and shared out to the tensors inside each stream.

A compressed stream holds many tensors; no byte of it belongs to one alone. The rule here: inside a stream of
codes a tensor's share is its order-0 entropy (what an ideal coder of independent codes would spend on it);
inside every other stream it is its share of the raw bytes. Shares are rounded to whole bytes by largest
remainder, so they add up exactly. Used by the pack stage's table and the report's chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRORATING_RULE = (
    "compressed bytes of a stream are shared among its tensors by order-0 entropy for codes, by raw bytes for the rest"
)


@dataclass(frozen=True)
class ArtifactSizes:
    """Bytes of an artifact: `total` = `header` + the sum of `streams`; `tensors` sums to all streams but
    "tokenizer".

    Attributes:
        total: the whole file.
        header: magic, version, checksum and the compressed header.
        streams: compressed bytes by stream name, in file order.
        streams_raw: bytes of the same streams before compression.
        tensors: compressed bytes by tensor name (see PRORATING_RULE), scales included.
        groups: the same summed by group.
    """

    total: int
    header: int
    streams: dict[str, int]
    streams_raw: dict[str, int]
    tensors: dict[str, int]
    groups: dict[str, int]


def entropy_bits(
    codes: np.ndarray,  # any shape, int8 or int16
) -> float:
    """Order-0 entropy of `codes`, in bits for all of them together."""
    flat = codes.reshape(-1).astype(np.int32, copy=False)
    counts = np.bincount(flat - flat.min()).astype(np.float64)
    present = counts[counts > 0]
    return float((present * (np.log2(flat.size) - np.log2(present))).sum())


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split in whole numbers in proportion to `weights` (all >= 0; all zero means equally).

    The parts sum to `total` exactly and each is within 1 of its exact share (largest remainder).
    """
    if not weights:
        raise ValueError("nothing to share out to")
    scale = sum(weights)
    exact = [total * (w / scale) if scale > 0 else total / len(weights) for w in weights]
    parts = [int(x) for x in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
