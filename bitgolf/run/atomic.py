"""Atomic writes: a reader sees the old file or the new one, never half of one.

A file is written beside its destination under a temporary name, flushed to disk and renamed. When anything
fails on the way (a full disk, an interrupt) the temporary file is removed and the earlier file stays as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(destination: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `destination`; rename it over `destination` when the block succeeds.

    Raises whatever the block or the file system raises (`OSError` with ENOSPC on a full disk), after removing
    the temporary file; `destination` is then untouched.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(destination: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `destination` atomically."""
    with atomic_path(destination) as temporary:
        temporary.write_bytes(data)


def write_text(destination: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `destination` atomically."""
    write_bytes(destination, text.encode("utf-8"))


def write_json(destination: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `destination` atomically. NaN and infinity are refused."""
    write_text(destination, json.dumps(value, indent=2, allow_nan=False) + "\n")
