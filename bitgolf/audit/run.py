"""Audit of a run directory: make every registered check and write audit.json.

Importing a module of checks registers them. Records come first, then the checks that run the model. The artifact is
scored again in a sealed process, which is started before the first check.
"""

from collections.abc import Collection
from contextlib import closing, suppress
from typing import Any

from bitgolf.audit import (
    borders,
    budgets,
    codec,
    configuration,
    distribution,
    documents,
    figures,
    flips,
    near_duplicates,
    other_shapes,
    reproduction,
    seals,
    tape_log,
)
from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Verdict
from bitgolf.run import atomic
from bitgolf.run.directory import RunDirectory, writes_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.seal import record_seal

_OF_RECORDS = (budgets, seals, configuration, documents, near_duplicates, tape_log, figures)
_OF_THE_EVALUATION = (flips, borders, distribution, other_shapes, reproduction, codec)
run_checks.arrange([*_OF_RECORDS, *_OF_THE_EVALUATION])


@writes_run
def audit_run(run: RunDirectory, *, only: Collection[str] = (), progress: Progress = silent, **options: Any) -> Verdict:
    """Make every check on a run and write audit.json. What the run lacks becomes NOT RUN.

    Args:
        only: names of the checks to make; audit.json is then left as it is.
        progress: called with stage "audit" and the number of checks made.
        options: quick, everything, codec_bytes, entropy, sealed_limits; see `Evidence`.
    Raises:
        ConfigError: a name in `only` is unknown.
    """
    with closing(Evidence(run, progress=progress, **options)) as evidence:
        if not only or {"reproduction", "sealed-evaluation"} & set(only):
            with suppress(Exception):  # the checks that need the process will report what prevents it
                _ = evidence.again.process
        verdict = run_checks.make(evidence, only, progress)
    if not only:
        stored = {
            **verdict.to_json(),
            "quick": evidence.quick,
            "everything": evidence.everything,
            "device": str(evidence.device),
            "entropy": str(evidence.entropy),
            "score_seal": record_seal(run / "score.json"),
        }
        atomic.write_json(run / "audit.json", stored)
        run.mark_report_outdated("audit")
    return verdict
