"""Checks of the three budgets: bytes of the artifact (B1), seconds of training (B4), seconds of evaluation (B6).

Each check recomputes what was used and compares it with the limit, with what the stage claims, and with what is
charged in the budget ledger. Rules: docs/rules.md.
"""

from bitgolf.audit.evidence import Evidence, number, run_checks
from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.bundle.single_file import code_bytes

# Clock readings of one process differ by the work between taking them and charging them.
CLOCK_SLACK_SECONDS = 0.5
CLOCK_SLACK_SHARE = 0.05


@run_checks.register("artifact-bytes", "B1", "code and model together fit the byte budget")
def artifact_bytes(evidence: Evidence) -> Finding:
    """B1: the sizes of the files against the cap, against pack.json, and against the ledger."""
    model, code = evidence.require("model.bitgolf").stat().st_size, code_bytes(evidence.config)
    limit, charged = evidence.config.budget.artifact_bytes, evidence.budget.spent("artifact_bytes")
    total = model + code
    claimed_model, claimed_code, claimed_total = (
        number(evidence.pack, key, "pack.json") for key in ("model_bytes", "code_bytes", "total_bytes")
    )
    problems = []
    if total > limit:
        problems.append(f"{total:,} bytes are {total - limit:,.0f} over the cap of {limit:,.0f}")
    if claimed_model != model:
        problems.append(f"pack.json claims {claimed_model:,} bytes of model, the file has {model:,}")
    if claimed_model + claimed_code != claimed_total:
        problems.append(
            f"pack.json's total {claimed_total:,} is not its model {claimed_model:,} + code {claimed_code:,}"
        )
    if claimed_total > limit:
        problems.append(f"pack.json itself claims {claimed_total:,} bytes, over the cap of {limit:,.0f}")
    if evidence.pack.get("cap_bytes", limit) != limit:
        problems.append(f"pack.json gives a cap of {evidence.pack['cap_bytes']} bytes, the configuration {limit:,.0f}")
    if charged != claimed_total:
        problems.append(f"the budget was charged {charged:,.0f} bytes, pack.json claims {claimed_total:,}")
    note = "" if claimed_code == code else f" (code was {claimed_code:,} bytes when packed)"
    return judge(
        problems,
        f"{model:,} model + {code:,} code = {total:,} of {limit:,.0f} bytes{note}",
        model_bytes=model,
        code_bytes=code,
        total_bytes=total,
        limit_bytes=limit,
        claimed_model_bytes=claimed_model,
        claimed_code_bytes=claimed_code,
        claimed_total_bytes=claimed_total,
        charged_bytes=charged,
    )


@run_checks.register("train-clock", "B4", "training data was last read within the training budget")
def train_clock(evidence: Evidence) -> Finding:
    """B4: the clock of the training log, calibration included, against the budget and the ledger.

    `elapsed_seconds` of an event counts from the first timed step. It never falls, except where a `resume` returns to
    an earlier checkpoint.
    """
    limit, charged = evidence.config.budget.train_seconds, evidence.budget.spent("train_seconds")
    timed = [
        (str(event.get("event")), float(number(event, "elapsed_seconds", "train.jsonl")))
        for event in evidence.events
        if "elapsed_seconds" in event
    ]
    if not any(name == "end" for name, _ in timed):
        raise MissingEvidence(
            "train.jsonl has no `end` event: training did not finish, so the last read of training data is unknown"
        )
    problems = []
    before = 0.0
    for name, elapsed in timed:
        if not elapsed >= before and name not in ("start", "resume"):
            problems.append(f"the training clock runs back from {before:.2f} s to {elapsed:.2f} s at `{name}`")
        before = elapsed
    last_name, last = timed[-1]
    if last_name != "end":
        problems.append(f"train.jsonl goes on after `end`, with `{last_name}` at {last:.2f} s")
    longest = max(elapsed for _, elapsed in timed)
    used = max(longest, charged)
    if used > limit:
        problems.append(f"training data was in use for {used:.2f} s, {used - limit:.2f} over the budget of {limit:g} s")
    if charged + CLOCK_SLACK_SECONDS < longest:
        problems.append(f"{charged:.2f} s were charged, the log runs to {longest:.2f} s")
    calibrations = [elapsed for name, elapsed in timed if name == "calibration"]
    return judge(
        problems,
        f"{used:.2f} of {limit:g} s" + (", calibration included" if calibrations else ""),
        charged_seconds=charged,
        limit_seconds=limit,
        log_seconds=longest,
        timed_events=len(timed),
        calibration_end_seconds=calibrations[-1] if calibrations else None,
        resumes=sum(name == "resume" for name, _ in timed),
    )


@run_checks.register("eval-clock", "B6", "all scoring work fits the evaluation budget")
def eval_clock(evidence: Evidence) -> Finding:
    """B6: the charged seconds against the budget, the time of each method, and the time of the whole evaluation.

    Nothing that the stage `score` does may be charged as untimed.
    """
    limit, charged = evidence.config.budget.eval_seconds, evidence.budget.spent("eval_seconds")
    if charged <= 0:
        raise MissingEvidence("nothing is charged to eval_seconds; run `bitgolf score` first")
    methods = {name: number(entry, "seconds", name) for name, entry in evidence.score["methods"].items()}
    claimed = number(evidence.score, "evaluation_seconds", "score.json")
    untimed = evidence.budget.spent("untimed_seconds", "score")
    used, scoring = max(charged, claimed), sum(methods.values())
    problems = []
    if used > limit:
        problems.append(f"evaluation took {used:.2f} s, {used - limit:.2f} over the budget of {limit:g} s")
    if charged + CLOCK_SLACK_SECONDS < scoring:
        problems.append(f"{charged:.2f} s were charged, scoring alone took {scoring:.2f} s")
    if claimed + CLOCK_SLACK_SECONDS < scoring:
        problems.append(f"score.json gives {claimed:.2f} s for the evaluation, and {scoring:.2f} s for its passes")
    if claimed - charged > max(CLOCK_SLACK_SECONDS, CLOCK_SLACK_SHARE * claimed):
        problems.append(
            f"the evaluation took {claimed:.2f} s, {charged:.2f} are charged: something ran outside the clock"
        )
    if untimed:
        problems.append(f"{untimed:.2f} s of evaluation are booked as untimed; all of it counts")
    return judge(
        problems,
        f"{used:.2f} of {limit:g} s",
        charged_seconds=charged,
        limit_seconds=limit,
        claimed_seconds=claimed,
        untimed_seconds=untimed,
        method_seconds=methods,
    )
