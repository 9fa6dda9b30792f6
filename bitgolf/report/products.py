"""Reading what the stages wrote into a run directory, for pages, comparisons and submissions.

Every JSON product is checked for the keys that all versions write, so a damaged one is an error that names the command
to run again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.config import Config
from bitgolf.errors import RunError
from bitgolf.run.budget import Budget
from bitgolf.run.directory import RunDirectory
from bitgolf.run.seal import seal_of
from bitgolf.train.metrics import read_events

_KEYS = {  # keys that every product has
    "pack": ("total_bytes", "num_parameters", "model_sha256"),
    "score": ("methods", "headline", "headline_bpb", "float"),
    "audit": ("checks", "passed"),
}


@dataclass(frozen=True)
class Products:
    """The products of a run directory. A product that does not exist is None, or an empty list of events."""

    path: Path
    config: Config
    budget: Budget
    events: list[dict[str, Any]]
    pack: dict[str, Any] | None
    score: dict[str, Any] | None
    audit: dict[str, Any] | None

    @classmethod
    def read(cls, run: RunDirectory) -> Products:
        """Read all products but the texts. Raises RunError for a damaged one."""
        return cls(
            run.path,
            run.config,
            run.budget(),
            read_events(run / "train.jsonl"),
            read_product(run, "pack"),
            read_product(run, "score"),
            read_product(run, "audit"),
        )

    def outdated(self) -> dict[str, str]:
        """The products that were made from another version of an earlier product: stage -> that earlier stage.

        Seals decide it (see `bitgolf.run.seal`). Products without seals are not judged.
        """
        trained = self.events[-1] if self.events else {}
        pack, score, audit = self.pack or {}, self.score or {}, self.audit or {}
        reasons = {}
        if _is_unlinked(pack, trained):
            reasons["pack"] = "train"
        if score.get("model_sha256") not in (None, pack.get("model_sha256")) or _is_unlinked(score, pack):
            reasons["score"] = "pack"
        if audit.get("score_seal", score.get("seal")) != score.get("seal"):
            reasons["audit"] = "score"
        if reasons and audit:
            reasons.setdefault("audit", next(iter(reasons)))
        return reasons

    def command(self, stage: str) -> str:
        """The command that runs a stage on this run."""
        if stage == "prepare":
            return f"bitgolf run {self.path}/config.toml --out {self.path} --resume"
        return f"bitgolf {stage} {self.path}"

    def last_event(self, kind: str) -> dict[str, Any]:
        """The last event of a kind; empty if there is none."""
        return next((event for event in reversed(self.events) if event["event"] == kind), {})


def _is_unlinked(record: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether both records have seals, and the seal of `record` was not made after that of `before`."""
    return "seal" in record and "seal" in before and seal_of(record, before["seal"]) != record["seal"]


def read_product(run: RunDirectory, stage: str) -> dict[str, Any] | None:
    """The JSON product of a stage (pack, score or audit) or the tape; None if there is none.

    Raises RunError if it is damaged.
    """
    path = run / f"{stage}.json"
    again = f"run `bitgolf {'score' if stage == 'tape' else stage} {run.path}` again"
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); {again}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is not a JSON object; {again}")
    missing = [key for key in _KEYS.get(stage, ()) if key not in value]
    if missing:
        raise RunError(f"{path} is damaged (it has no {', '.join(missing)}); {again}")
    return value


def require_product(run: RunDirectory, stage: str) -> dict[str, Any]:
    """The JSON product of a stage. Raises RunError if it is missing or damaged."""
    run.require(f"{stage}.json")
    product = read_product(run, stage)
    assert product is not None
    return product


def read_losses(path: Path, again: str) -> np.ndarray:
    """The array of nll.npy, memory-mapped. If it is damaged, raises RunError that ends with `again`."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RunError(f"{path} is damaged ({error}); {again}") from error
    if array.dtype.kind != "f":
        raise RunError(f"{path} holds {array.dtype}, not losses; {again}")
    return array
