"""Checks of a submission's logs against each other: one bpb / loss, one configuration, no copies.

Source: docs/rules.md, test 6 and section 6 (PR 2101: three logs of one run; PR 2124: mixed configurations).
"""

import math
import re
import statistics
from collections.abc import Iterator
from itertools import combinations

from bitgolf.audit.verdict import Finding, MissingEvidence, judge, not_run
from bitgolf.referee.decimals import is_number
from bitgolf.referee.folder import Submission, submission_checks
from bitgolf.referee.log import Log, Metric

# bpb / loss by tokenizer on the full split, from the published logs, and how far it may be off: the split of the first
# baseline gives 0.59071 for sp1024.
CONSTANTS = {"sp1024": (0.592258, 4e-3), "sp8192": (0.387131, 1e-3), "caseops": (0.456961, 1e-3)}
_PLAUSIBLE_BYTES = 1.0, 6.0  # per token of English web text: one byte at least, GPT-2's 50,257 pieces give 4.5
_SAME_CONSTANT = 5e-6  # between seeds, beside rounding
_LIKE_CONSTANT = 2e-4  # within a log: other windows cut off other tails
_COPIED_LOSSES, _COPIED_SHARE = 3, 0.3
_MEASURED = re.compile(r"(loss|bpb|\bbl|\brl)[:=]\s*\d+\.\d")
_OWN_TO_A_RUN = ("seed", "run_id", "logfile", "rank", "local_rank", "is_main_process", "artifact_dir", "step", "tokens")


@submission_checks.register("identity", "identity", "bpb / loss is one constant, that of the tokenizer")
def identity(submission: Submission) -> Finding:
    """Test 6: one constant in every log, between the logs, in submission.json, and the tokenizer's own."""
    finals = {log.name: log.final for log in submission.logs if log.final is not None}
    if not finals:
        raise MissingEvidence("no log gives a loss and its bits per byte")
    constants = {name: final.constant for name, final in finals.items()}
    middle, name = statistics.median(constants.values()), submission.tokenizer
    bytes_per_token = 1 / (middle * math.log(2))
    problems = [problem for log in submission.logs for problem in _odd_lines(log)]
    for (a, one), (b, two) in combinations(finals.items(), 2):
        if abs(one.constant - two.constant) > one.constant * _SAME_CONSTANT + _rounding(one) + _rounding(two):
            problems.append(f"bpb / loss is {one.constant:.6f} in {a}, {two.constant:.6f} in {b}")
    data = submission.metadata
    if is_number(data.get("val_bpb")) and is_number(data.get("val_loss")) and data["val_loss"] > 0:
        stated = data["val_bpb"] / data["val_loss"]
        if abs(stated - middle) > middle * _LIKE_CONSTANT:
            problems.append(f"val_bpb / val_loss of submission.json is {stated:.6f}, of the logs {middle:.6f}")
    published, tolerance = CONSTANTS.get(name, (0.0, 0.0))
    if published and abs(middle / published - 1) > tolerance:
        problems.append(
            f"bpb / loss is {middle:.6f}; the tokenizer {name} has {published:.6f} on the full split: the bytes are "
            f"{published / middle - 1:+.2%} off"
        )
    if not _PLAUSIBLE_BYTES[0] < bytes_per_token < _PLAUSIBLE_BYTES[1]:
        problems.append(
            f"bpb / loss is {middle:.6f}, that is {bytes_per_token:.2f} bytes per token: no tokenizer of at most 65,536"
            " pieces has so many"
        )
    reason = f"bpb / loss is {middle:.6f} in {len(constants)} logs"
    if not problems and not published:
        why = "the tokenizer is none of the challenge's, so the bytes cannot be checked without the text"
        reason += f", {bytes_per_token:.3f} bytes per token; {why}"
        return not_run(reason, constants=constants, bytes_per_token=bytes_per_token)
    return judge(problems[:8], f"{reason}, that of {name}", constants=constants, published=published or None)


