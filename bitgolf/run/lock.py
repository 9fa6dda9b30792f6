"""The lock of a directory: one process at a time writes to a run directory or a data directory.

The lock is a `filelock.FileLock`, which the operating system releases when its process ends, however it ends. A second
file names the owner (process, host, stage, start time), so the refusal can name it. Both files are
removed at the end. A lock can be taken again by the thread that has it: `bitgolf run` holds it while its stages take
it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bitgolf.errors import ForeignError, RunError
from bitgolf.foreign import as_object, printable, read_json

LOCK = ".lock"
OWNER = ".lock-owner.json"
LOCK_FILES = frozenset((LOCK, OWNER))
_MAX_OWNER_BYTES = 4_096


@contextmanager
def locked_directory(directory: Path, stage: str, prefix: str = "") -> Iterator[None]:
    """Lock `directory` for the length of the block.

    Args:
        directory: an existing directory that holds the lock files.
        stage: the work, for the refusal of others.
        prefix: first part of the names of the lock files; with it one directory can hold several locks.

    Raises:
        RunError: another process has the lock. The message names its process, host, stage and start time.
    """
    lock = FileLock(directory / f"{prefix}{LOCK}", timeout=0, is_singleton=True)
    owner = directory / f"{prefix}{OWNER}"
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(f"{_in_use(directory, prefix, owner)}; wait until it ends, or stop it") from error
    try:
        if lock.lock_counter == 1:
            record = {"pid": os.getpid(), "host": platform.node(), "stage": stage, "since": time.strftime("%F %T %z")}
            with suppress(OSError):  # a full disk: the lock holds without a name
                owner.write_text(json.dumps(record))
        yield
    finally:
        if lock.lock_counter == 1:
            for path in (owner, Path(lock.lock_file)):
                with suppress(OSError):  # Windows does not remove open files
                    path.unlink()
        lock.release()


def _in_use(directory: Path, prefix: str, owner: Path) -> str:
    """A sentence about the process that has the lock."""
    place = directory / prefix.strip(".") if prefix else directory
    try:
        record = as_object(read_json(owner, _MAX_OWNER_BYTES), "the owner")
    except (FileNotFoundError, ForeignError):
        return f"{place} is in use by another process"
    pid, host, stage, since = (printable(str(record.get(key, "unknown"))) for key in ("pid", "host", "stage", "since"))
    return f"{place} is in use by process {pid} on {host} (stage {stage}, since {since})"
