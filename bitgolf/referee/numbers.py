"""Checks of the figures of submission.json and README: means, deviations, bytes and steps, computed from the logs.

Source: docs/rules.md, sections 4 and 5. Scores have been lost to prose that did not follow from the logs.
"""

import re
import statistics
from collections.abc import Iterator
from typing import Any

from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.referee.decimals import figure_of, figures, is_number, shown
from bitgolf.referee.folder import Submission, submission_checks
from bitgolf.referee.log import Metric

LEAST_SEEDS = 3


@submission_checks.register("seeds", "section 4", "the headline is the mean of at least three seeds, not the best")
def seeds(submission: Submission) -> Finding:
    """Section 4: three seeds, and their mean in the headline."""
    finals = _finals(submission)
    problems = []
    if submission.is_record and len(finals) < LEAST_SEEDS:
        problems.append(f"{len(finals)} with a log ({', '.join(finals) or 'none'}), {LEAST_SEEDS} seeds are the rule")
    claimed = submission.metadata.get("val_bpb")
    values = [metric.bpb for metric in finals.values()]
    if is_number(claimed) and len(values) > 1:
        figure = figure_of(claimed)
        if not figure.equals(statistics.mean(values)) and figure.equals(min(values)):
            best = min(finals, key=lambda seed: finals[seed].bpb)
            problems.append(
                f"the headline {claimed} is the best seed ({best}) of {len(values)}; their mean is "
                f"{statistics.mean(values):.6f}"
            )
    if len(values) > 1 and len(set(values)) == 1:
        problems.append(f"{len(values)} seeds have the same score {values[0]}: runs of other seeds differ")
    spread = f" +- {statistics.stdev(values):.5f}" if len(values) > 1 else ""
    mean = f"{statistics.mean(values):.5f}{spread}" if values else "none"
    return judge(
        problems,
        f"{len(values)} seeds, mean {mean} bpb",
        bpb={seed: metric.bpb for seed, metric in finals.items()},
    )


def _finals(submission: Submission) -> dict[str, Metric]:
    """The final figures of each seed: of the log that submission.json agrees with, if a seed has several."""
    metrics: dict[str, Metric] = {}
    results = submission.metadata.get("seed_results")
    for seed, logs in submission.by_seed.items():
        finals = [log.final for log in logs if log.final is not None]
        result = results.get(seed) if isinstance(results, dict) else None
        claimed = result.get("val_bpb") if isinstance(result, dict) else None
        agreeing = [metric for metric in finals if is_number(claimed) and figure_of(claimed).equals(metric.bpb)]
        if finals:
            metrics[seed] = (agreeing or finals)[-1]
    return metrics


@submission_checks.register("numbers-agree", "section 5", "README and submission.json follow from the logs")
def numbers_agree(submission: Submission) -> Finding:
    """Section 5: every figure of submission.json and of README's tables that the logs can confirm."""
    problems = [*_json_numbers(submission), *_readme_numbers(submission)]
    compared = len(_finals(submission))
    if not compared:
        raise MissingEvidence("no log gives a seed and its final losses")
    reason = f"figures of {compared} seeds follow from the logs"
    return judge(problems[:8], reason, num_problems=len(problems), all_problems=problems[:40])


def _json_numbers(submission: Submission) -> Iterator[str]:
    data, finals = submission.metadata, _finals(submission)
    results = data.get("seed_results")
    for seed, result in results.items() if isinstance(results, dict) else ():
        if not isinstance(result, dict):
            continue
        logs, final = submission.by_seed.get(str(seed), []), finals.get(str(seed))
        if final is None:
            yield f"submission.json has results of seed {seed}, no log does"
            continue
        expected: dict[str, list[float]] = {
            "val_bpb": [final.bpb],
            "val_loss": [final.loss],
            "artifact_bytes": [log.total_bytes for log in logs if log.total_bytes is not None],
            "steps": [log.stop.step for log in logs if log.stop],
            "eval_time_s": [took for log in logs if (took := log.eval_seconds) is not None],
        }
        for key, values in expected.items():
            if is_number(result.get(key)) and values and not any(figure_of(result[key]).equals(v, 1.0) for v in values):
                yield f"seed {seed}: {key} is {result[key]} in submission.json, {shown(values[-1])} in the log"
    if len(finals) > 1:
        yield from _aggregates(data, finals, submission)
    elif finals:
        (final,) = finals.values()
        for key, value in (("val_bpb", final.bpb), ("val_loss", final.loss)):
            if is_number(data.get(key)) and not figure_of(data[key]).equals(value, 1.0):
                yield f"{key} is {data[key]} in submission.json, {value} in the log"
    if len({metric.bpb for metric in finals.values()}) > 1:
        for key, value in data.items():
            if re.search(r"(std|stdev|stddev|deviation|sigma)", key) and is_number(value) and value <= 0:
                yield f"{key} is {value} in submission.json, the logs have different scores"
    baseline, delta = data.get("comparison_baseline_bpb"), data.get("delta_vs_leaderboard_bpb")
    if is_number(baseline) and is_number(delta) and is_number(data.get("val_bpb")):
        difference = data["val_bpb"] - baseline
        if not figure_of(abs(delta)).equals(abs(difference), 1.0):
            yield f"delta_vs_leaderboard_bpb is {delta}, val_bpb - comparison_baseline_bpb is {difference:.6f}"


