"""Checks of the three budgets of a submission: bytes, seconds of training, seconds of evaluation.

Logs are taken as true records. A figure that the files do not give is MissingEvidence, never a pass.
Source: docs/rules.md, sections 1 and 2.
"""

import lzma
import re
from collections.abc import Iterator
from itertools import pairwise

from bitgolf.audit.verdict import Finding, MissingEvidence, judge, not_run
from bitgolf.referee.decimals import is_number
from bitgolf.referee.folder import SCRIPT, Submission, submission_checks
from bitgolf.referee.log import SEARCHED_CHARACTERS, Log
from bitgolf.referee.shipped import data_files, hidden_code, imported_files, uncertain, unknown_modules

_LEAST_CODE_SHARE = 0.5  # of the source compressed by xz: shortening names does not save more
_TRAINS_ON = re.compile(
    r"(?i)\btrain_loss\b|\b(resum|continu)\w{1,4} training|\b(extra|more|additional) (\d+ )?steps"
    r"|\b(fine-?tun\w{0,4}|polish\w{0,4}).*(epoch|step|loss)|\bepoch\b.*\bloss\b"
)
_LEAST_EVAL_SECONDS = 1.0  # for a whole validation split; published plain passes took 6 s and more
_STOPS_CLOCK = re.compile(
    r"(?i)\b(clock|timer|train_time|budget)\b.{0,30}\b(paus|reset|restart|rewound|exclud|not count)"
    r"|\b(paus|exclud|not count)\w*\b.{0,30}\b(wall-?clock|clock|timer|train_time|budget)\b"
)
_MINUTE_DIGITS = 6.5  # seconds; logs give minutes with one digit
_MAY_BE_OUTSIDE = re.compile(r"(?i)warm|compil|serializ|quantiz|compress")  # rule B5
_TIMER = re.compile(r"(?i)eval(uation)? timer")
_HINT = re.compile(r"(?i)ngram|hint|tilt|cache")  # in the first word of a line
_HINTS_BUILT = re.compile(r"(?i)\b(built|build|hints|precomput|in \d[\d.]* ?s)")


def _compressed_bytes(text: str) -> int:
    """The size of a text under `xz -9`, with a dictionary that is no larger than the text: that takes 20 times less."""
    data = text.encode(errors="replace")
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": min(1 << 26, max(1 << 12, len(data)))}]
    return len(lzma.compress(data, filters=filters))


@submission_checks.register("artifact-bytes", "B1, B2", "model and all code that runs fit the cap for every seed")
def artifact_bytes(submission: Submission) -> Finding:
    """B1, B2: the totals of the logs, and the files that really ship."""
    cap, data, script = submission.limits.artifact_bytes, submission.metadata, submission.script
    totals = {log.name: log.total_bytes for log in submission.logs if log.total_bytes is not None}
    claimed = [value for key in ("bytes_total", "artifact_bytes_max") if is_number(value := data.get(key))]
    if not totals and not claimed:
        raise MissingEvidence("neither the logs nor submission.json give the bytes of the artifact")
    sizes: list[tuple[str, float]] = [(f"{total:,} bytes in {name}", total) for name, total in totals.items()]
    sizes += [(f"submission.json says {value:,} bytes", value) for value in claimed]
    problems = [f"{what}, {size - cap:,.0f} over the cap" for what, size in sizes if size > cap]
    problems += [f"{script.name} {what}: its bytes cannot be counted" for what in hidden_code(script)]
    counted = {log.model_bytes for log in submission.logs}
    problems += [
        f"{name} ({size:,} bytes) is read by {SCRIPT} and not counted"
        for name, size in data_files(submission).items()
        if size not in counted
    ]
    helpers = imported_files(submission)
    shipped = script.size + sum(helpers.values())
    for log in submission.logs:
        problems += _sums_of_log(log, cap, script.size, helpers)
    claimed_code = data.get("bytes_code")
    least_code = _LEAST_CODE_SHARE * _compressed_bytes(script.source) if script.source else 0
    if is_number(claimed_code) and claimed_code < least_code:
        problems.append(f"bytes_code {claimed_code:,} is less than any compression makes of {SCRIPT}")
    notes = [
        f"{log.name} counts {log.code_bytes:,} bytes of code, {shipped:,} ship"
        for log in submission.logs
        if log.code_bytes not in (None, shipped) and None not in (log.model_bytes, log.total_bytes)
    ]
    if not problems and (unclear := [name for name, size in uncertain(submission).items() if size not in counted]):
        return not_run(
            f"{', '.join(unclear[:3])} lies beside {SCRIPT} and is not counted; whether the script reads it cannot be "
            "told"
        )
    if not problems and (unknown := unknown_modules(submission)):
        return not_run(
            f"{SCRIPT} imports {', '.join(unknown[:3])}, which is neither in the folder nor in requirements.txt: its "
            "bytes cannot be counted"
        )
    return judge(
        list(dict.fromkeys(problems))[:8],
        f"{max([*totals.values(), *claimed]):,.0f} of {cap:,.0f} bytes at most"
        + (f" ({notes[0]}; both fit)" if notes else ""),
        totals=totals,
        claimed=claimed,
        shipped_code_bytes=shipped,
        imported_files=helpers,
        notes=notes,
    )


