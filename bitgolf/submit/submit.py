"""`bitgolf submit`: the folder that the challenge asks for, from finished runs, one per seed.

    train_gpt.py          the program in one file, the code that counts (see bitgolf.bundle)
    source/               the same program, readable; `python source/train_gpt.py` runs it
    submission.json       results in the schema of the challenge's records
    README.md             tables, settings and lineage
    train_seed<N>.log     what each run wrote
    requirements.txt      third-party packages and their versions

All numbers come from the run directories. The folder appears when it is complete, or not at all.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitgolf.bundle.readable_source import readable_source
from bitgolf.errors import BudgetError, RunError
from bitgolf.run import atomic
from bitgolf.run.progress import Progress, silent
from bitgolf.submit.requirements import requirements_text
from bitgolf.submit.seed_log import seed_log
from bitgolf.submit.seed_runs import doubts_about, read_seed_runs
from bitgolf.submit.submission import Labels, Submission, describe
from bitgolf.submit.submission_json import submission_json
from bitgolf.submit.submission_readme import submission_readme

log = logging.getLogger(__name__)


def submit(
    paths: Sequence[Path],  # run directories, one per seed
    out: Path,  # folder of submissions; made when it does not exist
    *,
    num_seeds: int = 3,  # at least this many
    # write it even if audits are missing or failed. README.md and submission.json then say so.
    force: bool = False,
    labels: Labels | None = None,  # author, name, track and date
    progress: Progress = silent,
) -> Path:
    """Write the submission of finished runs below `out` and return its folder.

    Raises:
        ConfigError: an unknown track, or a run given twice.
        RunError: runs that cannot be submitted together, audits that are missing or failed, or a folder of this name
            with other content.
        BudgetError: an artifact and the code together exceed the cap.
    """
    progress("submit", 0, 3, "reading runs")
    runs = read_seed_runs(paths, num_seeds)
    doubts = [doubt for run in runs for doubt in doubts_about(run)]
    if doubts and not force:
        raise RunError(
            f"not ready to be submitted: {'; '.join(doubts)}. Run `bitgolf audit RUN` and correct what it reports, or "
            "write a submission that says this with --force"
        )
    progress("submit", 1, 3, "packing the program")
    submission = describe(runs, doubts, labels or Labels())
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
    """Write a whole folder under a temporary name, then rename it.

    A folder that already holds exactly these files is left as it is. Raises RunError if it holds anything else.
    """
    if folder.exists():
        there = {str(p.relative_to(folder)): p for p in folder.rglob("*") if not p.is_dir()} if folder.is_dir() else {}
        if there.keys() == files.keys() and all(there[name].read_bytes() == data for name, data in files.items()):
            return folder
        raise RunError(f"{folder} exists with other content; remove it, or choose another --name or --out")
    with atomic.atomic_directory(folder) as temporary:
        for name, data in files.items():
            atomic.write_bytes(temporary / name, data)
    return folder
