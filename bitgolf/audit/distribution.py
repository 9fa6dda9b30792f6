"""Checks of the predictive distribution: complete, normalized, and the one that the losses come from.

A score that is computed for the realized token only (hashed n-gram caches, probability tilts) can add up to far
more than one over the vocabulary; here p_t is materialized over all V tokens and summed in float64. The committed
loss must be -log p_t of the target under that same distribution. Source: condition C2 of the challenge.
"""

from __future__ import annotations

import numpy as np

from bitgolf.audit.flips import Trace
from bitgolf.audit.verdict import Check, Rule

NORMALIZED = Rule("normalization", "C2", "probabilities over the whole vocabulary sum to one")
LOSSES_MATCH = Rule("losses-match", "C2", "each loss is -log p of its target under the distribution shown")

SUM_TOLERANCE = 1e-5
# float32 rounding of log-sum-exp for logits up to about a hundred.
LOSS_TOLERANCE_NATS = 5e-5


def normalization(
    log_p: np.ndarray,  # (n, V) float32, log-probabilities at n positions
    vocab_size: int,
) -> Check:
    """C2: |sum p - 1| < 1e-5 at every given position, over exactly the official vocabulary."""
    problems = []
    if log_p.shape[1] != vocab_size:
        problems.append(f"distributions have {log_p.shape[1]} entries, the vocabulary {vocab_size}")
    with np.errstate(over="ignore"):
        sums = np.exp(log_p.astype(np.float64)).sum(axis=1)
    errors = np.abs(sums - 1)
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    if not errors[worst] < SUM_TOLERANCE:
        problems.append(f"probabilities at position {worst} sum to {sums[worst]:.6g}")
    return NORMALIZED.judge(
        problems,
        f"{len(log_p):,} distributions over {vocab_size} tokens sum to 1 within {errors[worst]:.1e}",
        positions=len(log_p),
        vocab_size=log_p.shape[1],
        worst_sum=str(sums[worst]),
        tolerance=SUM_TOLERANCE,
    )


def losses_match(
    shown: Trace,  # with the scorer's own losses
    tokens: np.ndarray,  # (N,) integers
) -> Check:
    """C2: the losses that the scorer commits are those of the distributions that it shows."""
    expected = -shown.log_p[np.arange(len(tokens) - 1), tokens[1:].astype(np.int64)]
    gap = np.abs(shown.nll.astype(np.float64) - expected)
    worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    problems = (
        []
        if gap[worst] <= LOSS_TOLERANCE_NATS
        else [
            f"target {worst} was given a loss of {shown.nll[worst]:.6f} nats, "
            f"its distribution says {expected[worst]:.6f}"
        ]
    )
    return LOSSES_MATCH.judge(
        problems,
        f"{len(gap):,} losses within {gap[worst]:.1e} nats of their distributions",
        targets=len(gap),
        largest_gap_nats=str(gap[worst]),
        tolerance=LOSS_TOLERANCE_NATS,
    )