def _sums_of_log(log: Log, cap: float, script_bytes: int, helpers: dict[str, int]) -> Iterator[str]:
    """What is wrong with the bytes that a log gives, for the script and the code files that it imports."""
    model, code, total = log.model_bytes, log.code_bytes, log.total_bytes
    if model is None or code is None or total is None:
        return
    if model + code != total:
        yield f"{log.name}: {model:,} of model + {code:,} of code are not {total:,}"
    shipped = script_bytes + sum(helpers.values())
    if model + shipped > cap:
        with_helpers = f" with {', '.join(helpers)}" if helpers else ""
        yield (
            f"{log.name}: {model:,} of model and the {shipped:,} bytes of {SCRIPT}{with_helpers} as they ship are "
            f"{model + shipped - cap:,.0f} over the cap; {code:,} bytes of code were counted"
        )
    elif code == script_bytes and helpers:
        yield f"{', '.join(helpers)} is imported by {SCRIPT} and not counted"


@submission_checks.register("train-clock", "B4", "training data was last read within the training budget")
def train_clock(submission: Submission) -> Finding:
    """B4: where training stopped, and what read training data after it. The step that began in time may end late."""
    cap = submission.limits.train_seconds
    if not submission.is_record:
        raise MissingEvidence("not an entry of the track of ten minutes: it has no training clock")
    problems, ends = [], {}
    for log in submission.logs:
        timed = [step.seconds for step in log.steps if step.seconds is not None]
        if log.stop is None and not timed:
            continue
        end = log.stop.seconds if log.stop else max(timed)
        steps = log.stop.step if log.stop else log.steps[-1].step
        grace = end / max(1, steps)
        if end > cap + grace:
            problems.append(
                f"{log.name}: training stopped at {end:.2f} s, {end - cap:.2f} over the budget of {cap:g} s"
            )
        if end <= 0:
            problems.append(f"{log.name}: training stopped at {end:.2f} s, which is no time")
        problems += [f"{log.name} {what}" for what in _broken_clock(log, end)]
        if log.stop and log.stop.why != "wallclock_cap":
            problems.append(f"{log.name}: training was stopped by {log.stop.why!r}, not by the clock")
        for number, line in log.lines.items() if log.stop else ():
            if log.stop and log.stop.line < number < log.sealed_line and _TRAINS_ON.search(line[:SEARCHED_CHARACTERS]):
                problems.append(f"{log.name} line {number}: training goes on: {line.strip()[:60]!r}")
                break
        last = log.stop.step if log.stop else steps
        if log.stop and (scores := [metric.line for metric in log.metrics if metric.step > last]):
            problems.append(f"{log.name} line {scores[0]}: a later step than the last one, {last}")
        if log.stop and (after := [step.step for step in log.steps if step.step > log.stop.step]):
            problems.append(
                f"{log.name}: training goes on to step {max(after)} after it stopped at step {log.stop.step}"
            )
        ends[log.name] = end
        later = [took for line, took in log.calibration if took is not None and log.stop and line > log.stop.line]
        if later and end + sum(later) > cap + grace:
            problems.append(
                f"{log.name}: statistics were gathered from training data for {sum(later):.1f} s after training "
                f"stopped at {end:.2f} s: until {end + sum(later):.1f} s"
            )
    if not ends:
        raise MissingEvidence("no log gives a training time")
    reason = f"{max(ends.values()):.2f} of {cap:g} s at most, calibration included"
    return judge(problems[:8], reason, ends_seconds=ends)


