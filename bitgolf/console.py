"""What the command line shows while it works: bars on a terminal, log lines elsewhere, nothing on other ranks.

The library reports through a `Progress` callback; `ConsoleProgress` is the one that draws.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_FIRST_SECONDS = 2.0  # stages shorter than this stay silent
_LINE_SECONDS = 10.0  # between two plain log lines of one stage


class ConsoleProgress:
    """A progress callback for one command; use as a context manager."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self.console, self.enabled = console, enabled
        self.fancy = enabled and console.is_terminal
        self._bars: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._display: Progress | None = None

    def __enter__(self) -> ConsoleProgress:
        if self.fancy:
            self._display = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if not self.enabled:
            return
        now = time.monotonic()
        started = self._started.setdefault(stage, now)
        if now - started < _FIRST_SECONDS:
            return
        if self._display is not None:
            if stage not in self._bars:
                self._bars[stage] = self._display.add_task(stage, total=total or None, note=note)
            self._display.update(self._bars[stage], completed=done, total=total or None, note=note)
        elif now - self._said.get(stage, 0.0) >= _LINE_SECONDS or (total and done >= total):
            self._said[stage] = now
            share = f"{done / total:4.0%} " if total else ""
            self.console.print(f"[{stage}] {share}{now - started:.0f} s {note}", markup=False, highlight=False)
