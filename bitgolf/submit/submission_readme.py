"""README.md of a submission: results, budgets, audit, lineage, data, commands and settings, all from the runs.

Sentences are fixed and contain no numbers. Numbers are in tables and come from the same values as submission.json.
"""

from collections.abc import Iterable, Sequence

from bitgolf.config import Config
from bitgolf.data.prepared import read_manifest
from bitgolf.foreign import harmless
from bitgolf.report.comparison.scored_runs import config_differences
from bitgolf.submit.lineage import lineage
from bitgolf.submit.seed_log import step_milliseconds
from bitgolf.submit.submission import Submission
from bitgolf.submit.submission_json import compliance, moments

_DASH = "–"


def submission_readme(submission: Submission) -> str:
    parts = [
        f"# {submission.name}",
        *_warning(submission),
        submission.runs[0].config.description,
        "Everything on this page is generated from the runs: their logs, results and resolved configuration.",
        "## Results",
        _results(submission),
        "Bits per byte and nats per token of the headline method over the whole validation split; standard "
        "deviations are those of a sample.",
        "## Bytes and seconds",
        _budgets(submission),
        "Training seconds include everything that reads training text, also calibration. Evaluation seconds are from "
        "opening the artifact to the last score.",
        "## Checks",
        _checks(submission),
        "## Components",
        table(("component", "settings", "source"), lineage(submission.runs[0].config)),
        "Numbers of sources are pull requests of openai/parameter-golf.",
        "## Data",
        _data(submission),
        "## Running it",
        _commands(submission),
        "## Files",
        _files(submission),
        "## Settings",
        "Settings that differ from the defaults of the program:",
        _settings(submission.runs[0].config),
    ]
    return harmless("\n\n".join(part for part in parts if part) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]], numeric_from: int | None = None) -> str:
    """A Markdown table. Columns from `numeric_from` on are aligned right."""
    rule = ["---:" if numeric_from is not None and i >= numeric_from else "---" for i in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _warning(submission: Submission) -> list[str]:
    return ["> **Written with `--force`.** " + "; ".join(submission.doubts) + "."] if submission.doubts else []


def _results(submission: Submission) -> str:
    runs = submission.runs
    first, headline = runs[0].config.score.methods[0], runs[0].scored.method
    header = (
        "seed", "steps", "ms per step", f"float, {first}, bpb", f"packed, {first}, bpb", f"**{headline}, bpb**",
        f"{headline}, nats",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for run in runs:
        before = f"{run.float_result['bpb']:.8f}" if run.float_result else _DASH
        scores = (run.scored.score["methods"][first]["bpb"], run.scored.bpb, run.scored.loss_nats)
        steps = (f"{int(run.end['step']):,}", f"{step_milliseconds(run):.2f}")
        rows.append((run.seed, *steps, before, *(f"{score:.8f}" for score in scores)))
    bpb, bpb_std = moments("val_bpb", {run.seed: run.scored.bpb for run in runs})
    loss, loss_std = moments("val_loss", {run.seed: run.scored.loss_nats for run in runs})
    rows.append(("**mean**", "", "", "", "", f"**{bpb:.8f}**", f"**{loss:.8f}**"))
    if bpb_std is not None and loss_std is not None:
        rows.append(("std", "", "", "", "", f"{bpb_std:.8f}", f"{loss_std:.8f}"))
    return table(header, rows, 1)


def _budgets(submission: Submission) -> str:
    header = (
        "seed", "model bytes", "code bytes", "total bytes", "training s", "evaluation s", "trained on", "scored on",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for run in submission.runs:
        sizes = (run.model_bytes, submission.code_bytes, submission.total_bytes(run))
        seconds = (run.seconds["train_seconds"], run.seconds["eval_seconds"])
        numbers = (*(f"{size:,}" for size in sizes), *(f"{value:.2f}" for value in seconds))
        rows.append((run.seed, *numbers, run.trained_on, run.scored_on))
    limits = submission.runs[0].config.budget
    allowed = (f"{limits.artifact_bytes:,}", f"{limits.train_seconds:g}", f"{limits.eval_seconds:g}")
    rows.append(("allowed", "", "", *allowed, "", ""))
    return table(header, rows, 1)


def _checks(submission: Submission) -> str:
    rows = [(name.replace("_", " "), "yes" if holds else "**no**") for name, holds in compliance(submission).items()]
    text = table(("over all seeds", ""), rows)
    counts = []
    for run in submission.runs:
        if run.audit is None:
            counts.append((run.seed, _DASH, _DASH, _DASH, "not audited"))
            continue
        by_verdict = run.audit.get("counts", {})
        noted = [f"{check['name']}: {check['reason']}" for check in run.audit["checks"] if check["verdict"] != "PASS"]
        numbers = (by_verdict.get(verdict, 0) for verdict in ("PASS", "FAIL", "NOT RUN"))
        counts.append((run.seed, *numbers, "; ".join(noted) or ("quick audit" if run.audit.get("quick") else "")))
    return text + "\n\n" + table(("seed", "checks passed", "failed", "not run", "which"), counts)


def _data(submission: Submission) -> str:
    run = submission.runs[0]
    manifest = read_manifest(run.path / "data")
    text, score = run.scored.text, run.scored.score
    rows = [
        ("source", f"`{run.config.data.source_text}`"),
        ("tokenizer", f"{manifest['tokenizer']['name']}, sha256 `{text.tokenizer_sha256}`"),
        ("vocabulary", f"{run.config.model.vocab_size:,}"),
        ("byte accounting", text.accounting),
        ("validation documents", f"{text.documents:,}"),
        ("validation tokens", f"{score['val_tokens']:,}"),
        ("validation bytes", f"{score['val_bytes']:,}"),
        ("validation documents, sha256", f"`{text.val_hashes}`"),
        ("training documents, sha256", f"`{text.train_hashes}`"),
    ]
    return table(("", ""), rows)


def _commands(submission: Submission) -> str:
    run = submission.runs[0]
    world = int(run.start["world_size"])
    launch = "python" if world == 1 else f"torchrun --standalone --nproc_per_node={world}"
    lines = [
        "pip install -r requirements.txt",
        *(f"{launch} train_gpt.py --data DATA --out OUT/{r.seed} --seed {r.seed}" for r in submission.runs),
    ]
    return (
        "```\n" + "\n".join(lines) + "\n```\n\n"
        "`DATA` is a directory made by `bitgolf prepare`. `--stage train`, `pack` or `score` runs one stage on the "
        "files in `OUT`. `--section.key value` changes a setting. `python source/train_gpt.py` is the same program, "
        "readable and with the messages of all errors."
    )


def _files(submission: Submission) -> str:
    rows = [
        ("`train_gpt.py`", "the program, the only file that counts as code"),
        ("`source/`", "the same program, readable; not needed to run"),
        ("`submission.json`", "results in the schema of the challenge"),
        ("`requirements.txt`", "packages and versions"),
        *((f"`train_seed{run.seed}.log`", f"configuration and log of seed {run.seed}") for run in submission.runs),
    ]
    return table(("file", "what it is"), rows)


def _settings(config: Config) -> str:
    different = config_differences([config, Config()])
    rows = [(f"`{key}`", f"`{values[0]}`", f"`{values[1]}`") for key, values in different.items() if key != "seed"]
    return table(("setting", "here", "default"), rows)
