"""The three budgets (bytes, train seconds, eval seconds) and the ledger of what was charged to them.

Every stage charges what it used, with a word on what for, and the ledger is a file of the run directory
(`budget.json`), so the audit and the report read the same entries. Anything that touches training data
(optimizer steps, calibration, replay) is charged to `train_seconds`; everything between opening the artifact
and the last score is charged to `eval_seconds`. Work that is outside both clocks by the rules (compile
warm-up, packing) is recorded too, as kind `untimed_seconds`, so nothing is hidden.
Source: rules B1-B6 of the challenge.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bitgolf.errors import BudgetError, RunError
from bitgolf.run import atomic

KINDS = ("artifact_bytes", "train_seconds", "eval_seconds", "untimed_seconds")


@dataclass(frozen=True)
class Charge:
    """One entry of the ledger: `amount` of `kind` used by `stage` for `what`."""

    kind: str
    stage: str
    what: str
    amount: float


class Budget:
    """Limits and charges of one run, kept in `path` (a JSON file) after every change.

    Args:
        limits: allowed amount by kind; a kind without a limit is recorded, never refused.
        path: the ledger file, or None to keep it in memory.
    """

    def __init__(self, limits: dict[str, float], path: Path | None = None) -> None:
        unknown = set(limits) - set(KINDS)
        if unknown:
            raise BudgetError(f"unknown budget {sorted(unknown)}; allowed: {', '.join(KINDS)}")
        self.limits = dict(limits)
        self.path = path
        self.charges: list[Charge] = []
        if path is not None and path.exists():
            try:
                stored = json.loads(path.read_text())
                self.charges = [Charge(**entry) for entry in stored["charges"]]
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{path} is not a budget ledger ({error}); remove it to start the run anew") from error

    def charge(self, kind: str, stage: str, what: str, amount: float) -> None:
        """Add an entry. Raises BudgetError for an unknown kind or a negative amount; overspending is recorded
        here and refused by the stages and the audit, so that the evidence survives."""
        if kind not in KINDS or not amount >= 0:
            raise BudgetError(f"cannot charge {amount} of {kind!r}: kinds are {', '.join(KINDS)}, amounts >= 0")
        self.charges.append(Charge(kind, stage, what, float(amount)))
        self._save()

    def forget(self, stage: str) -> None:
        """Drop the charges of `stage`, which is about to run again and replace its product."""
        self.charges = [entry for entry in self.charges if entry.stage != stage]
        self._save()

    def spent(self, kind: str, stage: str | None = None) -> float:
        """Sum of the charges of `kind` (of one stage when given)."""
        return sum(c.amount for c in self.charges if c.kind == kind and stage in (None, c.stage))

    def remaining(self, kind: str) -> float:
        """What is left of `kind`; infinite when it has no limit."""
        return self.limits.get(kind, float("inf")) - self.spent(kind)

    def _save(self) -> None:
        if self.path is not None:
            atomic.write_json(self.path, {"limits": self.limits, "charges": [asdict(c) for c in self.charges]})
