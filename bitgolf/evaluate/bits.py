"""Bits per byte: the score of a run, from one loss and one byte count per target.

The denominator counts the bytes of the original documents, so scores of different tokenizers are comparable. For one
tokenizer and one text the ratio of bits per byte to nats per token is a constant, tokens / (bytes ln 2). The audit
recomputes it from all reported numbers (check *identity*, docs/rules.md#identity).

Legend: N tokens, N-1 targets.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from bitgolf.errors import require_type


@dataclass(frozen=True)
class BitsPerByte:
    """A score: `bpb` bits per byte of original text, `loss_nats` mean nats per target."""

    bpb: float
    loss_nats: float
    tokens: int
    bytes: int
    bpb_per_nat: float

    def to_json(self) -> dict[str, float | int]:
        return asdict(self)


def bpb_per_nat(tokens: int, num_bytes: int) -> float:
    """Bits per byte for a loss of one nat per token. Raises ValueError unless both counts are positive."""
    if tokens <= 0 or num_bytes <= 0:
        raise ValueError(
            f"bits per byte need at least one token and one byte, got {tokens} tokens and {num_bytes} bytes"
        )
    return tokens / (num_bytes * math.log(2))


def bits_per_byte(nll_nats: np.ndarray, byte_costs: np.ndarray) -> BitsPerByte:
    """The score of a text.

    Args:
        nll_nats: (N-1,) floats, loss of each target; summed pairwise in float64.
        byte_costs: (N-1,) integers, bytes of the original text per target (0 for BOS).
    Raises:
        ValueError: lengths differ, no targets, no bytes, negative byte counts, or losses that are not finite.
    """
    require_type("nll_nats", nll_nats, np.ndarray, "a numpy array")
    require_type("byte_costs", byte_costs, np.ndarray, "a numpy array")
    if nll_nats.ndim != 1 or nll_nats.shape != byte_costs.shape:
        raise ValueError(
            f"one byte count per target is needed: got {nll_nats.shape} losses and {byte_costs.shape} byte counts"
        )
    if byte_costs.dtype.kind not in "iu":
        raise ValueError(f"byte counts are integers, got {byte_costs.dtype}")
    if len(byte_costs) and byte_costs.min() < 0:
        worst = int(byte_costs.argmin())
        raise ValueError(f"byte count {int(byte_costs[worst])} of target {worst} is negative")
    tokens, num_bytes = len(nll_nats), int(byte_costs.sum(dtype=np.int64))
    constant = bpb_per_nat(tokens, num_bytes)
    total = float(np.sum(nll_nats, dtype=np.float64))
    if not math.isfinite(total):
        raise ValueError(f"the losses add up to {total}; every target needs a finite loss")
    loss = total / tokens
    return BitsPerByte(bpb=loss * constant, loss_nats=loss, tokens=tokens, bytes=num_bytes, bpb_per_nat=constant)
