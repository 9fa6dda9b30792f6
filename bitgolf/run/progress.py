"""The progress callback. The library never prints; every long stage takes a `Progress` and calls it.

The command line passes a callback that draws a bar on a terminal and writes log lines elsewhere. Other callers usually
leave the default, `silent`.
"""

from typing import Protocol


class Progress(Protocol):
    """Called as `progress(stage, done, total, note)`. `done` and `total` have the same unit; `total` 0 = unknown."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None: ...


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """The progress callback that does nothing."""
