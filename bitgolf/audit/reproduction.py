"""Checks of the artifact scored again: the losses are those on record, and the process that scored them was isolated.

A sample of contiguous blocks of targets, the first and the last always among them, is scored anew by a sealed process
and compared with nll.npy. An evaluation that adapts is run anew from the first target, through a few updates. On the
device that scored them, with the same kernels and batch shapes, the losses agree to float32 rounding. Elsewhere bf16
kernels round differently: single losses scatter and the mean must agree instead. Source: docs/rules.md, tests 5 and 7,
rule B7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, failed, judge, not_run, passed
from bitgolf.errors import RunError
from bitgolf.run.ranks import device_name

TOLERANCE_NATS = 1e-4
# Between devices: compiled and eager bf16 kernels of one H200 differed by 0.46 nats on the worst of 127,374
# targets of the baseline and by 0.00014 on average.
SCATTER_NATS = 1.0


@run_checks.register("reproduction", "re-run", "scoring the artifact again gives the losses on record")
def reproduction(evidence: Evidence) -> Finding:
    """Tests 5 and 7: the losses of a sealed process against nll.npy.

    Losses agree one by one where the arithmetic is the same: on the same device; for an adapted pass, on the same CPU,
    scored by one process. The gradients of GPU kernels, and sums over ranks, round differently, and updates carry that
    along.
    """
    nll, num_targets, headline = evidence.nll, len(evidence.tokens) - 1, evidence.headline
    if len(nll) != num_targets:
        raise RunError(f"nll.npy has {len(nll):,} losses for {num_targets:,} validation targets")
    blocks = evidence.again.losses()
    gap = np.concatenate([losses - nll[start : start + len(losses)].astype(np.float64) for start, losses in blocks])
    same_kernels = evidence.score.get("device") == device_name(headline.device)
    if headline.adapted:
        same_kernels &= headline.device.type == "cpu" and evidence.score.get("world_size") == 1
    return compare_losses(gap, same_kernels, blocks=len(blocks), whole=len(gap) == num_targets)


def compare_losses(
    gap: np.ndarray,  # (n,) float64, losses scored again minus those on record
    same_kernels: bool,  # every loss must agree; else the mean
    **evidence: Any,
) -> Finding:
    """Judge two scorings of the same targets."""
    largest, mean = float(np.abs(gap).max()), float(gap.mean())
    error = 4 * float(gap.std()) / len(gap) ** 0.5
    problems = []
    if same_kernels and not largest <= TOLERANCE_NATS:
        problems.append(f"a loss differs by {largest:.3g} nats from the one on record")
    elif not largest <= SCATTER_NATS:
        problems.append(f"a loss differs by {largest:.3g} nats from the one on record, more than kernels scatter")
    elif not abs(mean) <= TOLERANCE_NATS + error:
        problems.append(f"losses differ by {mean:.3g} nats on average from those on record")
    return judge(
        problems,
        f"{len(gap):,} losses again: largest difference {largest:.1e} nats, mean {mean:.1e}",
        targets=len(gap),
        largest_nats=str(largest),
        mean_nats=str(mean),
        same_kernels=same_kernels,
        tolerance_nats=TOLERANCE_NATS,
        **evidence,
    )


@run_checks.register(
    "sealed-evaluation", "B7", "scored again with nothing but the artifact: no file, no network, no later token"
)
def sealed_evaluation(evidence: Evidence) -> Finding:
    """B7: the isolation of the process that made the reproduction."""
    again = evidence.again
    if not again.num_targets:
        raise MissingEvidence("the sealed process scored nothing: see the reproduction")
    isolation = dict(again.process.isolation)
    if again.not_isolated:
        isolation["refused"] = [f"isolated, {again.not_isolated}"]
    sources = (evidence.config.data.source, evidence.config.data.val_source)
    return judge_isolation(
        isolation, again.process.attempts(), again.num_targets, text_in_libraries="stdlib" in sources
    )


def judge_isolation(
    isolation: Mapping[str, Any],  # of the sealed process (`sandbox.isolation.Isolation`)
    attempts: Sequence[str],  # what the evaluation tried to open once tokens had arrived
    num_targets: int,  # scored in it
    text_in_libraries: bool,  # the corpus is the interpreter's own library, which must be readable while it loads
) -> Finding:
    """PASS when every part of the isolation was there and held; FAIL when the evaluation tried to leave it."""
    evidence = {**isolation, "attempts": list(attempts), "targets": num_targets, "text_in_libraries": text_in_libraries}
    if attempts:
        return failed(f"with the tokens in hand, the evaluation tried to open {', '.join(attempts[:3])}", **evidence)
    gaps = []
    if not isolation["files"]:
        gaps.append("while it loaded, it could have read any file")
    if isolation["reachable"]:
        gaps.append(f"{isolation['reachable'][0]} was readable while it loaded")
    if not isolation["network"]:
        gaps.append("it could use the network")
    if not isolation["closed"]:
        gaps.append("nothing but Python's own functions kept it from opening files while it scored")
    if isolation["still_open"]:
        gaps.append(f"{isolation['still_open'][0]} stayed open while it scored")
    if gaps:
        why = f" ({'; '.join(isolation['refused'])})" if isolation["refused"] else ""
        return not_run(
            f"a fresh process without paths to the data scored it, but was not isolated: {'; '.join(gaps)}{why}",
            **evidence,
        )
    how = {"namespaces": "namespaces of its own", "landlock": "Landlock"}[isolation["files"]]
    note = "; the text is the interpreter's own library, readable until then" if text_in_libraries else ""
    return passed(
        f"{num_targets:,} targets scored in {how}, no network, every file closed before the first token{note}",
        **evidence,
    )
