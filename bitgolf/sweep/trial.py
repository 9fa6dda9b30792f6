"""One trial of a sweep: a training in a process of its own, watched while it runs.

The learning curve of the trial is its train loss by percent of the run, read from train.jsonl. A trial that is worse
than the median of the earlier ones at the same percent is stopped.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from bitgolf.errors import RunError
from bitgolf.run.directory import RunDirectory
from bitgolf.train.metrics import read_events

_POLL_SECONDS = 0.5
_PROGRAM = """
from contextlib import suppress
from bitgolf.audit.sandbox import kernel
with suppress(kernel.Unavailable):
    kernel.die_with_parent()
from bitgolf.cli import main
raise SystemExit(main())
"""


class Training(Protocol):
    """A training that runs beside this process, such as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        ...

    def terminate(self) -> None:
        """Stop it."""
        ...

    def wait(self) -> int:
        """Exit status once it has ended."""
        ...


Start = Callable[[Path], Training]
"""Starts the training of a run directory."""


def start_process(run: Path) -> Training:
    """`bitgolf train RUN` in a process of its own, which ends with this one; its output goes to RUN.txt."""
    with run.with_suffix(".txt").open("w") as output:
        command = [sys.executable, "-c", _PROGRAM, "train", str(run), "--anyway"]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def curve(run: RunDirectory) -> dict[int, float]:
    """Train loss in nats per token by percent of the run."""
    events = read_events(run / "train.jsonl") if (run / "train.jsonl").exists() else []
    most, key = (run.config.train.max_steps, "step") if run.config.train.max_steps else (
        run.config.budget.train_seconds, "elapsed_seconds"
    )  # fmt: skip
    return {int(100 * event[key] / most): event["loss"] for event in events if event["event"] == "step"}


def held_out_loss(run: Path) -> float:
    """Least loss of the averages on the held-out training text, nats per token. Raises RunError without one."""
    for event in read_events(run / "train.jsonl"):
        if event["event"] == "choice":
            return float(min(event["losses"].values()))
    raise RunError(f"{run}: the training ended without a loss on held-out text")


def train_trial(run: RunDirectory, start: Start, seconds: float = _POLL_SECONDS) -> Iterator[dict[int, float]]:
    """Train; yields the learning curve so far, again and again. Closing the iterator stops the training.

    Raises RunError if the training fails.
    """
    training = start(run.path)
    try:
        while (status := training.poll()) is None:
            time.sleep(seconds)
            yield curve(run)
    finally:
        if training.poll() is None:
            training.terminate()
            training.wait()
    if status:
        output = run.path.with_suffix(".txt")
        last = output.read_text(errors="replace").splitlines()[-1:] if output.exists() else []
        raise RunError(" ".join([f"{run.path}: the training failed with status {status}", *last]))
    yield curve(run)
