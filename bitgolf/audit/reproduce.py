"""Reproduction: the artifact, scored again in other batches, gives the losses on record.

A sample of contiguous blocks of targets, the first and the last always among them, is scored anew and
compared with nll.npy. An evaluation that adapts is run anew from the first target, through a few updates. On the
device that scored them, with the same kernels and batch shapes,
the losses agree to float32 rounding. Elsewhere bf16 kernels round differently: single losses scatter and the
mean must agree instead. Source: tests 5 and 7 of the challenge's audit rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bitgolf.audit.verdict import Check, Rule
from bitgolf.errors import RunError
from bitgolf.evaluate.tape import Scorer, ScoreTape
from bitgolf.run.progress import Progress, silent

REPRODUCED = Rule("reproduction", "re-run", "scoring the artifact again gives the losses on record")

TOLERANCE_NATS = 1e-4
# Between devices: compiled and eager bf16 kernels of one H200 differed by 0.46 nats on the worst of 127,374
# targets of the baseline and by 0.00014 on average.
SCATTER_NATS = 1.0


def sample_blocks(num_targets: int, block: int, num_blocks: int, seed: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of up to `block` targets: the first, the last and random ones between, sorted."""
    total = -(-num_targets // block)
    chosen = {0, total - 1}
    inner = np.arange(1, max(1, total - 1))
    count = min(max(0, num_blocks - len(chosen)), len(inner))
    chosen |= set(np.random.default_rng(seed).choice(inner, count, replace=False).tolist())
    return [(k * block, min((k + 1) * block, num_targets)) for k in sorted(chosen)]


def reproduction(
    scorer: Scorer,  # without adaptation: any range can be scored alone
    tokens: np.ndarray,  # (N,) integers, the validation data
    nll: np.ndarray,  # (N-1,) float32, the losses on record
    blocks: list[tuple[int, int]],
    same_kernels: bool,  # device, kernels and batch shapes of the score: every loss must agree; else the mean
    progress: Progress = silent,
) -> Check:
    """Score `blocks` anew and compare."""
    if len(nll) != len(tokens) - 1:
        raise RunError(f"nll.npy has {len(nll):,} losses for {len(tokens) - 1:,} validation targets")
    gaps = []
    for done, (start, stop) in enumerate(blocks):
        progress("reproduction", done, len(blocks))
        again = scorer.score(lambda a, b: tokens[a:b], start, stop)
        gaps.append(again.astype(np.float64) - nll[start:stop])
    progress("reproduction", len(blocks), len(blocks))
    return compared(REPRODUCED, np.concatenate(gaps), same_kernels, blocks=len(blocks), whole=_whole(blocks, len(nll)))


def reproduction_of_prefix(
    run: Callable[[ScoreTape], np.ndarray],  # the evaluation from scratch: scores a fresh tape, returns its losses
    tokens: np.ndarray,  # (n + 1,) integers, the beginning of the validation data
    nll: np.ndarray,  # (N-1,) float32, the losses on record
    same_kernels: bool,  # as in `reproduction`
) -> Check:
    """Score the beginning of the text anew, with its adaptation, and compare."""
    again = run(ScoreTape(tokens))
    if len(nll) < len(again):
        raise RunError(f"nll.npy has {len(nll):,} losses, fewer than the {len(again):,} targets scored again")
    gap = again.astype(np.float64) - nll[: len(again)]
    return compared(REPRODUCED, gap, same_kernels, blocks=1, whole=len(again) == len(nll))


def _whole(blocks: list[tuple[int, int]], num_targets: int) -> bool:
    return sum(stop - start for start, stop in blocks) == num_targets


def compared(
    rule: Rule,
    gap: np.ndarray,  # (n,) float64, losses scored again minus those on record
    same_kernels: bool,  # every loss must agree; else the mean
    **evidence: Any,
) -> Check:
    """Judge two scorings of the same targets by the same rule as a reproduction."""
    largest, mean = float(np.abs(gap).max()), float(gap.mean())
    error = 4 * float(gap.std()) / len(gap) ** 0.5
    problems = []
    if same_kernels and not largest <= TOLERANCE_NATS:
        problems.append(f"a loss differs by {largest:.3g} nats from the one on record")
    elif not largest <= SCATTER_NATS:
        problems.append(f"a loss differs by {largest:.3g} nats from the one on record, more than kernels scatter")
    elif not abs(mean) <= TOLERANCE_NATS + error:
        problems.append(f"losses differ by {mean:.3g} nats on average from those on record")
    return rule.judge(
        problems,
        f"{len(gap):,} losses again: largest difference {largest:.1e} nats, mean {mean:.1e}",
        targets=len(gap),
        largest_nats=str(largest),
        mean_nats=str(mean),
        same_kernels=same_kernels,
        tolerance_nats=TOLERANCE_NATS,
        **evidence,
    )
