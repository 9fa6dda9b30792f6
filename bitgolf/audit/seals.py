"""Checks of the seals: digests that were recorded when a product was made, computed again from the files of the run.

Rule B7 (docs/rules.md): what was scored is what was packed.
"""

from __future__ import annotations

from bitgolf.audit.evidence import Evidence, run_checks
from bitgolf.audit.verdict import Finding, judge


@run_checks.register("artifact-sealed", "B7", "the artifact is the one that was scored")
def artifact_sealed(evidence: Evidence) -> Finding:
    """B7: the artifact on disk is bit for bit the one that score.json belongs to."""
    on_disk, scored = evidence.artifact_sha256, str(evidence.score.get("model_sha256"))
    problems = []
    if on_disk != scored:
        problems.append(
            f"model.bitgolf has SHA-256 {on_disk[:12]}..., the scores belong to {scored[:12]}...: it was changed after "
            "scoring"
        )
    return judge(
        problems,
        f"SHA-256 {on_disk[:12]}... on disk and in score.json",
        file_sha256=on_disk,
        scored_sha256=scored,
    )
