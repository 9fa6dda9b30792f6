"""Temporary folders of an audit, which do not outlive it for long.

A folder is removed when its `with` block ends. An auditor that is killed cannot do that. So each holds a lock on its
folders, which the kernel releases when the process ends, and every later audit removes the folders that nobody holds.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_YOUNG_SECONDS = 60  # a younger folder may belong to an audit that is about to lock it


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new temporary folder whose name begins with `prefix`."""
    if sys.platform == "win32":
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            yield Path(folder)
        return
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.lstat().st_mtime > _YOUNG_SECONDS and not left.is_symlink():
                with _lock(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, _lock(Path(folder)):
        yield Path(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a folder. Raises BlockingIOError if another process holds it."""
    import fcntl  # not on Windows

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
