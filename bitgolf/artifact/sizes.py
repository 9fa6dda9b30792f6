"""The bytes of an artifact, by stream and by tensor.

A compressed stream holds many tensors, and none of its bytes belongs to one tensor alone. So they are shared out: in a
stream of codes in proportion to order-0 entropy, which is what an ideal coder of independent codes would spend on each
tensor; in every other stream in proportion to raw bytes. Shares are rounded to whole bytes so that they add up exactly.
`pack` and the report show them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_COUNTED_AT_ONCE = 1 << 18  # codes; counting needs 12 bytes for each


@dataclass(frozen=True)
class ArtifactSizes:
    """Bytes of an artifact.

    `total` is `header` plus the sum of `streams`. `tensors` sums to all streams except "tokenizer".
    """

    total: int  # the whole file
    header: int  # magic, version, checksum and the compressed header
    streams: dict[str, int]  # compressed bytes by stream name, in file order
    tensors: dict[str, int]  # compressed bytes by tensor name, scales included; shared out as said above
    groups: dict[str, int]  # the same summed by group


def entropy_bits(
    codes: np.ndarray,  # any shape, int8 or int16
) -> float:
    """Order-0 entropy of `codes`, in bits for all of them together."""
    flat = codes.reshape(-1)
    low, high = int(flat.min()), int(flat.max())
    counts = np.zeros(high - low + 1)
    for start in range(0, flat.size, _COUNTED_AT_ONCE):
        counts += np.bincount(flat[start : start + _COUNTED_AT_ONCE].astype(np.int32) - low, minlength=len(counts))
    present = counts[counts > 0]
    return float((present * (np.log2(flat.size) - np.log2(present))).sum())


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split into whole numbers in proportion to `weights`, which are >= 0; equally if all are zero.

    The parts sum to `total` exactly, and each is within 1 of its exact share (method of largest remainders).
    """
    scale = sum(weights)
    exact = [total * (w / scale) if scale > 0 else total / len(weights) for w in weights]
    parts = [int(x) for x in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
