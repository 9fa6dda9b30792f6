"""What an audit says: one `Check` a rule, each with its evidence, and the `Verdict` over all of them.

A check that could not be made says `NOT RUN` and why; it is never counted as passed. The verdict fails when any
check fails, and its JSON is the `audit.json` of a run directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bitgolf.errors import BitgolfError
from bitgolf.version import __version__

Outcome = Literal["PASS", "FAIL", "NOT RUN"]


class MissingEvidence(Exception):
    """A check cannot be made because a product of the run is not there; says which and what makes it."""


@dataclass(frozen=True)
class Check:
    """One rule and what was found.

    Attributes:
        name: identifier of the check, e.g. "artifact-bytes".
        rule: the statement of the challenge it tests, e.g. "B1" (budget) or "C1" (scoring condition).
        title: what must hold, in one line.
        verdict: PASS, FAIL or NOT RUN.
        reason: one sentence: what was found, or why the check was not made.
        evidence: the numbers behind it; plain JSON values.
    """

    name: str
    rule: str
    title: str
    verdict: Outcome
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """What a check is about, before it is made."""

    name: str
    rule: str
    title: str

    def passed(self, reason: str, **evidence: Any) -> Check:
        """The rule holds."""
        return Check(self.name, self.rule, self.title, "PASS", reason, evidence)

    def failed(self, reason: str, **evidence: Any) -> Check:
        """The rule is broken."""
        return Check(self.name, self.rule, self.title, "FAIL", reason, evidence)

    def not_run(self, reason: str, **evidence: Any) -> Check:
        """Nothing can be said, because of `reason`."""
        return Check(self.name, self.rule, self.title, "NOT RUN", reason, evidence)

    def judge(self, problems: list[str], reason: str, **evidence: Any) -> Check:
        """Failed for `problems` when there are any, else passed with `reason`."""
        if problems:
            return self.failed("; ".join(problems), **evidence)
        return self.passed(reason, **evidence)

    def attempt(self, check: Callable[[], Check]) -> Check:
        """Make a check. Missing evidence is NOT RUN; damaged evidence and violations of the rules are FAIL."""
        try:
            return check()
        except MissingEvidence as missing:
            return self.not_run(str(missing))
        except BitgolfError as error:
            return self.failed(str(error), error=type(error).__name__)


@dataclass(frozen=True)
class Verdict:
    """All checks of an audit, in the order they were made."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when no check failed."""
        return all(check.verdict != "FAIL" for check in self.checks)

    @property
    def complete(self) -> bool:
        """True when every check was made."""
        return all(check.verdict != "NOT RUN" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 when passed, else 1."""
        return 0 if self.passed else 1

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError when there is none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `audit.json`."""
        outcomes = [check.verdict for check in self.checks]
        return {
            "bitgolf_version": __version__,
            "passed": self.passed,
            "complete": self.complete,
            "exit_code": self.exit_code,
            "counts": {outcome: outcomes.count(outcome) for outcome in ("PASS", "FAIL", "NOT RUN")},
            "checks": [asdict(check) for check in self.checks],
        }
