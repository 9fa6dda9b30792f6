"""What can go wrong, by whose hand it can be mended.

Every error that a user can cause derives from `BitgolfError`; its message names what was given, what is
allowed and what to do. The command line prints that message alone and exits with 2; anything else is a bug
and shows its traceback.
"""

from __future__ import annotations


class BitgolfError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(BitgolfError, ValueError):
    """A preset, key or value that is unknown or out of range."""


class DataError(BitgolfError, ValueError):
    """A corpus, tokenizer or shard that is missing, damaged or does not fit the rest."""


class ArtifactError(BitgolfError, ValueError):
    """An artifact that is truncated, damaged, hostile or from another version; says where."""


class BudgetError(BitgolfError, RuntimeError):
    """Work that does not fit the bytes or the seconds that were allowed; says by how much."""


class RunError(BitgolfError, RuntimeError):
    """A run directory that is missing a product, or belongs to another configuration."""


class TrainingDiverged(BitgolfError, RuntimeError):
    """A loss or gradient that is NaN or infinite; says at which step and in which tensor."""


class RuleViolation(BitgolfError, RuntimeError):
    """An attempt to score or adapt against the rules of the challenge (for example twice, or too early)."""
