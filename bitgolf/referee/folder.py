"""The files of a submission folder, read once: submission.json, README.md, the script, the logs, and all others.

Nothing in the folder is executed. `submission_checks` collects the checks of such folders.
"""

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bitgolf.audit.registry import Registry
from bitgolf.audit.verdict import MissingEvidence
from bitgolf.config import BudgetConfig
from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import as_object, parse_json, read_bytes
from bitgolf.referee.code import Script, read_script
from bitgolf.referee.log import Log, parse_log
from bitgolf.referee.readme import Readme
from bitgolf.referee.texts import SCRIPT

_SWITCHED_OFF = re.compile(r":\s*(false|0)$")
_MOST_FILE_BYTES = 64 << 20  # a longer file is no log and no script
_MOST_FILES = 10_000
VAL_DOCUMENTS = 50_000  # of the challenge
# Tokenizers of the challenge by a word in the name of their data sets, the more specific first.
TOKENIZERS = ("caseops", "sp8192", "sp4096", "sp1024")


@dataclass(frozen=True)
class Submission:
    """A folder with at least one of a submission's files in it."""

    path: Path
    limits: BudgetConfig = field(
        default_factory=BudgetConfig
    )  # the caps that it is held to; by default those of the challenge

    @cached_property
    def files(self) -> list[Path]:
        """All files at the top of the folder, by name."""
        return sorted(entry for entry in self.path.iterdir() if entry.is_file())

    @cached_property
    def all_files(self) -> list[Path]:
        """All files of the folder, at any depth, without links; at most `_MOST_FILES`."""
        files: list[Path] = []
        for folder, _, names in os.walk(self.path):
            files += [Path(folder, name) for name in names if not Path(folder, name).is_symlink()]
            if len(files) > _MOST_FILES:
                raise DataError(f"{self.path} has more than {_MOST_FILES:,} files")
        return sorted(path for path in files if path.is_file())

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """submission.json. Raises MissingEvidence without it, DataError when it is no JSON object."""
        path = self.path / "submission.json"
        try:
            return as_object(parse_json(self.read(path)), "the document")
        except ForeignError as error:
            raise DataError(f"{path} is damaged: {error}") from error

    @cached_property
    def readme(self) -> Readme:
        """README.md. Raises MissingEvidence without it."""
        return Readme(self.read(self.path / "README.md").decode("utf-8", errors="replace"))

    @cached_property
    def script(self) -> Script:
        """train_gpt.py. Raises MissingEvidence without it."""
        return read_script(SCRIPT, self.read(self.path / SCRIPT))

    @cached_property
    def source(self) -> Script:
        """The script, or where it cannot be read, the source that a log begins with.

        Raises MissingEvidence when there is neither.
        """
        runs_a_string = len(self.script.names) < 20 and {"exec", "eval"} & self.script.names  # that was not unpacked
        if self.script.tree is not None and not runs_a_string:
            return self.script
        for log in self.logs:
            script = Script(f"source in {log.name}", len(log.source), log.source, False)
            if script.tree is not None:
                return script
        raise MissingEvidence(f"{SCRIPT} cannot be read: it is not Python, or packed in a way that is not known here")

    @cached_property
    def logs(self) -> list[Log]:
        """Logs of training, parsed. Raises MissingEvidence without any."""
        named = [path for path in self.files if path.name.startswith("train") and path.suffix in (".log", ".txt")]
        paths = named or [path for path in self.files if path.suffix == ".log"]
        logs = [parse_log(path.name, self.read(path).decode("utf-8", errors="replace")) for path in paths]
        logs = [log for log in logs if log.metrics or log.steps]
        if not logs:
            raise MissingEvidence(f"{self.path} has no training log (train_seed<N>.log) with losses in it")
        return logs

    @property
    def is_record(self) -> bool:
        """Whether it says that it competes in the track of ten minutes."""
        track = str(self.metadata.get("track", ""))
        return "non_record" not in track and "non_record" not in str(self.path) and "unlimited" not in track

    @cached_property
    def tokenizer(self) -> str:
        """Which of the challenge's tokenizers the logs name, "" when none."""
        lines = [line.lower() for log in self.logs for line in list(log.lines.values())[:400]]
        text = "\n".join(line for line in lines if not _SWITCHED_OFF.search(line))
        return next((name for name in TOKENIZERS if name in text), "")

    @cached_property
    def by_seed(self) -> dict[str, list[Log]]:
        """Logs by seed; those without one are left out."""
        logs: dict[str, list[Log]] = {}
        for log in self.logs:
            if log.seed is not None:
                logs.setdefault(log.seed, []).append(log)
        return logs

    def read(self, path: Path) -> bytes:
        """The content of a file of the folder.

        Raises MissingEvidence without it, DataError when it is too large, unreadable or no regular file.
        """
        try:
            return read_bytes(path, _MOST_FILE_BYTES)
        except FileNotFoundError as error:
            raise MissingEvidence(f"{path} is missing") from error
        except ForeignError as error:
            raise DataError(f"{path}: {error}") from error


submission_checks: Registry[Submission] = Registry()
