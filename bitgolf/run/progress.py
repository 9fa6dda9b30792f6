"""How the library reports progress: through a callback that it is handed, never by printing.

`Progress` is what every long stage takes; the command line passes one that draws (rich bars on a terminal,
plain log lines elsewhere), tests and library users pass nothing.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as `progress(stage, done, total, note)`; `done` and `total` share one unit, `total` 0 = unknown."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None: ...


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """The progress callback that reports nothing."""
