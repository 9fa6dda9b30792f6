"""submission.json: results of all seeds in the schema of the challenge's records.

`val_loss` is nats per token, `val_bpb` bits per byte. Both are means over the seeds with sample standard deviations,
rounded to the eight decimals of the logs. `bytes_total` is the largest of the seeds.
"""

import json
import math
from statistics import fmean
from typing import Any

from bitgolf.report.comparison.t_tests import Sample
from bitgolf.submit.lineage import lineage
from bitgolf.submit.seed_log import step_milliseconds
from bitgolf.submit.seed_runs import SeedRun
from bitgolf.submit.submission import Submission
from bitgolf.version import __version__

_DECIMALS = 8


def submission_json(submission: Submission) -> str:
    return json.dumps(describe(submission), indent=2, allow_nan=False) + "\n"


def describe(submission: Submission) -> dict[str, Any]:
    """Contents of submission.json. Values that do not apply (a deviation over one seed) are left out."""
    runs, config = submission.runs, submission.runs[0].config
    loss, loss_std = moments("val_loss", {run.seed: run.scored.loss_nats for run in runs})
    bpb, bpb_std = moments("val_bpb", {run.seed: run.scored.bpb for run in runs})
    totals = [submission.total_bytes(run) for run in runs]
    values: dict[str, Any] = {
        "author": submission.author,
        "github_id": submission.github_id,
        "name": submission.name,
        "blurb": config.description,
        "date": submission.date.isoformat().replace("+00:00", "Z"),
        "track": submission.track,
        "val_loss": _round(loss),
        "val_bpb": _round(bpb),
        "val_loss_std": _round(loss_std),
        "val_bpb_std": _round(bpb_std),
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): _seed(submission, run) for run in runs},
        "bytes_total": max(totals),
        "bytes_code": submission.code_bytes,
        "bytes_model_max": max(run.model_bytes for run in runs),
        "artifact_bytes_mean": _round(fmean(totals), 1),
        "artifact_bytes_max": max(totals),
        "train_steps_mean": _round(fmean(int(run.end["step"]) for run in runs), 1),
        "step_avg_ms_mean": _round(fmean(step_milliseconds(run) for run in runs), 3),
        "hardware": ", ".join(dict.fromkeys(run.trained_on for run in runs)),
        "pytorch_version": ", ".join(dict.fromkeys(str(run.start["torch"]) for run in runs)),
        "method": runs[0].scored.method,
        "bpb_per_nat": runs[0].scored.bpb_per_nat,
        "byte_accounting": runs[0].scored.text.accounting,
        "technique_summary": ", ".join(name for name, _, _ in lineage(config)),
        "attribution": {name: source for name, _, source in lineage(config)},
        "compliance": compliance(submission),
        "bitgolf_version": __version__,
    }
    if submission.doubts:
        values["forced"] = list(submission.doubts)
    return {key: value for key, value in values.items() if value is not None}


def compliance(submission: Submission) -> dict[str, bool]:
    """Statements that the run directories prove, each for all seeds."""
    runs, limits = submission.runs, submission.runs[0].config.budget
    return {
        f"artifact_at_most_{limits.artifact_bytes}_bytes": all(
            submission.total_bytes(run) <= limits.artifact_bytes for run in runs
        ),
        f"training_at_most_{limits.train_seconds:g}_seconds": all(
            run.seconds["train_seconds"] <= limits.train_seconds for run in runs
        ),
        f"evaluation_at_most_{limits.eval_seconds:g}_seconds": all(
            run.seconds["eval_seconds"] <= limits.eval_seconds for run in runs
        ),
        "same_configuration_for_all_seeds": True,  # else there would be no submission
        "audited": all(run.audit is not None for run in runs),
        "audit_passed": all(bool(run.audit and run.audit["passed"]) for run in runs),
        "audit_complete": all(bool(run.audit and run.audit.get("complete")) for run in runs),
        "code_size_unchanged_since_packing": all(run.pack["code_bytes"] == submission.code_bytes for run in runs),
    }


def moments(name: str, by_seed: dict[int, float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds. The deviation of one seed is None."""
    if len(by_seed) == 1:
        return next(iter(by_seed.values())), None
    sample = Sample.from_seeds(name, by_seed)
    return sample.mean, sample.std


def _seed(submission: Submission, run: SeedRun) -> dict[str, Any]:
    first = run.config.score.methods[0]
    methods = run.scored.score["methods"]
    values = {
        "val_loss": _round(run.scored.loss_nats),
        "val_bpb": _round(run.scored.bpb),
        "pre_quant_val_bpb": _round(run.float_result["bpb"]) if run.float_result else None,
        "quantized_val_bpb": _round(methods[first]["bpb"]),
        "artifact_bytes": submission.total_bytes(run),
        "model_bytes": run.model_bytes,
        "model_sha256": run.model_sha256,
        "steps": int(run.end["step"]),
        "step_avg_ms": _round(step_milliseconds(run), 3),
        "train_wallclock_ms": _round(1000 * run.seconds["train_seconds"], 0),
        "eval_time_s": _round(run.seconds["eval_seconds"], 3),
        "val_tokens": int(run.scored.score["val_tokens"]),
        "target_tokens": int(methods[run.scored.method]["tokens"]),
        "val_bytes": int(run.scored.score["val_bytes"]),
        "config_sha256": run.config.digest(),
    }
    return {key: value for key, value in values.items() if value is not None}


def _round(value: float | None, digits: int = _DECIMALS) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), digits)