def _aggregates(data: dict[str, Any], finals: dict[str, Metric], submission: Submission) -> Iterator[str]:
    bpb, loss = [m.bpb for m in finals.values()], [m.loss for m in finals.values()]
    totals = [log.total_bytes for log in submission.logs if log.total_bytes is not None]
    steps = [log.stop.step for log in submission.logs if log.stop]
    expected: dict[str, list[float]] = {
        "val_bpb": [statistics.mean(bpb)],
        "val_loss": [statistics.mean(loss)],
        "val_bpb_std": [statistics.stdev(bpb), statistics.pstdev(bpb)],
        "val_loss_std": [statistics.stdev(loss), statistics.pstdev(loss)],
    }
    if totals:
        # Public records give the bytes of the largest seed or of any other; `artifact_bytes` judges all of them.
        expected |= {"bytes_total": [max(totals), *totals], "artifact_bytes_max": [max(totals)]}
        expected["artifact_bytes_mean"] = [statistics.mean(totals)]
    if steps:
        expected["train_steps_mean"] = [statistics.mean(steps)]
    for key, values in expected.items():
        claimed = data.get(key)
        if not is_number(claimed):
            continue
        zero = claimed == 0 and not any(value == 0 for value in values)  # a zero is a claim, not a rounded figure
        if zero or not any(figure_of(claimed).equals(value, 1.0) for value in values):
            yield f"{key} is {data[key]} in submission.json, the logs give {shown(values[0])}"


def _readme_numbers(submission: Submission) -> Iterator[str]:
    """The headline, rows of seeds against their logs, and rows of means against those rows."""
    try:
        readme = submission.readme
    except MissingEvidence:
        return
    finals = {metric.bpb for metric in _finals(submission).values()}
    if readme.deviation and not float(readme.deviation) and len(finals) > 1:
        yield f"README gives a deviation of {readme.deviation}, the logs have {len(finals)} different scores"
    claimed = submission.metadata.get("val_bpb")
    if readme.headline and is_number(claimed) and not figures(readme.headline)[0].equals(claimed, 1.0):
        yield f"README's headline is {readme.headline}, val_bpb of submission.json {claimed}"
    for table in readme.tables:
        if "seed" not in table.header[0].lower():
            continue
        columns: dict[int, list[float]] = {}
        for row in table.rows:
            seed = _seed_of(row[0], submission)
            if seed is not None:
                yield from _seed_row(table.header, row, seed, submission, columns)
            elif "mean" in row[0].lower() or "average" in row[0].lower():
                yield from _mean_row(table.header, row, columns)


def _seed_of(cell: str, submission: Submission) -> str | None:
    numbers = [str(int(figure.value)) for figure in figures(cell) if not figure.decimals]
    return numbers[0] if len(numbers) == 1 and numbers[0] in submission.by_seed else None


def _seed_row(
    header: tuple[str, ...], row: tuple[str, ...], seed: str, submission: Submission, columns: dict[int, list[float]]
) -> Iterator[str]:
    logs = submission.by_seed[seed]
    logged = [value for log in logs for metric in log.metrics for value in (metric.bpb, metric.loss)]
    sizes = [size for log in logs for kind in log.sizes.values() for _, size in kind]
    steps = [log.stop.step for log in logs if log.stop]
    for index, cell in enumerate(row[1:], 1):
        numbers = figures(cell)
        if len(numbers) != 1:
            continue
        (figure,) = numbers
        columns.setdefault(index, []).append(figure.value)
        title = header[index] if index < len(header) else ""
        if any(word in title.lower() for word in ("delta", "\u0394", "gain", " vs")):
            continue
        if figure.decimals >= 3 and 0.3 < figure.value < 12 and logged:
            if not any(figure.equals(value, 1.0) for value in logged):
                yield f"README: {title or 'a column'} of seed {seed} is {cell}, which is not in its log"
        elif figure.decimals == 0 and figure.value >= 1_000_000 and sizes and int(figure.value) not in sizes:
            yield f"README: {title or 'a column'} of seed {seed} is {cell} bytes, its log has {max(sizes):,}"
        elif title.strip().lower() in ("steps", "step") and not figure.decimals and _far(figure.value, steps):
            yield f"README: {title} of seed {seed} is {cell}, its log stopped at step {steps[0]:,}"


def _far(value: float, steps: list[int]) -> bool:
    """Whether a number of steps is none of those logged; some count from zero."""
    return bool(steps) and min(abs(value - step) for step in steps) > 1


def _mean_row(header: tuple[str, ...], row: tuple[str, ...], columns: dict[int, list[float]]) -> Iterator[str]:
    for index, cell in enumerate(row[1:], 1):
        numbers, values = figures(cell), columns.get(index, [])
        if len(numbers) == 1 and len(values) > 1 and not numbers[0].equals(statistics.mean(values), 1.0):
            title = header[index] if index < len(header) else "a column"
            yield f"README: the mean of {title} is {cell}, its rows have {shown(statistics.mean(values))}"
