"""The audit: each rule of the challenge that software can test, as a check with evidence.

`bitgolf.audit.checks` judges records (bytes, clocks, ledger, counts), `flips` and `normalization` judge the
evaluation itself, `reproduce` rescoring; `bitgolf.audit.run.audit_run` gathers a run directory's evidence for all
of them and writes `audit.json`.
"""

from bitgolf.audit.verdict import Check, Verdict

__all__ = ["Check", "Verdict"]
