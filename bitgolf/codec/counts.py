"""From logits to integer counts: the probability tables of the range coder.

Every token gets a count of at least 1, and the counts add up to 2^24, the precision of the coder. A logit goes through
IEEE operations with exactly defined results (a difference, a product with a power of two, a rounding) and then through
integer arithmetic on two small tables of exp(-x), which are computed with decimal arithmetic. So equal logits give
equal counts on any processor. The cost is V / 2^24 of the probability for the smallest count of 1, and a rounding of
logits to 2^-14 nats.

Legend: S streams, V vocabulary.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache

import numpy as np

from bitgolf.errors import ArtifactError

COUNT_BITS = 24
TOTAL = 1 << COUNT_BITS

_STEP_BITS = 14  # logits are rounded to multiples of 2^-14 nats
_LOW_BITS = 9  # low bits of a distance index the fine table, the others the coarse table
_RANGE_BITS = 19  # distances to the largest logit are at most 2^19 steps = 32 nats, where exp is below 2^-46
_SCALE_BITS = 31  # table entries are exp(-x) * 2^31
_SHARE_BITS = 38  # fractional bits of TOTAL / sum; 2^24 << 38 and all products with it fit in int64


def token_counts(logits: np.ndarray) -> np.ndarray:
    """Counts of each row's softmax.

    Args:
        logits: (S, V) float32, V at most 65,536.
    Returns:
        (S, V) int64, each at least 1, every row adding up to 2^24.
    Raises:
        ArtifactError: a logit is NaN, or the largest of a row is infinite; the model is damaged.
    """
    top = logits.max(axis=1, keepdims=True)  # (S, 1)
    if not np.isfinite(top).all():
        raise ArtifactError("the model predicts logits that are not finite; its artifact or its adaptation is broken")
    coarse, fine = _exponentials()
    steps = np.rint((top - logits) * np.float32(1 << _STEP_BITS))
    distance = np.minimum(steps, np.float32((1 << _RANGE_BITS) - 1)).astype(np.int64)  # (S, V)
    weights = (coarse[distance >> _LOW_BITS] * fine[distance & ((1 << _LOW_BITS) - 1)]) >> _SCALE_BITS
    spare = TOTAL - logits.shape[1]  # after every token has its 1
    share = (spare << _SHARE_BITS) // weights.sum(axis=1, keepdims=True)  # (S, 1)
    counts = 1 + ((weights * share) >> _SHARE_BITS)
    rows = np.arange(len(counts))
    counts[rows, logits.argmax(axis=1)] += TOTAL - counts.sum(axis=1)  # the remainder of rounding down
    return counts


@cache
def _exponentials() -> tuple[np.ndarray, np.ndarray]:
    """exp(-i / 2^5) for i < 2^10 and exp(-j / 2^14) for j < 2^9, times 2^31, rounded; int64."""
    context = Context(prec=40)

    def table(length: int, step_bits: int) -> np.ndarray:
        scale = Decimal(1 << _SCALE_BITS)
        values = (context.multiply(scale, context.exp(Decimal(-i) / (1 << step_bits))) for i in range(length))
        return np.array([int(value.to_integral_value()) for value in values], dtype=np.int64)

    return table(1 << (_RANGE_BITS - _LOW_BITS), _STEP_BITS - _LOW_BITS), table(1 << _LOW_BITS, _STEP_BITS)
