"""Evidence for single checks: a configuration and the records that a test gives, in place of a run directory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitgolf.audit.verdict import Check, Finding
from bitgolf.config import Config


def evidence(**products: Any) -> Any:
    """What a check reads of `Evidence`: the given products, and an empty configuration."""
    return SimpleNamespace(**({"config": Config(), "rng": lambda what: np.random.default_rng(0)} | products))


def budget(**spent: float) -> Any:
    """A ledger: spent by kind; `untimed` is what the stage `score` charged as untimed."""

    def amount(kind: str, stage: str | None = None) -> float:
        return spent.get("untimed" if stage == "score" else kind, 0.0)

    return SimpleNamespace(spent=amount)


def limits(**caps: float) -> Config:
    """A configuration with other budgets."""
    return Config().updated({f"budget.{name}": cap for name, cap in caps.items()})


def file_of(size: int, folder: Path) -> Any:
    """A `require` whose product has this many bytes."""
    path = folder / "product"
    path.write_bytes(bytes(size))
    return lambda name: path


def judged(finding: Finding | Check, problem: str) -> None:
    """`problem` empty: the check passed; else it failed and names the problem. The evidence is plain JSON."""
    assert finding.verdict == ("FAIL" if problem else "PASS"), finding
    assert problem in finding.reason
    json.dumps(finding.evidence, allow_nan=False)
