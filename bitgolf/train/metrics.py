"""The training log: `train.jsonl` (one JSON object per line) and `train.log` (the same as text).

Events: start or branch, step, held_out, late, loop, windows, batch, checkpoint, resume; after the steps replay, choice,
calibration, curvature, end.
Metrics are copied from the device a few steps late, so that reading them never makes a GPU wait.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.errors import ForeignError, RunError, TrainingDiverged
from bitgolf.foreign import as_integer, as_number, as_text, conform, parse_json, read_text
from bitgolf.run import atomic
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World
from bitgolf.run.seal import sealed
from bitgolf.train.pace import LAG, Timeline

log = logging.getLogger(__name__)

_NOT_IN_TEXT = ("event", "seal", "settings", "products", "sample")
_AFTER_THE_STEPS = ("replay", "choice", "calibration", "curvature", "end")


_count = partial(as_integer, low=0, high=10**15)
_EVENT = {"event": as_text, "step?": _count, "elapsed_seconds?": as_number, "seal?": as_text}


class TrainLog:
    """Appends events to `train.jsonl` and `train.log` of a run; does nothing on ranks other than 0."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.events, self.text, self.enabled = folder / "train.jsonl", folder / "train.log", enabled
        self.seal = ""  # of the last line
        self.sinks: list[Callable[[str, dict[str, Any]], None]] = []  # get the name and the values of every event

    def begin(self, kept: Sequence[dict[str, Any]] = ()) -> None:
        """Start new files, with the events of `events_until` if a training goes on."""
        if not self.enabled:
            return
        self.seal = kept[-1].get("seal", "") if kept else ""
        atomic.write_text(self.events, "".join(json.dumps(event) + "\n" for event in kept))
        atomic.write_text(self.text, "".join(_as_text(event) + "\n" for event in kept))

    def write(self, event: str, **values: Any) -> None:
        """Append one event, with its seal (see `bitgolf.run.seal`)."""
        if not self.enabled:
            return
        entry = sealed({"event": event, **values}, self.seal)
        self.seal = entry["seal"]
        for path, line in ((self.events, json.dumps(entry)), (self.text, _as_text(entry))):
            with atomic.naming(path), path.open("a") as handle:
                handle.write(line + "\n")
        log.info("%s", _as_text(entry))
        for send in self.sinks:
            send(event, values)


def events_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Events of a `train.jsonl` up to a checkpoint of `step`, without those that were written after it."""
    return [
        event for event in read_events(path) if event.get("step", 0) <= step and event["event"] not in _AFTER_THE_STEPS
    ]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Events of a `train.jsonl`, without a last line that an interruption cut short.

    Raises RunError if the file holds anything but events.
    """
    events = []
    try:
        lines = read_text(path).split("\n") if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                event = parse_json(line)
                conform(event, _EVENT, "it")
            except ForeignError as error:
                if number == len(lines):
                    break
                raise ForeignError(f"line {number} is not an event: {error}") from error
            events.append(event)
    except ForeignError as error:
        raise RunError(f"{path} is damaged: {error}; train again with `bitgolf train {path.parent}`") from error
    return events


def _as_text(entry: dict[str, Any]) -> str:
    parts = []
    for key, value in entry.items():
        if key not in _NOT_IN_TEXT:
            parts.append(f"{key}:{value:.6g}" if isinstance(value, float) else f"{key}:{value}")
    return f"[{entry['event']}] " + " ".join(parts)


