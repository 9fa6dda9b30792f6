"""Atomic writes: a reader sees the earlier file or the complete new one.

A file or directory is written beside its destination under a temporary name and then renamed. If writing fails (a full
disk, an interrupt), the temporary one is removed and the destination stays as it was.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


@contextmanager
def naming(destination: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """Name `destination` in errors of the block about a full disk, which name no file, and in those of `temporary`."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno in _NO_ROOM if named is None else temporary and Path(named).is_relative_to(temporary):
            raise OSError(error.errno, error.strerror, str(destination)) from error
        raise


@contextmanager
def atomic_path(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `destination`, and rename it over `destination` if the block succeeds.

    The new file has the permissions of any file that this process creates (0666 less the umask), also if a library
    wrote it with fewer. Errors of the block and of the file system (`OSError` with ENOSPC on a full disk) are raised
    after the temporary file is removed.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with naming(target, temporary):
            temporary.unlink(missing_ok=True)
            temporary.touch(exist_ok=False)  # never through a link that somebody put there
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            temporary.chmod(mode)
            with temporary.open("r+b") as handle:  # Windows flushes only files that are open for writing
                os.fsync(handle.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(destination: Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside `destination`, and rename it to `destination` if the block succeeds.

    `destination` must not exist, or must be an empty directory. Temporary directories of killed processes are removed.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    for stale in destination.parent.glob(f".{escape(destination.name)}.*.partial"):
        if not _process_lives(stale.name.split(".")[-2]):
            shutil.rmtree(stale)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        with naming(destination, temporary):
            temporary.mkdir()
            yield temporary
            temporary.replace(destination)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def entries(directory: Path) -> set[str]:
    """Names in `directory`, without the temporary ones of this module."""
    names = {entry.name for entry in directory.iterdir()}
    return {name for name in names if not re.fullmatch(r"\..+\.\d+\.(tmp|partial)", name)}


def _process_lives(pid: str) -> bool:
    """Whether another process `pid` may be alive; True for text that is not a number, and on Windows.

    An earlier process of the number that this one has is dead, as it is often in containers.
    """
    if pid == str(os.getpid()):
        return False
    if os.name == "nt" or not pid.isdigit():  # os.kill(pid, 0) would end the process on Windows
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_bytes(destination: str | os.PathLike[str], data: bytes) -> None:
    with atomic_path(destination) as temporary:
        temporary.write_bytes(data)


def write_text(destination: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `destination` atomically."""
    write_bytes(destination, text.encode("utf-8"))


def write_json(destination: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `destination` atomically. Raises ValueError for NaN and infinity."""
    write_text(destination, json.dumps(value, indent=2, allow_nan=False) + "\n")
