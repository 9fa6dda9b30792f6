"""Progress on the command line: bars on a terminal, log lines elsewhere, nothing on ranks other than 0.

Stages report through a `Progress` callback, and `ConsoleProgress` is the one that draws. A stage shorter than two
seconds is not shown. A longer one is shown even if it reports nothing, for example while a compiler works.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitgolf.foreign import printable

_FIRST_SECONDS = 2.0  # shorter stages are not shown
_LINE_SECONDS = 10.0  # between two plain log lines of one stage


@dataclass
class _Stage:
    """The last report of one stage."""

    name: str
    started: float
    timer: threading.Timer
    done: float = 0.0
    total: float = 0.0
    note: str = ""
    shown_at: float = float("-inf")
    ended: bool = False
    bar: TaskID | None = None


class ConsoleProgress:
    """A progress callback for one command. Use it as a context manager."""

    def __init__(self, console: Console, enabled: bool) -> None:
        self.console, self.enabled = console, enabled
        self._stages: dict[str, _Stage] = {}
        self._display: Progress | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> ConsoleProgress:
        if self.enabled and self.console.is_terminal:
            self._display = Progress(
                TextColumn("{task.description:<18}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
            )
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for stage in self._stages.values():
                stage.ended = True
                stage.timer.cancel()
        if self._display is not None:
            self._display.stop()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        if not self.enabled:
            return
        with self._lock:
            now = time.monotonic()
            state = self._stages.get(stage)
            if state is None:
                timer = threading.Timer(_FIRST_SECONDS, self._reveal, [stage])
                timer.daemon = True
                state = self._stages[stage] = _Stage(stage, now, timer)
                timer.start()
            elif state.ended and (total and done >= total):
                return
            state.done, state.total, state.note = done, total, printable(note)
            state.ended = bool(total and done >= total)
            if now - state.started >= _FIRST_SECONDS:
                self._show(state, now)

    def _reveal(self, stage: str) -> None:
        """Show a stage that runs on without reports. The timer calls it."""
        with self._lock:
            state = self._stages[stage]
            if not state.ended and state.bar is None and state.shown_at == float("-inf"):
                self._show(state, time.monotonic())

    def _show(self, state: _Stage, now: float) -> None:
        if self._display is not None:
            if state.bar is None:
                state.bar = self._display.add_task(state.name, total=state.total or None, note=state.note)
            self._display.update(state.bar, completed=state.done, total=state.total or None, note=state.note)
        elif state.ended or now - state.shown_at >= _LINE_SECONDS:
            state.shown_at = now
            share = f"{state.done / state.total:4.0%} " if state.total else ""
            line = f"[{state.name}] {share}{now - state.started:.0f} s {state.note}"
            with suppress(OSError):  # standard error is full or closed, which is no reason to end the work
                self.console.print(line, markup=False, highlight=False)
