"""Checks of the artifact scored again: the losses are those on record, and the process that scored them was isolated.

A sample of contiguous blocks of targets, the first and the last always among them, is scored anew by a sealed process
and compared with nll.npy. The sample is drawn when the audit is made. Of an evaluation whose documents adapt
independently, a sample of documents is scored. Any other evaluation that adapts has to be run from the first target:
to the end where the text is short or `--all` is given, else through a few updates, and then the check is NOT RUN.

On the device that scored them, with the same kernels and batch shapes, the losses agree to float32 rounding. Elsewhere
bf16 kernels round differently: single losses scatter and the mean must agree instead. The tolerances are constants, so
no record of the run can widen them. Source: docs/rules.md, tests 5 and 7, rule B7.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitgolf.audit.evidence import Evidence, number, run_checks
from bitgolf.audit.figures import IDENTITY_TOLERANCE
from bitgolf.audit.sandbox.client import SealedTimeout
from bitgolf.audit.verdict import Finding, MissingEvidence, failed, judge, not_run, passed
from bitgolf.data.sources import all_sources
from bitgolf.errors import RunError
from bitgolf.evaluate.bits import bpb_per_nat
from bitgolf.run.ranks import device_name

TOLERANCE_NATS = 1e-4
# Between devices: compiled and eager bf16 kernels of one H200 differed by 0.46 nats on the worst of 127,374
# targets of the baseline and by 0.00014 on average.
SCATTER_NATS = 1.0  # of a single loss
SCATTER_STD_NATS = 0.005  # standard deviation of single losses; the mean of n losses may be off by four of its errors


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
    try:
        blocks = evidence.again.losses()
    except SealedTimeout as timeout:
        raise MissingEvidence(f"{timeout}; allow more with --sealed-seconds or --sealed-gib") from timeout
    gap = np.concatenate([losses - nll[start : start + len(losses)].astype(np.float64) for start, losses in blocks])
    same_kernels = evidence.score.get("device") == device_name(headline.device)
    if headline.adapted:
        same_kernels &= headline.device.type == "cpu" and evidence.score.get("world_size") == 1
    finding = compare_losses(
        gap, same_kernels, blocks=len(blocks), whole=len(gap) == num_targets, entropy=str(evidence.entropy)
    )
    if finding.verdict == "PASS" and not evidence.again.reaches_end:
        return not_run(
            f"the first {len(gap):,} of {num_targets:,} losses agree, but later ones depend on all before them and were"
            " not scored again; use `bitgolf audit --all`",
            **finding.evidence,
        )
    return finding


def compare_losses(
    gap: np.ndarray,  # (n,) float64, losses scored again minus those on record
    same_kernels: bool,  # every loss must agree; else the mean
    **evidence: Any,
) -> Finding:
    """Judge two scorings of the same targets."""
    largest, mean = float(np.abs(gap).max()), float(gap.mean())
    mean_tolerance = TOLERANCE_NATS + 4 * SCATTER_STD_NATS / len(gap) ** 0.5
    problems = []
    if same_kernels and not largest <= TOLERANCE_NATS:
        problems.append(f"a loss differs by {largest:.3g} nats from the one on record")
    elif not largest <= SCATTER_NATS:
        problems.append(f"a loss differs by {largest:.3g} nats from the one on record, more than kernels scatter")
    elif not abs(mean) <= mean_tolerance:
        problems.append(f"losses differ by {mean:.3g} nats on average from those on record")
    return judge(
        problems,
        f"{len(gap):,} losses again: largest difference {largest:.1e} nats, mean {mean:.1e}",
        targets=len(gap),
        largest_nats=str(largest),
        mean_nats=str(mean),
        same_kernels=same_kernels,
        tolerance_nats=TOLERANCE_NATS if same_kernels else SCATTER_NATS,
        mean_tolerance_nats=mean_tolerance,
        **evidence,
    )


@run_checks.register(
    "other-passes",
    "re-run",
    "the figures of the passes beside the headline follow from the artifact",
    applies=lambda evidence: evidence.config.ttt.enabled or len(evidence.config.score.methods) > 1,
)
def other_passes(evidence: Evidence) -> Finding:
    """Tests 5 to 7 for every pass without adaptation that is not the headline, on a sample of its targets."""
    score, num_targets = evidence.score, len(evidence.tokens) - 1
    names = [name for name in score["methods"] if name != score["headline"]]
    constant = bpb_per_nat(num_targets, evidence.byte_total)
    same_kernels = score.get("device") == device_name(evidence.headline.device) and evidence.device.type == "cpu"
    problems, gaps = [], [np.zeros(0)]
    for name in names:
        losses = evidence.losses(score.get("losses", {}).get(name, {}).get("file", f"nll-{name}.npy"))
        if len(losses) != num_targets:
            raise RunError(f"the losses of {name} are {len(losses):,}, there are {num_targets:,} targets")
        bpb, claimed = float(losses.mean(dtype=np.float64)) * constant, number(score["methods"][name], "bpb", name)
        if not abs(bpb - claimed) <= IDENTITY_TOLERANCE * bpb:
            problems.append(f"{name} bpb is {claimed:.8f} in score.json, {bpb:.8f} from its losses")
        blocks = evidence.headline.plain_losses(name, evidence.rng(name))
        gaps += [again - losses[start : start + len(again)].astype(np.float64) for start, again in blocks]
    finding = compare_losses(np.concatenate(gaps), same_kernels, passes=names)
    problems += [finding.reason] if finding.verdict == "FAIL" else []
    return judge(problems, f"{', '.join(names)}: {finding.reason}", **finding.evidence)


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
    sources = all_sources(evidence.config.data)
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
    reachable, writable, still_open = (isolation[key][:1] for key in ("reachable", "writable", "still_open"))
    as_root = isolation["user"] == 0 and isolation["files"] != "landlock"  # which binds root as well
    possible = (
        (not isolation["files"], "while it loaded, it could have read any file"),
        (reachable, f"{''.join(reachable)} was readable while it loaded"),
        (writable, f"{''.join(writable)} was writable while it loaded"),
        (as_root, "it ran as root"),
        (not isolation["network"], "it could use the network"),
        (not isolation["closed"], "nothing but Python's own functions kept it from opening files while it scored"),
        (still_open, f"{''.join(still_open)} stayed open while it scored"),
    )
    gaps = [what for there, what in possible if there]
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
