"""The list of checks: a decorator enters each check function, and the audit makes them all.

    checks: Registry[Evidence] = Registry()

    @checks.register("artifact-bytes", "B1", "code and model together fit the byte budget")
    def artifact_bytes(evidence: Evidence) -> Finding: ...

A check reads all that it needs from its subject: the `Evidence` of a run, or the `Submission` of a folder (`referee`).
A damaged file fails the checks that read it and no others.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Generic, TypeVar

from bitgolf.audit.verdict import Check, Finding, MissingEvidence, Verdict, failed, not_run
from bitgolf.errors import BitgolfError, ConfigError
from bitgolf.foreign import printable
from bitgolf.run.progress import Progress, silent

Subject = TypeVar("Subject")
_LONGEST_REASON = 4_000  # characters


@dataclass(frozen=True)
class _Entry(Generic[Subject]):
    name: str
    rule: str
    title: str
    function: Callable[[Subject], Finding]
    applies: Callable[[Subject], bool]


class Registry(Generic[Subject]):
    """The checks of one kind of subject."""

    def __init__(self) -> None:
        self.entries: list[_Entry[Subject]] = []

    def register(
        self, name: str, rule: str, title: str, *, applies: Callable[[Subject], bool] = lambda _: True
    ) -> Callable[[Callable[[Subject], Finding]], Callable[[Subject], Finding]]:
        """Enter the decorated function as the check `name` of `rule`; `applies` says which subjects have it."""

        def enter(function: Callable[[Subject], Finding]) -> Callable[[Subject], Finding]:
            self.entries.append(_Entry(name, rule, title, function, applies))
            return function

        return enter

    def arrange(self, modules: Sequence[ModuleType]) -> None:
        """Make the checks in the order of these modules, which define all of them."""
        places = [module.__name__ for module in modules]
        self.entries.sort(key=lambda entry: places.index(entry.function.__module__))

    def names(self, subject: Subject) -> list[str]:
        return [entry.name for entry in self.entries if entry.applies(subject)]

    def make(self, subject: Subject, only: Collection[str] = (), progress: Progress = silent) -> Verdict:
        """Make all checks that apply to `subject`, or those named in `only`.

        Raises ConfigError when a name in `only` is unknown.
        """
        names = self.names(subject)
        if unknown := set(only) - set(names):
            raise ConfigError(f"there are no checks {', '.join(sorted(unknown))}; those here are {', '.join(names)}")
        entries = [entry for entry in self.entries if entry.name in (only or names) and entry.applies(subject)]
        made: list[Check] = []
        for done, entry in enumerate(entries):
            progress("audit", done, len(entries), entry.name)
            finding = attempt(entry.function, subject)
            reason = printable(finding.reason, _LONGEST_REASON)  # it may quote foreign text
            made.append(Check(entry.name, entry.rule, entry.title, finding.verdict, reason, finding.evidence))
        progress("audit", len(entries), len(entries))
        return Verdict(tuple(made))


def attempt(function: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """Call a check function. Missing evidence is NOT RUN. Violations and damaged evidence are FAIL.

    Records are written by others, so a check may also meet values of any other kind than it expects. The error that
    they cause is reported as the reason, and the audit goes on.
    """
    try:
        return function(subject)
    except MissingEvidence as missing:
        return not_run(str(missing))
    except BitgolfError as error:
        return failed(str(error), error=type(error).__name__)
    except Exception as error:
        reason = f"the records have another form than expected: {type(error).__name__}: {error}"
        return failed(reason[:400], error=type(error).__name__)
