"""A crafted file or folder, and how to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One crafted input. The functions are module-level, or partials of such, because a child process calls them.

    Attributes:
        name: says what is wrong with the input.
        write: makes the file or folder at a path.
        read: reads it as the program would. A `BitgolfError` is a refusal; any other exception is a fault.
        finished_bytes: memory of the result where the input is sound, for the bound of three times that; 0 = unknown.
    """

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], object]
    finished_bytes: int = 0
