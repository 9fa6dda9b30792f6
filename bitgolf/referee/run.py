"""Audit of a submission folder, ours or a foreign one: every check that its files allow, in one verdict.

Importing a module of checks registers them.
"""

from pathlib import Path

from bitgolf.audit.verdict import Verdict
from bitgolf.config import BudgetConfig
from bitgolf.errors import RunError
from bitgolf.referee import conduct, form, limits, logs, numbers, whole_split
from bitgolf.referee.folder import SCRIPT, Submission, submission_checks
from bitgolf.run.progress import Progress, silent

submission_checks.arrange([form, limits, whole_split, numbers, logs, conduct])


def is_submission(path: Path) -> bool:
    """Whether a folder looks like a submission: it has a submission.json or a script, and is no run of bitgolf."""
    return any((path / name).is_file() for name in ("submission.json", SCRIPT)) and not (path / "config.toml").is_file()


def audit_submission(path: Path, caps: BudgetConfig | None = None, *, progress: Progress = silent) -> Verdict:
    """Make every check on a submission folder. Nothing in it is executed, and nothing is written.

    `caps` are the limits that it is held to; None = those of the challenge (docs/rules.md, section 1).
    Raises RunError if the folder is no submission.
    """
    if not is_submission(path):
        raise RunError(f"{path} is no submission: it has neither submission.json nor {SCRIPT}")
    return submission_checks.make(Submission(path, caps or BudgetConfig()), progress=progress)
