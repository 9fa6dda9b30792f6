"""The budget ledger: the bytes, training seconds and evaluation seconds that each stage used.

Every stage adds its charges to `budget.json` in the run directory, and the audit and the report read them there.
All work on training data (optimizer steps, calibration, replay) is charged to `train_seconds`. All work between opening
the artifact and the last score is charged to `eval_seconds`. Work that the rules put outside both clocks (compilation
warm-up, packing) is recorded as `untimed_seconds`.
Source: rules B1 to B6 (docs/rules.md).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitgolf.errors import BudgetError, ForeignError, RunError
from bitgolf.foreign import as_list, as_number, as_object, as_text, field, printable, read_json
from bitgolf.run import atomic

KINDS = ("artifact_bytes", "train_seconds", "eval_seconds", "untimed_seconds")


@dataclass(frozen=True)
class Charge:
    """One entry of the ledger: `stage` used `amount` of `kind` for the purpose `what`."""

    kind: str
    stage: str
    what: str
    amount: float


class Budget:
    """Limits and charges of one run. Every change is written to `path`.

    Args:
        limits: kind -> allowed amount; a kind that is missing has no limit.
        path: the ledger, a JSON file; None keeps the ledger in memory.

    Raises:
        BudgetError: an unknown kind.
        RunError: `path` is not a ledger.
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
                record = as_object(read_json(path), "the ledger")
                self.charges = [_read_charge(entry) for entry in as_list(field(record, "charges"), "charges")]
            except ForeignError as error:
                raise RunError(f"{path} is not a budget ledger: {error}; remove it and start the run again") from error

    def charge(self, kind: str, stage: str, what: str, amount: float) -> None:
        """Add an entry. Raises BudgetError for an unknown kind or a negative amount.

        An amount above the limit is recorded too, so that the evidence is kept; the stages and the audit refuse it.
        """
        if kind not in KINDS or not amount >= 0:
            raise BudgetError(f"cannot charge {amount} of {kind!r}: kinds are {', '.join(KINDS)}, amounts >= 0")
        self.charges.append(Charge(kind, stage, what, float(amount)))
        self._save()

    def forget(self, stage: str) -> None:
        """Remove the charges of `stage`, which is about to run again and replace its product."""
        self.charges = [entry for entry in self.charges if entry.stage != stage]
        self._save()

    def spent(self, kind: str, stage: str | None = None) -> float:
        """Sum of the charges of `kind`, of one stage or of all."""
        return sum(c.amount for c in self.charges if c.kind == kind and stage in (None, c.stage))

    def _save(self) -> None:
        if self.path is not None:
            atomic.write_json(self.path, {"limits": self.limits, "charges": [asdict(c) for c in self.charges]})


def _read_charge(entry: Any) -> Charge:
    record = as_object(entry, "a charge")
    kind, stage, what = (as_text(field(record, key), key) for key in ("kind", "stage", "what"))
    if kind not in KINDS:
        raise ForeignError(f"kind is {printable(kind)!r}, it must be one of {', '.join(KINDS)}")
    return Charge(kind, stage, what, as_number(field(record, "amount"), "amount", 0))
