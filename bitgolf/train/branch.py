"""Start a run from a checkpoint of another one: several ways to end, quantize and score a single training.

`bitgolf train DIR --branch RUN` (or `RUN@STEP`) takes over weights, optimizer, averages, clock and log of RUN's newest
(or that) checkpoint. Steps and seconds spent there are charged here too. What decides the training so far must agree:
model, data, seed, budget, optimizer and schedule; what comes after it, or only watches it, may differ. State that RUN
did not keep starts fresh where that has a meaning (an EMA from the weights of the branch point, SWA, a late phase), and
is refused where it does not. RUN itself is only read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bitgolf.config import Config, differing_keys
from bitgolf.data.prepared import read_manifest
from bitgolf.errors import ConfigError, RunError
from bitgolf.grids.roles import grid_of
from bitgolf.run.directory import RunDirectory
from bitgolf.train.checkpoint import CheckpointStore, TrainState

FREE_KEYS = ("name", "description")
FREE_SECTIONS = ("qat", "pack", "score", "ttt", "report")
FREE_TRAIN_KEYS = (
    "average", "replay", "measure", "checkpoint", "log_every",
)  # fmt: skip
_STARTS_FRESH = ("swa", "late.", "replay.")


@dataclass(frozen=True)
class Trunk:
    """The run that is branched from, and the step asked for (None = the newest checkpoint)."""

    run: RunDirectory
    step: int | None

    def load(self, step: int | None) -> tuple[TrainState, dict[str, Tensor]]:
        """The state at `step` (None = the newest whole checkpoint). Raises RunError when there is none."""
        store = CheckpointStore(self.run / "checkpoint")
        digest = self.run.config.digest()
        if step is not None:
            return store.load_step(step, digest)
        loaded = store.load_latest(digest)
        if loaded is None:
            raise RunError(
                f"{self.run.path} has no checkpoint to branch from; train it with --train.checkpoint.at '[0.85]' "
                "(kept), or with train.checkpoint.seconds (the newest two)"
            )
        return loaded

    def origin(self, step: int) -> str:
        """Names the checkpoint that a branch began from."""
        return f"{self.run.config.digest()}@{step}"

    def is_origin(self, origin: str) -> bool:
        """Whether a branch with this origin began from the checkpoint that is meant here."""
        digest, _, step = origin.partition("@")
        return digest == self.run.config.digest() and self.step in (None, int(step))


def find_trunk(spec: str, config: Config, branch: Path) -> Trunk:
    """The run named by `spec` (`RUN` or `RUN@STEP`), once its configuration is known to fit `config`.

    Args:
        branch: directory of the run of `config` that is to begin there; need not exist yet.
    Raises:
        RunError: there is no such run, or no such checkpoint, or it is the branch itself.
        ConfigError: the configurations differ in something that decides the training so far; all keys are listed.
    """
    path, at, step = spec.rpartition("@")
    if Path(spec).is_dir() or not at or not step.isdigit():
        path, step = spec, ""
    trunk = Trunk(RunDirectory.open(path), int(step) if step else None)
    if trunk.run.path.resolve() == branch.resolve():
        raise RunError(f"{branch} cannot branch from itself; --resume goes on from its newest checkpoint")
    differing = [key for key in differing_keys(trunk.run.config, config) if not _is_free(key, config)]
    if differing:
        raise ConfigError(
            f"cannot branch from {path}: {'; '.join(_both(key, trunk.run.config, config) for key in differing)}. "
            f"A branch may differ in {', '.join(FREE_KEYS)}, the sections {', '.join(FREE_SECTIONS)}, and "
            f"{', '.join(f'train.{key}' for key in FREE_TRAIN_KEYS)}"
        )
    there = CheckpointStore(trunk.run / "checkpoint").steps()
    if not there or (trunk.step is not None and trunk.step not in there):
        trunk.load(trunk.step)  # says what is missing
    return trunk


def require_same_data(trunk: Trunk, run: RunDirectory) -> None:
    """Raises ConfigError unless both runs were prepared with the same tokenizer and training shards, bit for bit."""
    theirs, ours = (_training_data(root.require("data")) for root in (trunk.run, run))
    if theirs != ours:
        raise ConfigError(
            f"cannot branch from {trunk.run.path}: the training data of {run.path} differ from its own "
            f"({len(ours[1])} shards here, {len(theirs[1])} there, or other contents); use the same, for example with "
            f"--data.source shards:{trunk.run / 'data'}"
        )


def adapt(
    saved: dict[str, Tensor],
    fresh: dict[str, Tensor],
    trunk: Trunk,
    config: Config,
) -> tuple[dict[str, Tensor], list[str]]:
    """The trunk's state as the branch needs it.

    Args:
        saved: tensors of the checkpoint by name.
        fresh: the branch's own tensors before its first step; decide what is needed.
    Returns:
        (tensors to load, the kinds of state that start fresh).
    Raises:
        ConfigError: a late phase or snapshots that began under other settings; RunError: state that is missing.
    """
    theirs = trunk.run.config
    if float(saved.get("late.began_at", -1.0)) >= 0 and _late_settings(theirs, saved) != _late_settings(config, saved):
        raise ConfigError(
            f"cannot branch from {trunk.run.path} here: its late phase had begun (at fraction "
            f"{float(saved['late.began_at']):.3g} of the run) with other settings of qat, or other grids of pack; "
            "branch from an earlier checkpoint (train.checkpoint.at), or keep them"
        )
    if float(saved.get("swa_count", 0.0)) and config.train.average.swa_weight:
        keys = ("swa_start", "swa_spacing")
        if any(getattr(theirs.train.average, key) != getattr(config.train.average, key) for key in keys):
            raise ConfigError(
                f"cannot branch from {trunk.run.path} here: it holds {int(saved['swa_count'])} snapshots taken under "
                "other settings of train.average.swa_start and train.average.swa_spacing; branch from an earlier "
                "checkpoint, or keep "
                "them"
            )
    adapted, started = {"rng": saved["rng"]}, set()
    for name, tensor in fresh.items():
        if name in saved:
            adapted[name] = saved[name]
        elif name.startswith("ema."):
            adapted[name] = saved["model." + name.removeprefix("ema.")].float()
            started.add("ema")
        elif name.startswith(_STARTS_FRESH):
            adapted[name] = tensor.detach().cpu().clone()
            started.add(next(kind for kind in _STARTS_FRESH if name.startswith(kind)).rstrip("."))
        else:
            raise RunError(f"the checkpoint of {trunk.run.path} lacks {name!r}; it cannot be branched from")
    return adapted, sorted(started)


def _is_free(key: str, config: Config) -> bool:
    section, _, rest = key.partition(".")
    leaf = rest.partition(".")[0]
    if section == "data":  # where the same shards come from is free: `require_same_data` compares the shards
        return leaf == "workers" or config.data.source.startswith("shards:")
    return section in FREE_SECTIONS or key in FREE_KEYS or (section == "train" and leaf in FREE_TRAIN_KEYS)


def _both(key: str, theirs: Config, ours: Config) -> str:
    return f"{key} is {theirs.flat()[key]!r} there, {ours.flat()[key]!r} here"


def _training_data(root: Path) -> tuple[str, list[tuple[int, str]]]:
    manifest = read_manifest(root)
    shards = manifest["splits"]["train"]["shards"]
    return manifest["tokenizer"]["sha256"], [(shard["tokens"], shard["sha256"]) for shard in shards]


def _late_settings(config: Config, saved: dict[str, Tensor]) -> tuple[object, ...]:
    """What a late phase is made of: its settings, and the grids that it fakes."""
    if config.qat.mode == "none":
        return (config.qat,)
    shapes = {name.removeprefix("model."): tuple(t.shape) for name, t in saved.items() if name.startswith("model.")}
    grids = {name: grid_of(name, shape, config.pack) for name, shape in shapes.items()}
    return config.qat, grids, config.pack.grid.percentiles
