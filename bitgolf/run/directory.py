"""The run directory: the only state of a run.

| stage | products |
|---|---|
| prepare | data/ |
| train | train.jsonl, checkpoint/, weights.safetensors, calibration/ |
| pack | model.bitgolf, pack.json |
| score | score.json, nll.npy, tape.json |
| audit | audit.json |
| report | report.html |

A stage gets the products of earlier stages with `require`, which names the stage to run if a product is missing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from bitgolf.config import BudgetConfig, Config, differing_keys, resolve
from bitgolf.errors import ForeignError, RunError
from bitgolf.foreign import parse_toml, read_bytes
from bitgolf.run import atomic
from bitgolf.run.budget import Budget
from bitgolf.run.lock import LOCK_FILES, locked_directory

_MAX_CONFIG_BYTES = 1_000_000

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
_LATER_PRODUCTS = (
    "model.bitgolf", "pack.json", "score.json", "nll.npy", "tape.json", "audit.json", "report.html",
)  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


REPORT_MARK = "<!-- a stage that runs later puts its note here -->"


class RunDirectory:
    """The path and configuration of one run. Use `create` for a new or resumed run, `open` for an existing one."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(
        cls, path: str | Path, config: Config, *, resume: bool = False, hold: ExitStack | None = None
    ) -> RunDirectory:
        """Make `path` the directory of a run of `config`; with `resume` it may belong to a run of this configuration.

        `hold` keeps the lock of the directory; None releases it when this method returns. Raises RunError if `path`
        belongs to another configuration, is not a run, or is in use by another process. A directory that contains only
        config.toml, because its first stage failed, may be used with any configuration.
        """
        root = Path(path)
        if root.exists() and not (root / "config.toml").exists() and (not root.is_dir() or _entries(root)):
            raise RunError(f"{root} exists and is not a bitgolf run (no config.toml in it); choose another --out")
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            (hold or stack).enter_context(locked_directory(root, "run"))
            return cls._create_locked(root, config, resume)

    @classmethod
    def _create_locked(cls, root: Path, config: Config, resume: bool) -> RunDirectory:
        stored = root / "config.toml"
        if stored.exists() and _entries(root) != {"config.toml"}:
            existing = cls.open(root).config
            if _is_extension(existing, config):
                config = existing
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
        atomic.write_text(stored, config.to_toml())
        return cls(root, config)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run. Raises RunError if `path` is not a run directory."""
        root = Path(path)
        stored = root / "config.toml"
        if not stored.is_file():
            raise RunError(
                f"{root} is not a run directory: it has no config.toml; start one with "
                f"`bitgolf run PRESET --out {root}`"
            )
        try:
            values = parse_toml(read_bytes(stored, _MAX_CONFIG_BYTES))
        except (FileNotFoundError, ForeignError) as error:
            raise RunError(f"{stored} is damaged: {error}") from error
        return cls(root, resolve(values, {}, origin=str(stored)))

    def extend_budget_(self, budget: BudgetConfig, *, write: bool) -> None:
        """Replace the budget by one with more time (`budget.min_steps`); with `write` in config.toml too."""
        self.replace_config_(self.config.updated({"budget": budget.model_dump()}), write=write)

    def replace_config_(self, config: Config, *, write: bool = True) -> None:
        """Replace the configuration; with `write` in config.toml too."""
        self.config = config
        if write:
            atomic.write_text(self.path / "config.toml", config.to_toml())

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def require(self, name: str) -> Path:
        """Path of the product `name`. Raises RunError with the command to run if the product is missing."""
        product = self.path / name
        if not product.exists():
            stage = _MADE_BY.get(name, "run")
            command = f"{stage} {self.path}"
            if stage in ("run", "prepare"):
                command = f"run {self.path}/config.toml --out {self.path} --resume"
            raise RunError(f"{product} is missing; run `bitgolf {command}` first")
        if not (product.is_dir() if name in ("data", "calibration") else product.is_file()):
            raise RunError(f"{product} is damaged: it is a folder, device or pipe in place of a file, or the reverse")
        if not os.access(product, os.R_OK):
            raise RunError(f"{product} cannot be read: permission denied; ask its owner, or run as that user")
        return product

    def remove_products_of_later_stages(self) -> None:
        """Remove what `pack`, `score`, `audit` and `report` made of earlier weights, before training replaces these."""
        for path in (*map(self.path.joinpath, _LATER_PRODUCTS), *self.path.glob("nll-*.npy")):
            path.unlink(missing_ok=True)

    def mark_report_outdated(self, stage: str) -> None:
        """Write into report.html, if there is one, that `stage` has run since the page was made."""
        page = self.path / "report.html"
        if page.is_file():
            note = f'<p class="card warning">Outdated: `bitgolf {stage}` ran after this page was made.</p>'
            text = page.read_text(encoding="utf-8", errors="replace")
            atomic.write_text(page, text.replace(REPORT_MARK, note, 1))

    def budget(self) -> Budget:
        """The run's budget ledger with the limits of its configuration."""
        limits = self.config.budget
        return Budget(
            {
                "artifact_bytes": limits.artifact_bytes,
                "train_seconds": limits.train_seconds,
                "eval_seconds": limits.eval_seconds,
            },
            self.path / "budget.json",
        )


def _entries(directory: Path) -> set[str]:
    """Names in `directory`, without those of the lock and of unfinished files."""
    return atomic.entries(directory) - LOCK_FILES


def writes_run(function: Callable[Concatenate[RunDirectory, P], R]) -> Callable[Concatenate[RunDirectory, P], R]:
    """Decorator of a stage whose first argument is the run directory. The stage holds the lock of the directory.

    Only rank 0 writes, so only rank 0 takes the lock.
    """

    @functools.wraps(function)
    def locked(run: RunDirectory, *args: P.args, **kwargs: P.kwargs) -> R:
        from bitgolf.run.ranks import is_main_process  # imports torch

        if not is_main_process():
            return function(run, *args, **kwargs)
        with locked_directory(run.path, function.__name__.removesuffix("_run")):
            return function(run, *args, **kwargs)

    return locked


def _is_extension(stored: Config, config: Config) -> bool:
    """Whether `stored` is `config` with an extended budget, so that `config` may resume the run."""
    ours, theirs = config.budget, stored.budget
    if not ours.min_steps or theirs.train_seconds < ours.train_seconds or theirs.eval_seconds < ours.eval_seconds:
        return False
    return stored.updated({"budget": ours.model_dump()}).digest() == config.digest()
