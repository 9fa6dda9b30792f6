"""What training writes down while it runs: `train.jsonl` (one event a line) and `train.log` (the same as text).

Events: start, step, late, checkpoint, resume, branch; after the steps replay, choice, calibration, curvature, end.
Metrics travel from the device with a lag of a few steps, so that reading them never stalls the GPU.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitgolf.errors import RunError, TrainingDiverged
from bitgolf.run import atomic

log = logging.getLogger(__name__)

_AFTER_THE_STEPS = ("replay", "choice", "calibration", "curvature", "end")


class TrainLog:
    """Appends events to `train.jsonl` and `train.log` of a run; does nothing on ranks other than 0."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.events, self.text, self.enabled = folder / "train.jsonl", folder / "train.log", enabled

    def begin(self, resumed_step: int | None, history: Path | None = None) -> None:
        """Start new files, or go on after a checkpoint: what was logged after its step is dropped.

        Args:
            resumed_step: step of the checkpoint; None = a new run.
            history: the `train.jsonl` to go on from when it is not this run's own (a branch starts with its trunk's).
        """
        if not self.enabled:
            return
        if resumed_step is None:
            self.events.write_text("")
            self.text.write_text("")
            return
        kept = [
            event
            for event in read_events(history or self.events)
            if event.get("step", 0) <= resumed_step and event["event"] not in _AFTER_THE_STEPS
        ]
        atomic.write_text(self.events, "".join(json.dumps(event) + "\n" for event in kept))
        atomic.write_text(self.text, "".join(_as_text(event) + "\n" for event in kept))

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        if not self.enabled:
            return
        entry = {"event": event, **values}
        with self.events.open("a") as handle:
            handle.write(json.dumps(entry) + "\n")
        with self.text.open("a") as handle:
            handle.write(_as_text(entry) + "\n")
        log.info("%s", _as_text(entry))


def read_events(path: Path) -> list[dict[str, Any]]:
    """Events of a `train.jsonl`; a last line cut short by an interrupt is left out.

    Raises RunError when it holds anything but events.
    """
    events = []
    again = f"train again with `bitgolf train {path.parent}`"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: {error}; {again}") from error
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            break
        if not isinstance(event, dict) or "event" not in event:
            raise RunError(f"{path} is damaged: line {number} is no event; {again}")
        events.append(event)
    return events


def _as_text(entry: dict[str, Any]) -> str:
    parts = []
    for key, value in entry.items():
        if key != "event":
            parts.append(f"{key}:{value:.6g}" if isinstance(value, float) else f"{key}:{value}")
    return f"[{entry['event']}] " + " ".join(parts)


class MetricsPipe:
    """Vectors of metrics on their way from the device, read `lag` steps late.

    Each vector is [elapsed seconds on rank 0, loss, gradient norm of every parameter.., global norm].
    """

    def __init__(self, device: torch.device, names: list[str], lag: int = 2) -> None:
        self.device, self.names, self.lag = device, names, lag
        self._flight: deque[tuple[int, Tensor, Any]] = deque()

    def push(self, step: int, metrics: Tensor) -> list[tuple[int, list[float]]]:
        """Send one vector off; return those that are due as (step, values), oldest first."""
        event = None
        if self.device.type == "cuda":
            host = torch.empty(metrics.shape, dtype=metrics.dtype, pin_memory=True)
            host.copy_(metrics, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            metrics = host
        self._flight.append((step, metrics, event))
        return self._take(self.lag)

    def drain(self) -> list[tuple[int, list[float]]]:
        """Wait for everything in flight."""
        return self._take(0)

    def _take(self, left: int) -> list[tuple[int, list[float]]]:
        due = []
        while len(self._flight) > left:
            step, metrics, event = self._flight.popleft()
            if event is not None:
                event.synchronize()
            values = metrics.tolist()
            self._check(step, values)
            due.append((step, values))
        return due

    def _check(self, step: int, values: list[float]) -> None:
        _, loss, *norms, total = values
        if math.isfinite(loss) and math.isfinite(total):
            return
        broken = [name for name, norm in zip(self.names, norms, strict=True) if not math.isfinite(norm)]
        where = (
            f"gradients of {len(broken)} of {len(self.names)} tensors, first {broken[0]!r}" if broken else "the loss"
        )
        raise TrainingDiverged(
            f"step {step}: loss {loss}, not finite in {where}; lower the learning rates, set "
            "train.grad_clip, or continue from the last checkpoint with --resume"
        )
