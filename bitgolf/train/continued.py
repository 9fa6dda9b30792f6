"""Where a training begins: from its own checkpoint, as a branch of another run, or from its initial weights."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitgolf.config import Config, differing_keys
from bitgolf.errors import RunError
from bitgolf.run.ranks import World
from bitgolf.train.branch import Trunk, adapt
from bitgolf.train.checkpoint import CheckpointStore, TrainState, copy_into_
from bitgolf.train.metrics import TrainLog, events_until
from bitgolf.train.unattended import Start

log = logging.getLogger(__name__)


class _FromCheckpoint(Start):
    """A beginning from saved tensors, which are dropped once they are restored."""

    may_extend_budget = False

    def __init__(self, state: TrainState, tensors: dict[str, Tensor]) -> None:
        self.step, self.seconds, self.origin = state.step, state.seconds_spent, state.origin
        self.tensors = tensors

    def restore_(self, live: dict[str, Tensor]) -> None:
        copy_into_(live, self.tensors)
        torch.set_rng_state(self.tensors["rng"])


class Resumed(_FromCheckpoint):
    """The run goes on from its own newest checkpoint."""

    event = "resume"

    def open_files(self, store: CheckpointStore, train_log: TrainLog, state: TrainState) -> None:
        self.tensors = {}
        train_log.begin(events_until(train_log.events, self.step))


class Branched(_FromCheckpoint):
    """The run goes on from a checkpoint of another run, its trunk."""

    event = "branch"

    def __init__(self, state: TrainState, tensors: dict[str, Tensor], history: Path, details: dict[str, Any]) -> None:
        super().__init__(state, tensors)
        self._history, self._details = history, details

    def fraction(self, max_steps: int, steps_end: float) -> float:
        return self.step / max_steps if max_steps else self.seconds / steps_end

    def open_files(self, store: CheckpointStore, train_log: TrainLog, state: TrainState) -> None:
        """Save the branch point as the run's own first checkpoint, so that it can resume without its trunk."""
        store.remove_all()
        store.save(state, self.tensors)
        store.wait()
        self.tensors = {}
        train_log.begin(events_until(self._history, self.step))

    def details(self) -> dict[str, Any]:
        return self._details


def find_start(
    config: Config, store: CheckpointStore, live: dict[str, Tensor], world: World, *, resume: bool, trunk: Trunk | None
) -> Start:
    """The run's own newest checkpoint if `resume` asks for it and there is one, else the trunk's, else neither.

    `live` names the tensors that the run needs. Raises RunError if the checkpoints are damaged or the run's own did not
    begin from `trunk`, and ConfigError for state of the trunk that belongs to other settings.
    """
    checkpoint = store.load_latest(config.digest()) if resume else None
    if checkpoint is not None:
        if trunk is not None and not trunk.is_origin(checkpoint[0].origin):
            raise RunError(
                f"the checkpoints in {store.folder} did not begin from {trunk.path}; leave out --branch to resume "
                "them, or --resume to begin the branch anew"
            )
        return Resumed(*checkpoint)
    return Start() if trunk is None else _branch(trunk, config, live, world)


def _branch(trunk: Trunk, config: Config, live: dict[str, Tensor], world: World) -> Branched:
    # A trunk that is still training may save a newer checkpoint at any time, so rank 0 alone chooses.
    newest = trunk.load(trunk.step) if world.is_main else None
    step = int(world.from_main(float(newest[0].step if newest else 0)))
    state, saved = newest or trunk.load(step)
    tensors, fresh = adapt(saved, live, trunk, config)
    if state.world_size != world.size:
        log.warning("%s trained on %d processes, this branch on %d", trunk.path, state.world_size, world.size)
    details = {
        "branch_run": str(trunk.path),
        "branch_config_sha256": trunk.config.digest(),
        "branch_step": step,
        "branch_seconds": state.seconds_spent,
        "branch_world_size": state.world_size,
        "branch_differs": differing_keys(trunk.config, config),
        "branch_starts_fresh": fresh,
    }
    origin = TrainState(step, state.seconds_spent, config.digest(), world.size, trunk.origin(step))
    return Branched(origin, tensors, trunk.path / "train.jsonl", details)