def _broken_clock(log: Log, end: float) -> Iterator[str]:
    """Lines of training whose clock was stopped or runs back, or is later than the end of training."""
    for number, line in log.lines.items():
        start = line[:SEARCHED_CHARACTERS]
        if number < log.sealed_line and _STOPS_CLOCK.search(start) and not _MAY_BE_OUTSIDE.search(start):
            yield f"line {number}: the training clock was stopped: {line.strip()[:60]!r}"
            break
    timed = [(step.step, step.seconds) for step in log.steps if step.seconds is not None]
    for (step, seconds), (later, after) in pairwise(timed):
        if later > step and after < seconds:
            yield f"gives {after:.1f} s at step {later}, and {seconds:.1f} s at step {step} before"
            break
    last = max((seconds for step, seconds in timed if log.stop is None or step <= log.stop.step), default=0.0)
    if last > end + _MINUTE_DIGITS:
        yield f"gives {last:.1f} s on the line of a step, and {end:.1f} s as the end of training"


@submission_checks.register("eval-clock", "B6", "all scoring work fits the evaluation budget")
def eval_clock(submission: Submission) -> Finding:
    """B6: the time of the pass that gave the headline, with all that it needed."""
    cap = submission.limits.eval_seconds
    if not submission.is_record:
        raise MissingEvidence("not an entry of the track of ten minutes: it has no evaluation clock")
    problems, seconds = [], {}
    for log in submission.logs:
        took = log.eval_seconds
        if took is not None:
            seconds[log.name] = took
            if took < _LEAST_EVAL_SECONDS and max(log.counts.get("val_tokens") or [0]) > 1_000_000:
                problems.append(f"{log.name}: evaluation of the whole split took {took:g} s, which no machine does")
            if took > cap:
                problems.append(
                    f"{log.name}: evaluation took {took:.1f} s, {took - cap:.1f} over the budget of {cap:g} s"
                )
        begin, hints = log.first_line(_starts_timer), log.first_line(_builds_hints)
        if begin is not None and hints is not None and hints < begin:
            problems.append(
                f"{log.name}: line {hints} ({log.lines[hints].strip()[:60]!r}) comes before the evaluation timer "
                f"starts at line {begin}"
            )
    claimed = submission.metadata.get("seed_results")
    for seed, result in claimed.items() if isinstance(claimed, dict) else ():
        took = result.get("eval_time_s") if isinstance(result, dict) else None
        if is_number(took) and took > cap:
            problems.append(f"seed {seed}: submission.json says {took} s of evaluation, over the budget of {cap:g} s")
    if not seconds and not problems:
        raise MissingEvidence("no log gives the time of the evaluation")
    most = max(seconds.values(), default=0.0)
    return judge(problems[:8], f"{most:.1f} of {cap:g} s at most", eval_seconds=seconds)


def _starts_timer(line: str) -> bool:
    _, begins, rest = line.lower().partition("beginning ")
    return bool(begins) and _TIMER.search(rest) is not None


def _builds_hints(line: str) -> bool:
    first, _, rest = line.strip(" \t*[#-").partition(" ")
    return _HINT.search(first[:SEARCHED_CHARACTERS]) is not None and _HINTS_BUILT.search(first + " " + rest) is not None
