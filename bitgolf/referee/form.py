"""Checks of the form of a submission: its files, and the fields of submission.json.

Source: docs/rules.md, section 5.
"""

import re
from datetime import UTC, date, datetime, timedelta

from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.foreign import printable
from bitgolf.referee.decimals import is_number
from bitgolf.referee.folder import SCRIPT, Submission, submission_checks
from bitgolf.referee.log import SEARCHED_CHARACTERS

_FIRST_DAY = date(2026, 1, 1)  # before the first record of openai/parameter-golf
_REQUIRED = ("author", "name", "date", "val_loss", "val_bpb", "bytes_total")
_TEXT = ("author", "name", "date")
_NUMBERS = ("val_loss", "val_bpb", "val_loss_std", "val_bpb_std", "bytes_total", "bytes_code")
_TIME = re.compile(r"\b(20\d\d-\d\d-\d\d)[ T]\d\d:\d\d")


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
        problems += filter(None, [impossible_date(data["date"]), _later_log(submission, data["date"])])
    results = data.get("seed_results")
    if isinstance(results, dict) and isinstance(data.get("seeds"), list):
        listed = {str(seed) for seed in data["seeds"]}
        if listed != set(results):
            problems.append(f"seeds {sorted(listed)} but seed_results of {sorted(results)}")
    return judge(problems, f"{len(data)} fields; val_bpb {bpb}, val_loss {loss} nats", fields=sorted(data))


def impossible_date(text: str) -> str:
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
        dates = [match[1] for line in log.lines.values() for match in _TIME.finditer(line[:SEARCHED_CHARACTERS])]
        if dates and min(dates) > claimed.strip()[:10] and _next_day(claimed) < min(dates):
            return f"date is {printable(claimed)}, but {log.name} was written on {min(dates)}"
    return ""


def _next_day(text: str) -> str:
    try:
        return (date.fromisoformat(text.strip()[:10]) + timedelta(days=1)).isoformat()
    except (ValueError, OverflowError):
        return "9999"
