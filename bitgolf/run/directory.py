"""The run directory: the only state of a run, and the names of the products in it.

`prepare` -> data/, `train` -> train.jsonl, checkpoint/, weights.safetensors, calibration/, `pack` ->
model.bitgolf, `score` -> score.json and nll.npy, `audit` -> audit.json, `report` -> report.html. Each stage
asks for the product before it through `require`, so a missing stage is named rather than met as a stack trace.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from bitgolf.config import Config, differing_keys, resolve
from bitgolf.errors import RunError
from bitgolf.run import atomic
from bitgolf.run.budget import Budget

_MADE_BY = {
    "config.toml": "run",
    "data": "prepare",
    "weights.safetensors": "train",
    "calibration": "train",
    "train.jsonl": "train",
    "model.bitgolf": "pack",
    "pack.json": "pack",
    "score.json": "score",
    "nll.npy": "score",
    "tape.json": "score",
    "audit.json": "audit",
}


class RunDirectory:
    """Paths of one run. Build it with `create` (new or resumed run) or `open` (stage on an existing run)."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: str | Path, config: Config, *, resume: bool = False) -> RunDirectory:
        """Make `path` the directory of a run of `config`.

        A directory that already belongs to the same configuration is reused only with `resume=True`; one that
        holds nothing but a configuration (its first stage failed) is taken over.
        Raises RunError when it exists and belongs to another configuration, or holds something else.
        """
        root = Path(path)
        stored = root / "config.toml"
        if stored.exists() and [entry.name for entry in root.iterdir()] != ["config.toml"]:
            existing = cls.open(root).config
            if existing.digest() != config.digest():
                changed = ", ".join(differing_keys(existing, config)) or "nothing visible"
                raise RunError(
                    f"{root} belongs to another configuration (preset {existing.name!r}; differs in "
                    f"{changed}); choose another --out, or remove it first"
                )
            if not resume:
                raise RunError(
                    f"{root} already holds a run of this configuration; continue it with --resume, "
                    "run one stage on it (for example `bitgolf score`), or choose another --out"
                )
            return cls(root, config)
        if root.exists() and not stored.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RunError(f"{root} exists and is not a bitgolf run (no config.toml in it); choose another --out")
        root.mkdir(parents=True, exist_ok=True)
        atomic.write_text(stored, config.to_toml())
        return cls(root, config)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run. Raises RunError when `path` is not one."""
        root = Path(path)
        stored = root / "config.toml"
        if not stored.is_file():
            raise RunError(
                f"{root} is not a run directory: it has no config.toml; start one with "
                f"`bitgolf run PRESET --out {root}`"
            )
        try:
            values = tomllib.loads(stored.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{stored} is damaged: {error}") from error
        return cls(root, resolve(values, {}, origin=str(stored)))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def require(self, name: str) -> Path:
        """Path of the product `name`; RunError that names the stage to run when it is missing."""
        product = self.path / name
        if not product.exists():
            stage = _MADE_BY.get(name, "run")
            command = f"{stage} {self.path}"
            if stage in ("run", "prepare"):
                command = f"run {self.path}/config.toml --out {self.path} --resume"
            raise RunError(f"{product} is missing; run `bitgolf {command}` first")
        return product

    def budget(self) -> Budget:
        """The run's ledger with the limits of its configuration."""
        limits = self.config.budget
        return Budget(
            {
                "artifact_bytes": limits.artifact_bytes,
                "train_seconds": limits.train_seconds,
                "eval_seconds": limits.eval_seconds,
            },
            self.path / "budget.json",
        )
