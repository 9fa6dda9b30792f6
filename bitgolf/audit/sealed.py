"""The sealed evaluation: the artifact scored again by a process that has nothing else, and what stood around it.

The process is shown the libraries and the artifact; before the first validation token reaches it, the kernel stops it
from opening any file, and a chunk's tokens reach it only when the chunks before are scored and committed here. An
evaluation that opens the validation or training files itself cannot do so there: it fails, or its losses are not those
on record. Where the system grants no such walls, the losses are compared all the same and this check says NOT RUN.
Source: rule B7, and number 5 of the challenge's pre-submission gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitgolf.audit.verdict import Check, Rule

SEALED_EVALUATION = Rule(
    "sealed-evaluation", "B7", "scored again with nothing but the artifact: no file, no network, no later token"
)


def sealed_evaluation(
    walls: Mapping[str, Any],  # of the sealed process
    attempts: Sequence[str],  # what the evaluation tried to open once tokens had arrived
    num_targets: int,  # scored in it
    text_in_libraries: bool,  # the corpus is the interpreter's own library, which must be readable while it loads
) -> Check:
    """B7: PASS when the walls stood on every side and held; FAIL when the evaluation tried to get out."""
    evidence = {**walls, "attempts": list(attempts), "targets": num_targets, "text_in_libraries": text_in_libraries}
    if attempts:
        return SEALED_EVALUATION.failed(
            f"with the tokens in hand, the evaluation tried to open {', '.join(attempts[:3])}", **evidence
        )
    gaps = []
    if not walls["files"]:
        gaps.append("while it loaded, it could have read any file")
    if walls["reachable"]:
        gaps.append(f"{walls['reachable'][0]} was readable while it loaded")
    if not walls["network"]:
        gaps.append("it could use the network")
    if not walls["closed"]:
        gaps.append("nothing but Python's own functions kept it from opening files while it scored")
    if walls["still_open"]:
        gaps.append(f"{walls['still_open'][0]} stayed open while it scored")
    if gaps:
        why = f" ({'; '.join(walls['refused'])})" if walls["refused"] else ""
        return SEALED_EVALUATION.not_run(
            f"a fresh process without paths to the data scored it, but was not walled off: {'; '.join(gaps)}{why}",
            **evidence,
        )
    how = {"namespaces": "namespaces of its own", "landlock": "Landlock"}[walls["files"]]
    note = "; the text is the interpreter's own library, readable until then" if text_in_libraries else ""
    return SEALED_EVALUATION.passed(
        f"{num_targets:,} targets scored behind {how}, no network, every file closed before the first token{note}",
        **evidence,
    )
