"""Settings that earlier versions had and this one removed, because measurements showed no gain.

A configuration written by an earlier version holds every key. It still loads when a removed key has the value with
which the setting did nothing.
"""

from __future__ import annotations

from typing import Any

_PACKED = (
    'Its result is in docs/lab-notebook.md, "2026-11-22: both seeds packed to the byte on a GPU"; '
    "commit 237e293 has its code"
)

REMOVED: dict[str, tuple[Any, str]] = {
    "pack.lqer_rank": (
        0, f"LQER of rank 4 on three matrices lowered the loss by 0.00003 bits per byte for 12 KB. {_PACKED}"
    ),
    "pack.lqer_tensors": (3, f"It belonged to pack.lqer_rank, which is removed too. {_PACKED}"),
    "pack.column_rule": (
        "pivot", f"Column steps in the manner of AWQ ('salient') lost more than those by pivots, 0.0014 against 0.0010 "
        f"bits per byte. {_PACKED}"
    ),
    "pack.rate": (
        0, f"The rate term saved 0.003 to 0.004 bits per weight at equal error. {_PACKED}"
    ),
    "pack.rescale": ("none", f"Scales fitted again to the chosen codes did not lower the loss. {_PACKED}"),
}  # fmt: skip
"""Old key -> (the value with which it did nothing, a sentence with the result and where it is recorded)."""