def _odd_lines(log: Log) -> Iterator[str]:
    """Lines of a log whose bpb / loss is not that of its final figures, or of the tokens and bytes that they give."""
    for metric in log.metrics:
        assert log.final is not None  # one of the metrics
        where = f"{log.name} line {metric.line}: bpb / loss is {metric.constant:.6f}"
        allowed = log.final.constant * _LIKE_CONSTANT + _rounding(metric) + _rounding(log.final)
        if abs(metric.constant - log.final.constant) > allowed:
            yield f"{where}, elsewhere {log.final.constant:.6f}"
            return
        if metric.counts is not None and all(metric.counts):
            tokens, num_bytes = metric.counts
            exact = tokens / (num_bytes * math.log(2))
            if abs(metric.constant - exact) > _rounding(metric):
                yield f"{where}, its {tokens:,} tokens and {num_bytes:,} bytes give {exact:.6f}"


def _rounding(metric: Metric) -> float:
    """How far bpb / loss may be off because both were rounded to `decimals` places."""
    unit = 0.5 * 10.0**-metric.decimals
    return metric.constant * (unit / metric.bpb + unit / metric.loss) * 1.01


@submission_checks.register("logs-distinct", "section 6", "each log is of a run of its own")
def logs_distinct(submission: Submission) -> Finding:
    """Section 6: no log is another one with the seed changed."""
    logs = submission.logs
    if len(logs) < 2:
        raise MissingEvidence("one log: nothing to compare it with")
    problems, shares = [], {}
    for one, two in combinations(logs, 2):
        if one.seed == two.seed:
            continue
        pair = f"{one.name} and {two.name}"
        run_ids = one.settings.get("run_id"), two.settings.get("run_id")
        if run_ids[0] and run_ids[0] == run_ids[1]:
            problems.append(f"{pair} have the same run id {run_ids[0]!r}")
        early = {(step.step, step.loss) for step in one.steps[:5]} & {(step.step, step.loss) for step in two.steps[:5]}
        if len(early) >= _COPIED_LOSSES:
            problems.append(f"{pair} have the same losses at steps {', '.join(str(step) for step, _ in sorted(early))}")
        # Lines that no two runs share: those with a measured loss.
        a, b = ({line.strip() for line in log.lines.values() if _MEASURED.search(line)} for log in (one, two))
        shares[pair] = share = len(a & b) / max(1, min(len(a), len(b)))
        if share > _COPIED_SHARE:
            problems.append(f"{share:.0%} of the lines with measurements are the same in {pair}")
    return judge(problems[:8], f"{len(logs)} logs, no two alike", same_lines=shares)


@submission_checks.register("one-configuration", "section 4", "all seeds ran one configuration")
def one_configuration(submission: Submission) -> Finding:
    """Section 4: the settings that the logs give are the same for all seeds."""
    logs = [log for log in submission.logs if log.settings]
    if len(logs) < 2:
        raise MissingEvidence("fewer than two logs give their settings")
    first, *others = logs
    differing: dict[str, list[str]] = {}
    for log in others:
        for key in sorted(first.settings.keys() & log.settings.keys()):
            values = [first.settings[key], log.settings[key]]
            if values[0] != values[1] and key not in _OWN_TO_A_RUN and not any("/" in value for value in values):
                differing.setdefault(key, [f"{first.name}: {values[0]}"]).append(f"{log.name}: {values[1]}")
        for key in sorted(first.settings.keys() ^ log.settings.keys()):
            if min(len(first.settings), len(log.settings)) > 20 and key not in _OWN_TO_A_RUN:
                differing.setdefault(key, []).append(f"only in {first.name if key in first.settings else log.name}")
    problems = [f"{key} differs ({'; '.join(where)})" for key, where in differing.items()]
    return judge(problems[:8], f"{len(first.settings)} settings, the same in {len(logs)} logs", differing=differing)
