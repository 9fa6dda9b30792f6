"""The lock of a directory: one process at a time writes to a run directory or a data directory.

The lock is a `filelock.FileLock`, which the operating system releases when its process ends, however it ends. A second
file names the owner (process, host, stage, start time), so the refusal can name it. Both files are
removed at the end. A lock can be taken again by the thread that has it: `bitgolf run` holds it while its stages take
it.
"""

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
from bitgolf.run.atomic import write_text

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
    path, owner = directory / f"{prefix}{LOCK}", directory / f"{prefix}{OWNER}"
    if path.is_symlink():  # the directory may be somebody else's, and opening the lock would empty what it leads to
        raise RunError(f"{path} is a link to another file, not a lock; remove it")
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(f"{_in_use(directory, prefix, owner)}; wait until it ends, or stop it") from error
    try:
        if lock.lock_counter == 1:
            record = {"pid": os.getpid(), "host": platform.node(), "stage": stage, "since": time.strftime("%F %T %z")}
            with suppress(OSError):  # a full disk: the lock holds without a name
                write_text(owner, json.dumps(record))
        yield
    finally:
        if lock.lock_counter == 1:
            for file in (owner, path):
                with suppress(OSError):  # Windows does not remove open files
                    file.unlink()
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