class MetricsPipe:
    """Vectors of metrics on their way from the device, read `lag` steps late.

    Each vector is [elapsed seconds on rank 0, loss, gradient norm of every parameter.., global norm].
    """

    def __init__(self, device: torch.device, names: list[str], lag: int = LAG) -> None:
        self.device, self.names, self.lag = device, names, lag
        self._in_flight: deque[tuple[int, Tensor, Any]] = deque()

    def push(self, step: int, metrics: Tensor) -> list[tuple[int, list[float]]]:
        """Start the copy of one vector. Returns those that are due as (step, values), oldest first."""
        event = None
        if self.device.type == "cuda":
            host = torch.empty(metrics.shape, dtype=metrics.dtype, pin_memory=True)
            host.copy_(metrics, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            metrics = host
        self._in_flight.append((step, metrics, event))
        return self._take(self.lag)

    def drain(self) -> list[tuple[int, list[float]]]:
        """Wait for all vectors, and return them."""
        return self._take(0)

    def _take(self, num_left: int) -> list[tuple[int, list[float]]]:
        due = []
        while len(self._in_flight) > num_left:
            step, metrics, event = self._in_flight.popleft()
            if event is not None:
                event.synchronize()
            values = metrics.tolist()
            self._require_finite(step, values)
            due.append((step, values))
        return due

    def _require_finite(self, step: int, values: list[float]) -> None:
        _, loss, *norms, total = values
        if math.isfinite(loss) and math.isfinite(total):
            return
        broken = [name for name, norm in zip(self.names, norms, strict=True) if not math.isfinite(norm)]
        where = (
            f"gradients of {len(broken)} of {len(self.names)} tensors, first {broken[0]!r}" if broken else "the loss"
        )
        raise TrainingDiverged(
            f"step {step}: loss {loss}, not finite in {where}; lower the learning rates, "
            "clip gradients harder (train.grad_clip), or continue from the last checkpoint with --resume"
        )


class StepReport:
    """Passes the metrics of the steps on: to the shared clock, the log and the progress bar."""

    def __init__(
        self,
        pipe: MetricsPipe,  # the metrics on their way
        timeline: Timeline,  # gets rank 0's clock readings
        train_log: TrainLog,
        config: TrainConfig,  # tokens per step, and steps between lines of the log
        world: World,
        progress: Progress = silent,  # called on rank 0
        # model FLOP utilization at one token per second, with the loop off and on; 0 = unknown.
        mfu_per_token_rate: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.mfu_per_token_rate = mfu_per_token_rate
        self.looped = True  # whether steps run the looped layers several times
        self.pipe, self.timeline, self.log = pipe, timeline, train_log
        self.block_tokens, self.log_every = config.block_tokens, config.log_every
        self.progress = progress if world.is_main else silent
        self._held_out = ""  # the last held-out loss, for the progress bar
        self._losses: list[float] = []  # since the last log line
        self._lr_scales: dict[int, float] = {}  # of the steps whose metrics are in flight
        self._last_logged = (timeline.pace.step, timeline.pace.elapsed)

    def add(self, step: int, metrics: Tensor, lr_scale: float) -> None:
        """Send the metrics of `step` off, and handle those that arrive."""
        self._lr_scales[step] = lr_scale
        for due in self.pipe.push(step, metrics):
            self._handle(*due)

    def drain(self) -> None:
        """Wait for the metrics of all steps, and handle them."""
        for due in self.pipe.drain():
            self._handle(*due)

    def _handle(self, step: int, values: list[float]) -> None:
        elapsed, loss, grad_norm, lr_scale = values[0], values[1], values[-1], self._lr_scales.pop(step)
        self.timeline.pace.observe(step, elapsed)
        self._losses.append(loss)
        end, max_steps = self.timeline.steps_end(), self.timeline.max_steps
        done, total = (step, max_steps) if max_steps else (min(elapsed, end), end)
        self.progress("train", done, total, f"step {step} loss {loss:.4f}{self._held_out}")
        if step % self.log_every and step != 1:
            return
        logged_step, logged_elapsed = self._last_logged
        # A reading is taken at the launch of a step, so that of step 1 measures nothing; the warm-up's step is used.
        pace, blocks = self.timeline.pace, self.timeline.pace.ramp.blocks
        seconds = elapsed - logged_elapsed
        if step == 1:
            seconds = pace.seconds_per_step * blocks(1) / pace.ramp.last_size
        speed = (blocks(step - 1) - blocks(logged_step - 1)) * self.block_tokens / max(seconds, 1e-9)
        self.log.write(
            "step",
            step=step,
            loss=sum(self._losses) / len(self._losses),
            lr_scale=lr_scale,
            tokens=blocks(step) * self.block_tokens,
            elapsed_seconds=elapsed,
            grad_norm=grad_norm,
            tokens_per_second=speed,
            **({"mfu": speed * share} if (share := self.mfu_per_token_rate[self.looped]) else {}),
        )
        self._losses = []
        self._last_logged = step, elapsed

    def log_held_out(self, step: int, loss: float, tokens: int, elapsed: float, seconds: float, text: str) -> None:
        """Log the loss on held-out training text after `step` steps, which took `seconds`, and a sampled text."""
        self._held_out = f" held out {loss:.4f}"
        sample = {"sample": text} if text else {}
        self.log.write(
            "held_out", step=step, loss=loss, tokens=tokens, elapsed_seconds=elapsed, seconds=seconds, **sample
        )
