"""Checks of the predictive distribution (C2): complete, normalized, and the one that the losses come from.

A score that is computed for the realized token only (hashed n-gram caches, probability tilts) can add up to far
more than one over the vocabulary. Here p_t is materialized over all V tokens and summed in float64. The committed
loss must be -log p_t of the target under that same distribution. Source: docs/rules.md, condition C2.
"""

import numpy as np

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.traces import Trace
from bitgolf.audit.verdict import Finding, judge

# Bound of docs/rules.md, test 2. Sums of float32 probabilities over 8,192 tokens are off by about 1e-6.
SUM_TOLERANCE = 1e-5
# float32 rounding of log-sum-exp for logits up to about a hundred.
LOSS_TOLERANCE_NATS = 5e-5


@run_checks.register("normalization", "C2", "probabilities over the whole vocabulary sum to one")
def normalization(evidence: Evidence) -> Finding:
    return normalized(evidence.headline.shown.log_p, evidence.config.model.vocab_size)


@run_checks.register("losses-match", "C2", "each loss is -log p of its target under the distribution shown")
def losses_match(evidence: Evidence) -> Finding:
    return losses_of(evidence.headline.shown, evidence.headline.passage.tokens)


def normalized(
    log_p: np.ndarray,  # (n, V) float32, log-probabilities at n positions
    vocab_size: int,
) -> Finding:
    """Whether |sum p - 1| < 1e-5 at every position, over exactly the official vocabulary."""
    problems = []
    if log_p.shape[1] != vocab_size:
        problems.append(f"distributions have {log_p.shape[1]} entries, the vocabulary {vocab_size}")
    with np.errstate(over="ignore"):
        sums = np.exp(log_p.astype(np.float64)).sum(axis=1)
    errors = np.abs(sums - 1)
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    if not errors[worst] < SUM_TOLERANCE:
        problems.append(f"probabilities at position {worst} sum to {sums[worst]:.6g}")
    return judge(
        problems,
        f"{len(log_p):,} distributions over {vocab_size} tokens sum to 1 within {errors[worst]:.1e}",
        positions=len(log_p),
        vocab_size=log_p.shape[1],
        worst_sum=str(sums[worst]),
        tolerance=SUM_TOLERANCE,
    )


def losses_of(
    shown: Trace,  # with the scorer's own losses
    tokens: np.ndarray,  # (N,) integers
) -> Finding:
    """Whether the losses that the scorer commits are those of the distributions that it shows."""
    expected = -shown.log_p[np.arange(len(tokens) - 1), tokens[1:].astype(np.int64)]
    gap = np.abs(shown.nll.astype(np.float64) - expected)
    worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    problems = []
    if not gap[worst] <= LOSS_TOLERANCE_NATS:
        problems.append(
            f"target {worst} was given a loss of {shown.nll[worst]:.6f} nats, "
            f"its distribution says {expected[worst]:.6f}"
        )
    reason = f"{len(gap):,} losses within {gap[worst]:.1e} nats of their distributions"
    return judge(problems, reason, targets=len(gap), largest_gap_nats=str(gap[worst]), tolerance=LOSS_TOLERANCE_NATS)
