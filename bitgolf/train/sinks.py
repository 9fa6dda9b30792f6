"""Copies of the training metrics for TensorBoard, trackio and wandb. `train.jsonl` stays the record of the run.

Every number of the events `step` and `held_out` is sent under `train/` or `held_out/`. Each sink needs its package. All
three were run with tensorboard 2.21.0, trackio 0.43.0 and wandb 0.31.0 (offline).
"""

import atexit
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from bitgolf.config import Config
from bitgolf.errors import ConfigError

Sink = Callable[[dict[str, float], int], None]  # (numbers by name, step)
_PREFIX = {"step": "train", "held_out": "held_out"}


def open_sinks(config: Config, folder: Path) -> list[Callable[[str, dict[str, Any]], None]]:
    """Functions that send an event to the sinks of `train.watch.sinks`.

    Raises ConfigError if the package of one is not installed.
    """
    makers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
    sinks: list[Callable[[str, dict[str, Any]], None]] = []
    for name in config.train.watch.sinks:
        try:
            sinks.append(partial(_send, makers[name](config, folder)))
        except ImportError as error:
            raise ConfigError(
                f"train.watch.sinks {name!r} needs the package {name}: pip install {name}; or leave it out"
            ) from error
    return sinks


def _send(sink: Sink, event: str, values: dict[str, Any]) -> None:
    if prefix := _PREFIX.get(event):
        numbers = {
            f"{prefix}/{key}": float(value)
            for key, value in values.items()
            if key != "step" and isinstance(value, int | float)
        }
        sink(numbers, int(values["step"]))


def _tensorboard(config: Config, folder: Path) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _trackio(config: Config, folder: Path) -> Sink:
    import trackio

    def finish() -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()

    with redirect_stdout(sys.stderr):  # it prints; standard output is for results
        trackio.init(project="bitgolf", name=folder.name, config=config.flat())
    atexit.register(finish)
    return lambda numbers, step: trackio.log(numbers, step=step)


def _wandb(config: Config, folder: Path) -> Sink:
    import wandb

    run = wandb.init(project="bitgolf", name=folder.name, dir=str(folder), config=config.flat())
    return lambda numbers, step: run.log(numbers, step=step)
