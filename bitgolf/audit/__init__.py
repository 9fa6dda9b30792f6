"""The audit: each rule of the challenge that software can test (docs/rules.md), as a check with evidence.

A check function takes the `Evidence` of a run, returns a `Finding`, and registers itself (`registry`):

    budgets        bytes, training seconds, evaluation seconds
    seals          digests that were recorded when a product was made
    configuration  one configuration, the configured headline, the training log
    documents      the documents of both splits
    tape_log       the score tape's event log
    figures        counts, the identity of loss and bits per byte, figures in several files
    flips, borders, distribution, other_shapes    the evaluation itself, run on a passage (`headline`, `traces`)
    reproduction   the artifact scored again in a process that has nothing else (`sealed_run`, `sandbox`)
    codec          the text coded and decoded

`run.audit_run` makes them all and writes `audit.json`. `referee` has the checks of submission folders.
"""

from bitgolf.audit.verdict import Check, Verdict

__all__ = ["Check", "Verdict"]
