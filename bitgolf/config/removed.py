"""Settings that earlier versions had and this one removed, because measurements showed that they do not pay.

A configuration written by an earlier version holds every key. It still loads when a removed key has the value with
which the setting did nothing.
"""

from __future__ import annotations

from typing import Any

from bitgolf.errors import ConfigError

_NOTEBOOK = (
    'The result is in docs/lab-notebook.md under "options that do not pay are removed"; commit 237e293 has the code.'
)

REMOVED: dict[str, tuple[Any, str]] = {
    "model.smear_gate_init": (0.0, "The smear gate starts at a logit of 0, as in every run so far."),
    "pack.column_rule": ("pivot", "Column steps in the manner of AWQ ('salient') lost more than those by pivots."),
    "pack.lqer_rank": (0, "Low-rank corrections (LQER) lowered the loss by 0.00003 bits per byte for 12 KB."),
    "pack.lqer_tensors": (3, "It belonged to pack.lqer_rank, which is removed too."),
    "pack.rate": (0.0, "The rate term saved 0.003 to 0.004 bits per weight at equal error."),
    "pack.rescale": ("none", "Scales fitted again to the chosen codes did not lower the loss."),
    "ttt.temperature": (1.0, "A temperature chosen while scoring gained 0.0004 bits per byte on a small model."),
    "ttt.temperature_lr": (0.0, "A temperature learned while scoring gained 0.0004 bits per byte on a small model."),
}
"""Old key -> (the value with which the setting did nothing, a sentence about what it was worth)."""


def drop_removed_(values: dict[str, Any], origin: str) -> None:
    """Take settings of earlier versions out of nested `values`. Raises ConfigError when one of them did something."""
    for key, (neutral, sentence) in REMOVED.items():
        name, _, leaf = key.partition(".")
        section = values.get(name)
        if not isinstance(section, dict) or leaf not in section:
            continue
        value = section.pop(leaf)
        if value != neutral:
            raise ConfigError(
                f"{origin}: {key} = {value!r}: this setting was removed, and only {neutral!r} is still read. "
                f"{sentence} {_NOTEBOOK}"
            )
