"""The audit: each rule of the challenge that software can test, as a check with evidence.

`checks`, `records` and `documents` judge what a run wrote down; `flips`, `borders`, `distribution` and `rerun` the
evaluation itself; `reproduce` and `sealed` the artifact scored again in a process that has nothing else (`sandbox`).
`run.audit_run` gathers a run directory's `evidence` for all of them and writes `audit.json`;
`submission.run.audit_submission` reads the folder of a submission.
"""

from bitgolf.audit.verdict import Check, Verdict

__all__ = ["Check", "Verdict"]
