"""`bitgolf submit`: the folder that the challenge asks for, from one finished run a seed.

    train_gpt.py          the program in one file, the code that counts (see bitgolf.bundle)
    source/               the same program, readable; `python source/train_gpt.py` runs it
    submission.json       results in the schema in use
    README.md             tables, settings and lineage, generated
    train_seed<N>.log     what each run wrote
    requirements.txt      third-party packages and their versions

Nothing in it is typed by hand: every number comes from the run directories. The folder appears when it is complete,
or not at all.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bitgolf.bundle.readable_source import readable_source
from bitgolf.bundle.single_file import Bundle, make_bundle
from bitgolf.errors import BudgetError, ConfigError, RunError
from bitgolf.run.progress import Progress, silent
from bitgolf.submit.requirements import requirements_text
from bitgolf.submit.seed_log import seed_log
from bitgolf.submit.seed_runs import SeedRun, doubts, read_seed_runs
from bitgolf.submit.submission_json import submission_json
from bitgolf.submit.submission_readme import submission_readme

log = logging.getLogger(__name__)

TRACKS = ("10min_16mb", "non_record_16mb")


@dataclass(frozen=True)
class Labels:
    """What no run knows: who submits, under which name, when, to which track."""

    author: str = ""
    github_id: str = ""
    name: str = ""  # empty: that of the configuration
    track: str = ""  # empty: by the budgets of the configuration
    date: datetime | None = None  # None: now


@dataclass(frozen=True)
class Submission:
    """Everything that the texts of a submission are made from.

    Attributes:
        runs: by seed.
        bundle: train_gpt.py.
        doubts: what it was written in spite of (`--force`); empty for a sound one.
    """

    runs: tuple[SeedRun, ...]
    bundle: Bundle
    doubts: tuple[str, ...]
    author: str
    github_id: str
    name: str
    track: str
    date: datetime

    @property
    def code_bytes(self) -> int:
        """Of train_gpt.py."""
        return len(self.bundle.data)

    def total_bytes(self, run: SeedRun) -> int:
        """Artifact and code of one seed."""
        return run.model_bytes + self.code_bytes

    @property
    def folder_name(self) -> str:
        """`YYYY-MM-DD_Name`."""
        return f"{self.date:%Y-%m-%d}_{re.sub(r'[^A-Za-z0-9.]+', '_', self.name).strip('_') or 'submission'}"


def submit(
    paths: Sequence[Path],
    out: Path,
    *,
    num_seeds: int = 3,
    force: bool = False,
    labels: Labels | None = None,
    progress: Progress = silent,
) -> Path:
    """Write the submission of finished runs below `out` and return its folder.

    Args:
        paths: run directories, one a seed.
        out: folder of submissions; made when it does not exist.
        num_seeds: at least this many.
        force: write it even if audits are missing or failed; README and json then say so.
        labels: author, name, track and date.
    Raises:
        ConfigError: labels that cannot be, or a run given twice.
        RunError: runs that cannot be submitted (together), audits that are missing or failed, or other content where
            the folder would be.
        BudgetError: an artifact and the code together exceed the cap.
    """
    progress("submit", 0, 3, "reading runs")
    runs = read_seed_runs(paths, num_seeds)
    found = doubts(runs)
    if found and not force:
        raise RunError(
            f"not ready to be submitted: {'; '.join(found)}. Run `bitgolf audit RUN` and mend what it finds, or "
            "write the submission anyway, marked, with --force"
        )
    progress("submit", 1, 3, "packing the program")
    submission = describe(runs, found, labels or Labels())
    for run in runs:
        total, cap = submission.total_bytes(run), run.config.budget.artifact_bytes
        if total > cap:
            raise BudgetError(
                f"seed {run.seed} does not fit: {run.model_bytes:,} bytes of model + {submission.code_bytes:,} of code "
                f"= {total:,}, {total - cap:,} over the cap of {cap:,}; pack it again (`bitgolf pack {run.path}`)"
            )
    if not (submission.author and submission.github_id):
        log.warning("author or github_id is empty in submission.json; give --author and --github-id")
    progress("submit", 2, 3, "writing")
    folder = write_folder(out / submission.folder_name, contents(submission))
    progress("submit", 3, 3)
    return folder


def describe(runs: Sequence[SeedRun], found: Sequence[str], labels: Labels) -> Submission:
    """The submission of `runs` under these labels, with its program packed. Raises ConfigError for a wrong label."""
    config = runs[0].config
    if labels.track and labels.track not in TRACKS:
        raise ConfigError(f"track {labels.track!r} is not one of {', '.join(TRACKS)}")
    budget = config.budget
    official = budget.train_seconds <= 600 and budget.eval_seconds <= 600 and budget.artifact_bytes <= 16_000_000
    eight_h100 = all(run.start["world_size"] == 8 and "H100" in str(run.start["device"]) for run in runs)
    return Submission(
        runs=tuple(runs),
        bundle=make_bundle(config),
        doubts=tuple(found),
        author=labels.author,
        github_id=labels.github_id,
        name=labels.name or config.name,
        track=labels.track or TRACKS[0 if official and eight_h100 else 1],
        date=labels.date or datetime.now(UTC).replace(microsecond=0),
    )


def contents(submission: Submission) -> dict[str, bytes]:
    """Every file of the submission by its path inside the folder."""
    texts = {
        "submission.json": submission_json(submission),
        "README.md": submission_readme(submission),
        "requirements.txt": requirements_text(submission.bundle, submission.runs),
    }
    for run in submission.runs:
        texts[f"train_seed{run.seed}.log"] = seed_log(run, submission.code_bytes)
    texts |= {f"source/{name}": text for name, text in readable_source(submission.bundle).items()}
    return {"train_gpt.py": submission.bundle.data} | {name: text.encode("utf-8") for name, text in texts.items()}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write a whole folder at once: it has its name when everything in it is on disk, and not before.

    A folder that already holds exactly these files is left as it is. Raises RunError when it holds anything else.
    """
    if folder.exists():
        there = {str(p.relative_to(folder)): p for p in folder.rglob("*") if not p.is_dir()} if folder.is_dir() else {}
        if there.keys() == files.keys() and all(there[name].read_bytes() == data for name, data in files.items()):
            return folder
        raise RunError(f"{folder} exists with other content; remove it, or choose another --name or --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, data in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder
