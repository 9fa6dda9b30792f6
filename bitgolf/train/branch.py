"""Branches: a run that goes on from a checkpoint of another run, its trunk.

`bitgolf train DIR --branch RUN` (or `RUN@STEP`) takes over weights, optimizer, averages, clock and log of the newest
checkpoint of RUN (or of that step). So one training can be ended, quantized and scored in several ways. Steps and
seconds spent in RUN are charged to the branch too. Settings that affect the training so far must agree: model, data,
seed, budget, optimizer and schedule. Settings that act later, or only measure, may differ. State that RUN did not save
starts fresh where this makes sense (an EMA from the weights of the branch point, SWA, a late phase); otherwise the
branch is refused. RUN is only read.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bitgolf.config import Config, differing_keys
from bitgolf.data.prepared import read_manifest
from bitgolf.errors import ConfigError, RunError
from bitgolf.grids.roles import grids_of
from bitgolf.run.directory import RunDirectory
from bitgolf.train.checkpoint import CheckpointStore, TrainState

FREE_KEYS = ("name", "description")
FREE_SECTIONS = ("qat", "pack", "score", "ttt", "report")
FREE_TRAIN_KEYS = ("average", "replay", "measure", "checkpoint", "log_every")
_STARTS_FRESH = ("swa", "late.", "replay.")


@dataclass(frozen=True)
class Trunk:
    """The run that is branched from."""

    path: Path  # its run directory
    config: Config  # its configuration
    step: int | None  # the step of the checkpoint; None = the newest

    def load(self, step: int | None) -> tuple[TrainState, dict[str, Tensor]]:
        """The checkpoint of `step` (None = the newest whole one). Raises RunError if there is none."""
        store = CheckpointStore(self.path / "checkpoint")
        if step is not None:
            return store.load_step(step, self.config.digest())
        newest = store.load_latest(self.config.digest())
        if newest is None:
            raise RunError(
                f"{self.path} has no checkpoint to branch from; train it with --train.checkpoint.at '[0.85]' "
                "(kept), or with train.checkpoint.seconds (the newest two)"
            )
        return newest

    def origin(self, step: int) -> str:
        """Name of the checkpoint of `step`, for the checkpoints of its branches."""
        return f"{self.config.digest()}@{step}"

    def is_origin(self, origin: str) -> bool:
        """Whether a branch with this origin began from this trunk, and from its `step` if one is set."""
        digest, _, step = origin.partition("@")
        return digest == self.config.digest() and self.step in (None, int(step))


def find_trunk(spec: str, config: Config, branch: Path) -> Trunk:
    """The run named by `spec` (`RUN` or `RUN@STEP`), after a check that its configuration fits `config`.

    Args:
        branch: directory of the run of `config` that begins there. It need not exist yet.
    Raises:
        RunError: there is no such run, or no such checkpoint, or it is the branch itself.
        ConfigError: the configurations differ in settings that affect the training so far. All of them are listed.
    """
    path, at, step = spec.rpartition("@")
    if Path(spec).is_dir() or not at or not step.isdigit():
        path, step = spec, ""
    run = RunDirectory.open(path)
    trunk = Trunk(run.path, run.config, int(step) if step else None)
    if trunk.path.resolve() == branch.resolve():
        raise RunError(f"{branch} cannot branch from itself; --resume goes on from its newest checkpoint")
    differing = [key for key in differing_keys(trunk.config, config) if not _is_free(key, config)]
    if differing:
        raise ConfigError(
            f"cannot branch from {path}: {'; '.join(_both(key, trunk.config, config) for key in differing)}. "
            f"A branch may differ in {', '.join(FREE_KEYS)}, the sections {', '.join(FREE_SECTIONS)}, and "
            f"{', '.join(f'train.{key}' for key in FREE_TRAIN_KEYS)}"
        )
    steps = CheckpointStore(trunk.path / "checkpoint").steps()
    if not steps or (trunk.step is not None and trunk.step not in steps):
        trunk.load(trunk.step)  # raises, with the checkpoints that there are
    return trunk


def require_same_data(trunk: Trunk, data: Path) -> None:
    """Raises ConfigError unless the tokenizer and training shards under `data` are those of the trunk, bit for bit."""
    theirs, ours = _training_data(trunk.path / "data"), _training_data(data)
    if theirs != ours:
        raise ConfigError(
            f"cannot branch from {trunk.path}: its training data differ from those in {data} ({len(ours[1])} shards "
            f"here, {len(theirs[1])} there, or other contents); use the same, for example with "
            f"--data.source shards:{trunk.path / 'data'}"
        )


def adapt(
    saved: dict[str, Tensor], live: dict[str, Tensor], trunk: Trunk, config: Config
) -> tuple[dict[str, Tensor], list[str]]:
    """The trunk's state as the branch needs it: the tensors to load, and the kinds of state that start fresh.

    `saved`: tensors of the checkpoint by name. `live`: the branch's own tensors before its first step; their names are
    those that are needed. Raises ConfigError if a late phase or snapshots began under other settings, and RunError if
    the checkpoint lacks state that cannot start fresh.
    """
    _require_same_late_phase(saved, trunk, config)
    _require_same_snapshots(saved, trunk, config)
    adapted, fresh = {"rng": saved["rng"]}, set()
    for name, tensor in live.items():
        if name in saved:
            adapted[name] = saved[name]
        elif name.startswith("ema"):
            adapted[name] = saved["model." + name.partition(".")[2]].float()
            fresh.add("ema")
        elif name.startswith(_STARTS_FRESH):
            adapted[name] = tensor.detach().cpu().clone()
            fresh.add(next(kind for kind in _STARTS_FRESH if name.startswith(kind)).rstrip("."))
        else:
            raise RunError(f"the checkpoint of {trunk.path} lacks {name!r}; it cannot be branched from")
    return adapted, sorted(fresh)


def _require_same_late_phase(saved: dict[str, Tensor], trunk: Trunk, config: Config) -> None:
    began_at = float(saved.get("late.began_at", -1.0))
    if began_at >= 0 and _late_settings(trunk.config, saved) != _late_settings(config, saved):
        raise ConfigError(
            f"cannot branch from {trunk.path} here: its late phase had begun (at fraction {began_at:.3g} of the run) "
            "with other settings of qat, or other grids of pack; branch from an earlier checkpoint "
            "(train.checkpoint.at), or use the same settings"
        )


def _require_same_snapshots(saved: dict[str, Tensor], trunk: Trunk, config: Config) -> None:
    count, ours, theirs = float(saved.get("swa_count", 0.0)), config.train.average, trunk.config.train.average
    if not count or not ours.swa_weight:
        return
    if (ours.swa_start, ours.swa_spacing) != (theirs.swa_start, theirs.swa_spacing):
        raise ConfigError(
            f"cannot branch from {trunk.path} here: it holds {count:g} snapshots taken under other settings of "
            "train.average.swa_start and train.average.swa_spacing; branch from an earlier checkpoint, or use the "
            "same settings"
        )


def _is_free(key: str, config: Config) -> bool:
    section, _, rest = key.partition(".")
    leaf = rest.partition(".")[0]
    if section == "data":  # the source of the shards is free, because `require_same_data` compares their contents
        return leaf == "workers" or config.data.source.startswith("shards:")
    return section in FREE_SECTIONS or key in FREE_KEYS or (section == "train" and leaf in FREE_TRAIN_KEYS)


def _both(key: str, theirs: Config, ours: Config) -> str:
    return f"{key} is {theirs.flat()[key]!r} there, {ours.flat()[key]!r} here"


def _training_data(root: Path) -> tuple[str, list[tuple[int, str]]]:
    manifest = read_manifest(root)
    shards = manifest["splits"]["train"]["shards"]
    return manifest["tokenizer"]["sha256"], [(shard["tokens"], shard["sha256"]) for shard in shards]


def _late_settings(config: Config, saved: dict[str, Tensor]) -> tuple[object, ...]:
    """Everything that a late phase depends on: its settings, and the grids that it rounds to."""
    if config.qat.mode == "none":
        return (config.qat,)
    shapes = {name.removeprefix("model."): tuple(t.shape) for name, t in saved.items() if name.startswith("model.")}
    return config.qat, grids_of(shapes, config.pack), config.pack.grid.percentiles
