"""The errors that a user can cause. All of them derive from `BitgolfError`.

A message names what was given, what is allowed, and what to do. The command line prints the message as one line and
exits with status 2. Any other exception is a bug and shows its traceback.
"""


class BitgolfError(Exception):
    """Base of every error that a user can cause and fix."""


class ConfigError(BitgolfError, ValueError):
    """A preset, key or value is unknown or out of range."""


class DataError(BitgolfError, ValueError):
    """A corpus, tokenizer or shard is missing, damaged, or does not fit the other data."""


class ArtifactError(BitgolfError, ValueError):
    """An artifact is truncated, damaged, hostile or from another version. The message names the place."""


class BudgetError(BitgolfError, RuntimeError):
    """Work does not fit the bytes or seconds of the budget. The message gives the difference."""


class RunError(BitgolfError, RuntimeError):
    """A run directory lacks a product, is in use, or belongs to another configuration."""


class TrainingDiverged(BitgolfError, RuntimeError):
    """A loss or gradient is NaN or infinite. The message names the step and the tensor."""


class RuleViolation(BitgolfError, RuntimeError):
    """Code tried to score or adapt against the rules (docs/rules.md), for example to score a target twice."""


class ForeignError(BitgolfError, ValueError):
    """Text, JSON or a number in a file from elsewhere is malformed or above a limit (`bitgolf.foreign`)."""


def require_type(name: str, value: object, kinds: type | tuple[type, ...], allowed: str) -> None:
    """Raise TypeError unless `value` is an instance of `kinds`; bool counts as an int only if it is among `kinds`."""
    if (isinstance(value, bool) and kinds is not bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} must be {allowed}, not {type(value).__name__}")
