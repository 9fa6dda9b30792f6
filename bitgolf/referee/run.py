"""Audit of a submission folder: every check that its files allow, in one verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitgolf.audit.verdict import Check, Rule, Verdict
from bitgolf.errors import RunError
from bitgolf.referee import conduct, limits, logs, numbers
from bitgolf.referee.folder import SCRIPT, Submission
from bitgolf.run.progress import Progress, silent

ARTIFACT_BYTES, TRAIN_SECONDS, EVAL_SECONDS = 16_000_000, 600.0, 600.0


def is_submission(path: Path) -> bool:
    """Whether a folder looks like a submission: it has a submission.json or a script, and is no run of bitgolf."""
    return any((path / name).is_file() for name in ("submission.json", SCRIPT)) and not (path / "config.toml").is_file()


def audit_submission(
    path: Path,
    *,
    artifact_bytes: float = ARTIFACT_BYTES,
    train_seconds: float = TRAIN_SECONDS,
    eval_seconds: float = EVAL_SECONDS,
    progress: Progress = silent,
) -> Verdict:
    """Make every check on a submission folder. Nothing in it is executed, and nothing is written.

    Args:
        path: the folder.
        artifact_bytes, train_seconds, eval_seconds: the caps; by default those of the challenge.
        progress: called with stage "audit" and the number of checks made.
    Raises:
        RunError: the folder is no submission.
    """
    if not is_submission(path):
        raise RunError(f"{path} is no submission: it has neither submission.json nor {SCRIPT}")
    sub = Submission(path)
    todo: list[tuple[Rule, Callable[[], Check]]] = [
        (limits.FILES, lambda: limits.files(sub)),
        (limits.SCHEMA, lambda: limits.schema(sub)),
        (limits.BYTES, lambda: limits.artifact_bytes(sub, artifact_bytes)),
        (limits.TRAIN_CLOCK, lambda: limits.train_clock(sub, train_seconds)),
        (limits.EVAL_CLOCK, lambda: limits.eval_clock(sub, eval_seconds)),
        (limits.TOKENS, lambda: limits.tokens_scored(sub)),
        (logs.IDENTITY, lambda: logs.identity(sub)),
        (numbers.SEEDS, lambda: numbers.seeds(sub)),
        (numbers.NUMBERS, lambda: numbers.numbers_agree(sub)),
        (logs.DISTINCT, lambda: logs.logs_distinct(sub)),
        (logs.ONE_CONFIGURATION, lambda: logs.one_configuration(sub)),
        (conduct.LOGGED_SOURCE, lambda: conduct.logged_source(sub)),
        (conduct.SETTINGS_READ, lambda: conduct.settings_read(sub)),
        (conduct.CLAIMS, lambda: conduct.claims_agree(sub)),
        (conduct.SELF_CONTAINED, lambda: conduct.self_contained(sub)),
        (conduct.SPLIT, lambda: conduct.split(sub)),
        (conduct.UNSEEN, lambda: conduct.validation_unseen(sub)),
        (conduct.CAUSAL, lambda: conduct.causal(sub)),
        (conduct.COMPLETE, lambda: conduct.distribution(sub)),
        (conduct.ONE_PASS, lambda: conduct.single_pass(sub)),
    ]
    made: list[Check] = []
    for done, (rule, check) in enumerate(todo):
        progress("audit", done, len(todo), rule.name)
        made.append(rule.attempt(check))
    progress("audit", len(todo), len(todo))
    return Verdict(tuple(made))
