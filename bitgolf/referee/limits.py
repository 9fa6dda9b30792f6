"""Checks of what a submission may use: files, bytes, seconds, the whole validation split.

Logs are taken as true records. A figure that the files do not give is MissingEvidence, never a pass.
Source: docs/rules.md, sections 1, 2 and 5.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from bitgolf.audit.verdict import Finding, MissingEvidence, judge, not_run
from bitgolf.errors import ForeignError
from bitgolf.foreign import parse_number, printable
from bitgolf.referee.figures import is_number
from bitgolf.referee.folder import SCRIPT, Submission, submission_checks
from bitgolf.referee.log import Log
from bitgolf.referee.shipped import data_files, hidden_code, imported_files, uncertain, unknown_modules

# Validation tokens by tokenizer, from the published logs: 50,000 documents, cut to whole windows by most scripts.
VAL_TOKENS = {"sp1024": 62_021_632, "sp8192": 40_540_160, "caseops": 47_851_520}
VAL_DOCUMENTS = 50_000
_FIRST_DAY = date(2026, 1, 1)  # before the first record of openai/parameter-golf
_CUT_TAIL = 1e-3  # share of the tokens: cutting to whole windows of 4,096 leaves out less
_REQUIRED = ("author", "name", "date", "val_loss", "val_bpb", "bytes_total")
_TEXT = ("author", "name", "date")
_NUMBERS = ("val_loss", "val_bpb", "val_loss_std", "val_bpb_std", "bytes_total", "bytes_code")
_LEAST_CODE_SHARE = 0.5  # of the source compressed by xz: shortening names does not save more
_LEFT_OUT = (
    r"(?:skip\w{0,4}|drop\w{0,4}|ignor\w{0,4}|exclud\w{0,4}|discard\w{0,4}|omit\w{0,4}|filter\w{0,4}(?: out)?"
    r"|remov\w{0,4}|truncat\w{0,4}|left out|leav\w{0,4} out|not (?:scored|evaluated|counted)|unscored)"
)
_THINGS = (
    r"(?:\w{1,20}[ _])?(?:documents?|docs?|sequences?|samples?|targets?|tokens?|batch(?:es)?|windows?|chunks?|shards?)"
)
_SKIPPED = re.compile(  # "skipped 12 documents", "docs_skipped: 12", "12 docs were skipped"
    rf"(?i)\b{_LEFT_OUT}[:= ]{{1,3}}(\d[\d,_]*) {_THINGS}\b"
    rf"|(?:{_THINGS}[_ ]{_LEFT_OUT}|\b{_LEFT_OUT}[_ ]{_THINGS})[:= ]{{1,3}}(\d[\d,_]*)"
    rf"|\b(\d[\d,_.]*)[kKmM]? {_THINGS} (?:\w{{1,6}} ){{0,3}}{_LEFT_OUT}\b"
    rf"|\b{_LEFT_OUT}[:= ]{{1,3}}(?:last |first )?(\d[\d,_.]*)[kKmM]? (?:\w{{1,12}} )?{_THINGS}\b"
    rf"|\b{_LEFT_OUT} {_THINGS} [\w ]{{0,60}}:\s?(\d[\d,_]*)"
    rf"|{_THINGS} (?:\([^()]{{1,40}}\) )?{_LEFT_OUT}[:= ]{{1,3}}(\d[\d,_]*)"
    rf"|\b(?:n|num)_{_LEFT_OUT}(?:_{_THINGS})?\s?[:=]\s?(\d[\d,_]*)"
)
_PART = re.compile(  # "49,000 of 50,000 documents"
    rf"(?i)\b(\d[\d,_]*)\s?(?:of|/|out of)\s?(\d[\d,_]*) {_THINGS}\b|\b(\d[\d,_]*) fewer {_THINGS}\b"
)
_SUBSET = re.compile(  # "using first 10000000 val tokens", "val subset: 10%", "eval on 5000 docs"
    rf"(?i)\b(?:first|only) [\d,_.]+[kKmM]? val\w{{0,7}} {_THINGS}|\bval\w{{0,7}}[ _]subset\b"
    rf"|\beval\w{{0,7}} on [\d,_.]+[kKmM]? {_THINGS}"
)
_LIMIT = re.compile(
    r"(?i)\b((?:max|limit)_(?:val|eval)_\w{1,12}|(?:val_(?:docs?|tokens?)|eval)_(?:fraction|frac|subset)|(?:max|limit|num_eval|eval)_docs(?:_limit)?|docs?_limit)\s?[:=]\s?([\d.]+)"
)
_CUT_SHORT = re.compile(  # of an evaluation, on lines after the artifact was made
    r"(?i)\beval\w{0,6}\b.{0,40}\b(stopp?ed|ended|aborted|capped|cut|interrupted)\b.{0,20}\b(early|at|after|short)\b"
    r"|\b(time|wall-?clock) ?(limit|budget|out)\b.{0,20}\b(reached|hit|exceeded)|\btimed out\b"
    r"|\b(clip|clamp|winsor|trim|cap)([pm]?|iz)(ed|ing)\b.{0,30}\b(loss(es)?|nll|nats|mean)\b"
    r"|\bcoverage[:= ]{1,3}\d{1,2}(\.\d+)?\s?%"
)
_EVALUATED = re.compile(r"(?i)\b(?:evaluat|scor)(?:ing|ed) (\d[\d,_]{3,}) (documents|docs)\b")
_SKIPPED_CHARACTERS = 300  # of a line
_TIME = re.compile(r"\b(20\d\d-\d\d-\d\d)[ T]\d\d:\d\d")
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


@submission_checks.register("files", "section 5", "the folder holds what a reviewer needs")
def files(submission: Submission) -> Finding:
    """Section 5: README, submission.json, the script and the logs are there."""
    names = {path.name for path in submission.files}
    problems = [f"{name} is missing" for name in ("README.md", "submission.json", SCRIPT) if name not in names]
    try:
        logs = [log.name for log in submission.logs]
    except MissingEvidence as missing:
        logs = []
        problems.append(str(missing))
    for log in submission.logs if logs else ():
        problems += [f"{log.name} line {number}: {reason}" for number, reason in list(log.damaged.items())[:3]]
    return judge(problems[:8], f"{len(names)} files, {len(logs)} logs of training", files=sorted(names), logs=logs)


@submission_checks.register("json-schema", "section 5", "submission.json has its fields, of the right kind and size")
def schema(submission: Submission) -> Finding:
    """Section 5: fields and their kinds; `val_loss` in nats, `val_bpb` in bits."""
    data = submission.metadata
    problems = [f"{key} is missing" for key in _REQUIRED if data.get(key) is None]
    present = {key: value for key, value in data.items() if value is not None}
    problems += [f"{key} is {present[key]!r}, not text" for key in _TEXT if not isinstance(present.get(key, ""), str)]
    problems += [f"{key} is {present[key]!r}, not a number" for key in _NUMBERS if not is_number(present.get(key, 0))]
    loss, bpb = data.get("val_loss"), data.get("val_bpb")
    if is_number(loss) and is_number(bpb) and loss > 0:
        if not 0.2 < bpb < 4:
            problems.append(f"val_bpb {bpb} is no score in bits per byte (about 1)")
        if abs(bpb / loss - 1) < 0.02:
            problems.append(f"val_loss {loss} is bits per byte, not nats per token")
        elif not 0.2 < bpb / loss < 0.8:
            problems.append(f"val_bpb {bpb} and val_loss {loss} do not go together")
    if isinstance(data.get("date"), str):
        problems += filter(None, [_impossible_date(data["date"]), _later_log(submission, data["date"])])
    results = data.get("seed_results")
    if isinstance(results, dict) and isinstance(data.get("seeds"), list):
        listed = {str(seed) for seed in data["seeds"]}
        if listed != set(results):
            problems.append(f"seeds {sorted(listed)} but seed_results of {sorted(results)}")
    return judge(problems, f"{len(data)} fields; val_bpb {bpb}, val_loss {loss} nats", fields=sorted(data))


def _impossible_date(text: str) -> str:
    """Why a date cannot be that of a submission; "" if it can."""
    try:
        day = datetime.fromisoformat(text.strip().replace("Z", "+00:00")).date()
        if not re.match(r"\d{4}-\d{2}-\d{2}", text.strip()):
            raise ValueError
    except ValueError:
        return f"date is {printable(text)!r}, which is no date of the form YYYY-MM-DD"
    if day < _FIRST_DAY:
        return f"date is {text}, before the challenge began"
    if day > datetime.now(UTC).date() + timedelta(days=1):  # somewhere it is tomorrow already
        return f"date is {text}, which is in the future"
    return ""


def _later_log(submission: Submission, claimed: str) -> str:
    """A log that was written after the claimed date; "" if there is none."""
    try:
        logs = submission.logs
    except MissingEvidence:
        return ""
    for log in logs:
        dates = [match[1] for line in log.lines.values() for match in _TIME.finditer(line[:_SKIPPED_CHARACTERS])]
        if dates and min(dates) > claimed.strip()[:10] and _next_day(claimed) < min(dates):
            return f"date is {printable(claimed)}, but {log.name} was written on {min(dates)}"
    return ""


def _next_day(text: str) -> str:
    try:
        return (date.fromisoformat(text.strip()[:10]) + timedelta(days=1)).isoformat()
    except (ValueError, OverflowError):
        return "9999"


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
            if log.stop and log.stop.line < number < log.sealed_line and _TRAINS_ON.search(line[:_SKIPPED_CHARACTERS]):
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
        start = line[:_SKIPPED_CHARACTERS]
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
    return _HINT.search(first[:_SKIPPED_CHARACTERS]) is not None and _HINTS_BUILT.search(first + " " + rest) is not None


@submission_checks.register("tokens-scored", "C4", "the whole validation split was scored, each target once")
def tokens_scored(submission: Submission) -> Finding:
    """C4: validation tokens and documents that the logs count, against the full split."""
    problems, counted = [], {}
    expected = VAL_TOKENS.get(submission.tokenizer)
    for log in submission.logs:
        tokens, targets, documents = (log.counts.get(what, []) for what in ("val_tokens", "target_tokens", "documents"))
        # Our own logs count on the line of the pass, and repeat its score without counts at the end.
        same = [metric.counts for metric in log.metrics if log.final is not None and metric.bpb == log.final.bpb]
        targets = [*targets, *(counts[0] for counts in same if counts is not None)]
        if tokens or targets or documents:
            counted[log.name] = {"val_tokens": tokens, "target_tokens": targets, "documents": documents}
        for count in {*tokens, *targets}:
            if expected and abs(count / expected - 1) > _CUT_TAIL:
                problems.append(
                    f"{log.name}: {count:,} validation tokens, {count / expected:.1%} of the full split's {expected:,}"
                )
        if tokens and targets and max(targets) > max(tokens):
            problems.append(f"{log.name}: {max(targets):,} targets were scored of {max(tokens):,} tokens: some twice")
        problems += [
            f"{log.name}: {count:,} validation documents, the split has {VAL_DOCUMENTS:,}"
            for count in {*documents}
            if count != VAL_DOCUMENTS
        ]
        problems += [f"{log.name} line {number}: {line.strip()[:80]!r}" for number, line in _skipped(log)]
        problems += [f"{log.name}: {key} is {value}" for key, value in _limits(log, expected)]
    different = {max(log["val_tokens"] or log["target_tokens"] or [0]) for log in counted.values()} - {0}
    if len(different) > 1:
        problems.append(
            f"the logs scored different amounts: {', '.join(f'{count:,}' for count in sorted(different))} tokens"
        )
    if not counted:
        raise MissingEvidence("no log says how many validation tokens there were")
    if not problems and not expected and not any(log["documents"] for log in counted.values()):
        raise MissingEvidence(
            f"{max(different, default=0):,} validation tokens were scored; whether that is the full split cannot be "
            "told for this tokenizer"
        )
    reason = f"{max(different, default=0):,} validation tokens in {len(counted)} logs: the full split"
    return judge(list(dict.fromkeys(problems))[:8], reason, counted=counted, expected=expected)


def _limits(log: Log, expected: int | None) -> Iterator[tuple[str, str]]:
    """Settings that limit the validation data, among the settings and on any line."""
    on_lines = {
        match[1]: match[2] for line in log.lines.values() for match in _LIMIT.finditer(line[:_SKIPPED_CHARACTERS])
    }
    for key, value in {**on_lines, **{k: v for k, v in log.settings.items() if _LIMIT.fullmatch(f"{k}:{v}")}}.items():
        number = _as_float(value)
        share = key.endswith(("fraction", "frac", "subset"))
        whole = VAL_DOCUMENTS if "doc" in key or not expected else expected
        if number and (number != 1 if share else number < whole):
            yield key, value


def _skipped(log: Log) -> Iterator[tuple[int, str]]:
    """Lines that tell of documents or tokens that were left out, with more than zero of them."""
    parts: dict[str, list[tuple[int, str, bool]]] = {}  # by the whole: lines that tell of a part of it
    for number, line in log.lines.items():
        start = line[:_SKIPPED_CHARACTERS]
        if "train" in start.lower():
            continue
        of_documents = [int(_digits(match[1])) for match in _EVALUATED.finditer(start)]
        if (number > log.sealed_line > 0 and _CUT_SHORT.search(start)) or any(n != VAL_DOCUMENTS for n in of_documents):
            yield number, line
            continue
        counts = [next(filter(None, match.groups()), "0") for match in _SKIPPED.finditer(start)]
        if any(count.strip("0,_.") for count in counts) or _SUBSET.search(start):
            yield number, line
            continue
        for part, whole, fewer in _PART.findall(start):
            if fewer:
                yield number, line
            else:
                complete = int(_digits(part)) >= int(_digits(whole))
                parts.setdefault(whole, []).append((number, line, complete))
    for lines in parts.values():  # several lines are progress
        if len(lines) == 1 and not lines[0][2]:
            yield lines[0][:2]


def _digits(text: str) -> str:
    return text.replace(",", "").replace("_", "")[:18] or "0"


def _as_float(text: str) -> float | None:
    try:
        return parse_number(text)
    except ForeignError:
        return None
