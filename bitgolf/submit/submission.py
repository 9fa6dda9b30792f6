"""The values that every file of a submission is made from: the runs, the packed program and the labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bitgolf.bundle.single_file import Bundle, make_bundle
from bitgolf.errors import ConfigError
from bitgolf.referee.form import impossible_date
from bitgolf.submit.seed_runs import SeedRun

TRACKS = ("10min_16mb", "non_record_16mb")


@dataclass(frozen=True)
class Labels:
    """What the runs do not say."""

    author: str = ""
    github_id: str = ""
    name: str = ""  # empty = that of the configuration
    track: str = ""  # empty = by hardware and budgets
    date: datetime | None = None  # None = now


@dataclass(frozen=True)
class Submission:
    """Everything that the files of a submission are made from."""

    runs: tuple[SeedRun, ...]  # by seed
    bundle: Bundle  # train_gpt.py
    doubts: tuple[str, ...]  # why it should not have been written (`--force`); empty for a sound one
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


def describe(runs: Sequence[SeedRun], doubts: Sequence[str], labels: Labels) -> Submission:
    """The submission of `runs` under these labels, with its program packed. Raises ConfigError for a wrong label."""
    config = runs[0].config
    if labels.track and labels.track not in TRACKS:
        raise ConfigError(f"track {labels.track!r} is not one of {', '.join(TRACKS)}")
    date = labels.date or datetime.now(UTC).replace(microsecond=0)
    if reason := impossible_date(date.isoformat()):
        raise ConfigError(f"{reason}; set the clock of this machine, or give another --date")
    budget = config.budget
    official = budget.train_seconds <= 600 and budget.eval_seconds <= 600 and budget.artifact_bytes <= 16_000_000
    eight_h100 = all(run.start["world_size"] == 8 and "H100" in str(run.start["device"]) for run in runs)
    return Submission(
        runs=tuple(runs),
        bundle=make_bundle(config),
        doubts=tuple(doubts),
        author=labels.author,
        github_id=labels.github_id,
        name=labels.name or config.name,
        track=labels.track or TRACKS[0 if official and eight_h100 else 1],
        date=date,
    )
