"""What an audit says: one `Check` per rule with its evidence, and the `Verdict` over all of them.

A check function returns a `Finding`: PASS, FAIL or NOT RUN, one sentence of reason, and the numbers behind it. A check
that cannot be made raises `MissingEvidence`; it is then NOT RUN, which never counts as passed. The verdict fails when
any check fails. Its JSON is the `audit.json` of a run directory. `registry` collects the check functions.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bitgolf.version import __version__

Outcome = Literal["PASS", "FAIL", "NOT RUN"]


class MissingEvidence(Exception):
    """A check cannot be made. The message names the product that is missing and the command that makes it."""


@dataclass(frozen=True)
class Finding:
    """The result of one check function."""

    verdict: Outcome  # PASS, FAIL or NOT RUN
    reason: str  # one sentence: what was compared, which problems there are, or why the check was not made
    evidence: dict[str, Any] = field(default_factory=dict)  # the numbers behind it; plain JSON values


def passed(reason: str, **evidence: Any) -> Finding:
    """The rule holds."""
    return Finding("PASS", reason, evidence)


def failed(reason: str, **evidence: Any) -> Finding:
    """The rule is broken."""
    return Finding("FAIL", reason, evidence)


def not_run(reason: str, **evidence: Any) -> Finding:
    """The check cannot decide, because of `reason`."""
    return Finding("NOT RUN", reason, evidence)


def judge(problems: list[str], reason: str, **evidence: Any) -> Finding:
    """FAIL with all `problems` when there are any, else PASS with `reason`."""
    return failed("; ".join(problems), **evidence) if problems else passed(reason, **evidence)


@dataclass(frozen=True)
class Check:
    """A finding with the rule that it is about."""

    name: str  # identifier of the check, e.g. "artifact-bytes".
    rule: str  # code of the rule in docs/rules.md, e.g. "B1" (budget) or "C1" (scoring condition).
    title: str  # what must hold, in one line
    # verdict, reason, evidence: as in `Finding`
    verdict: Outcome
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """All checks of an audit, in the order in which they were made."""

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
        """0 when every check passed, 1 when one failed, 3 when none failed and one was not made."""
        return 1 if not self.passed else 0 if self.complete else 3

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError when there is none."""
        return {check.name: check for check in self.checks}[name]

    def to_json(self) -> dict[str, Any]:
        outcomes = [check.verdict for check in self.checks]
        return {
            "bitgolf_version": __version__,
            "passed": self.passed,
            "complete": self.complete,
            "exit_code": self.exit_code,
            "counts": {outcome: outcomes.count(outcome) for outcome in ("PASS", "FAIL", "NOT RUN")},
            "checks": [asdict(check) for check in self.checks],
        }
