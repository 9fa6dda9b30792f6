"""From logits to integer counts: the probability tables of the range coder.

Every token gets a count of at least 1, and the counts add up to 2^24, the precision of the coder. A logit goes through
IEEE operations with exactly defined results (a difference, a product with a power of two, a rounding) and then through
integer arithmetic on two small tables of exp(-x), which are computed with decimal arithmetic. So equal logits give
equal counts on any processor. The cost is V / 2^24 of the probability for the smallest count of 1, and a rounding of
logits to 2^-14 nats.

The counts are computed where the logits are: in NumPy on a CPU, and in PyTorch on a GPU, because tables of a large
vocabulary for hundreds of streams should stay there.

Legend: S streams, V vocabulary.
"""

from decimal import Context, Decimal
from functools import cache

import numpy as np
import torch
from torch import Tensor

COUNT_BITS = 24
TOTAL = 1 << COUNT_BITS

_STEP_BITS = 14  # logits are rounded to multiples of 2^-14 nats
_LOW_BITS = 9  # low bits of a distance index the fine table, the others the coarse table
_RANGE_BITS = 19  # distances to the largest logit are at most 2^19 steps = 32 nats, where exp is below 2^-46
_LONGEST = (1 << _RANGE_BITS) - 1
_SCALE_BITS = 31  # table entries are exp(-x) * 2^31
_SHARE_BITS = 38  # fractional bits of TOTAL / sum; 2^24 << 38 and all products with it fit in int64


def token_counts(logits: np.ndarray) -> np.ndarray:
    """Counts of each row's softmax, (S, V) int64, of logits (S, V) float32 with V at most 65,536.

    Each count is at least 1, and every row adds up to 2^24. A row with NaN, or whose largest logit is infinite, is all
    0.
    """
    coarse, fine = _exponentials()
    top = logits.max(axis=1, keepdims=True)  # (S, 1)
    finite = np.isfinite(top)
    if not finite.all():
        logits, top = np.where(finite, logits, 0), np.where(finite, top, 0)
    steps = np.rint((top - logits) * np.float32(1 << _STEP_BITS))
    distance = np.minimum(steps, np.float32(_LONGEST)).astype(np.int64)  # (S, V)
    weights = (coarse[distance >> _LOW_BITS] * fine[distance & ((1 << _LOW_BITS) - 1)]) >> _SCALE_BITS
    spare = TOTAL - logits.shape[1]  # after every token has its 1
    share = (spare << _SHARE_BITS) // weights.sum(axis=1, keepdims=True)  # (S, 1)
    counts = 1 + ((weights * share) >> _SHARE_BITS)
    rows = np.arange(len(counts))
    counts[rows, logits.argmax(axis=1)] += TOTAL - counts.sum(axis=1)  # the remainder of rounding down
    return counts * finite


class HostSums:
    """Sums of the counts, in NumPy: intervals of tokens, and tokens at places. Logits (S, V) float32."""

    def __init__(self, logits: np.ndarray) -> None:
        self.counts = token_counts(logits)
        self.rows = np.arange(len(logits))

    def intervals(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum of the counts before each token (S,), and its count: (S,) int64 each."""
        own = self.counts[self.rows, tokens]
        return self.counts.cumsum(1)[self.rows, tokens] - own, own

    def tokens_at(self, places: np.ndarray) -> np.ndarray:
        """The token whose interval contains each place (S,) below 2^24: (S,) int64."""
        return (self.counts.cumsum(1)[:, :-1] <= places[:, None]).sum(1)


class DeviceSums:
    """The same in PyTorch, on the device of the logits (S, V) float32.

    A GPU spends its time on the tensors of S x V numbers, so there are few. The remainder, which belongs to the best
    token, is added to the results instead.
    """

    def __init__(self, logits: Tensor) -> None:
        top, best = logits.max(dim=1, keepdim=True)  # (S, 1); of equal logits the first
        steps = (top - logits).mul_(1 << _STEP_BITS).round_().clamp_(max=_LONGEST).nan_to_num_()
        weights = _exponentials_on(logits.device)[steps.long()]  # (S, V)
        share = ((TOTAL - logits.size(1)) << _SHARE_BITS) // weights.sum(dim=1, keepdim=True)  # (S, 1)
        self.sums = weights.mul_(share).bitwise_right_shift_(_SHARE_BITS).add_(1).cumsum(1)
        self.best, self.rest, self.finite = best, TOTAL - self.sums[:, -1:], top.isfinite()  # (S, 1) each

    def intervals(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `HostSums`; tokens (S,) on the device."""
        tokens = tokens[:, None]
        before = self.sums.gather(1, (tokens - 1).clamp_(min=0)) * (tokens > 0)
        own = self.sums.gather(1, tokens) - before + self.rest * (tokens == self.best)
        before += self.rest * (tokens > self.best)
        return (before * self.finite)[:, 0], (own * self.finite)[:, 0]

    def tokens_at(self, places: Tensor) -> Tensor:
        """See `HostSums`; places (S,) on the device."""
        places = places[:, None]
        end = self.sums.gather(1, self.best)  # of the best token's interval without the remainder
        without = torch.where(places < end, places, torch.maximum(end - 1, places - self.rest))
        return torch.searchsorted(self.sums, without, right=True)[:, 0]


@cache
def _exponentials() -> tuple[np.ndarray, np.ndarray]:
    """exp(-i / 2^5) for i < 2^10 and exp(-j / 2^14) for j < 2^9, times 2^31, rounded; int64."""
    context = Context(prec=40)

    def table(length: int, step_bits: int) -> np.ndarray:
        scale = Decimal(1 << _SCALE_BITS)
        values = (context.multiply(scale, context.exp(Decimal(-i) / (1 << step_bits))) for i in range(length))
        return np.array([int(value.to_integral_value()) for value in values], dtype=np.int64)

    return table(1 << (_RANGE_BITS - _LOW_BITS), _STEP_BITS - _LOW_BITS), table(1 << _LOW_BITS, _STEP_BITS)


@cache
def _exponentials_on(device: torch.device) -> Tensor:
    """The product of both tables for every distance, (2^19,) int64: on a GPU one look-up instead of six operations."""
    coarse, fine = _exponentials()
    return torch.from_numpy((coarse[:, None] * fine).ravel() >> _SCALE_BITS).to(device)
