"""Dotted overrides on a command line, for `bitgolf` and for the single-file program."""

from __future__ import annotations

from collections.abc import Sequence

from bitgolf.errors import ConfigError


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """Text by dotted key from words such as `--train.matrix_lr 0.02` and `--seed=7`.

    Hyphens in a key count as underscores. Raises ConfigError for a word that is not an option, an option without a
    value and an option given twice.
    """
    overrides: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument {word!r}; settings are written --section.key VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            next_word = next(rest, None)
            if next_word is None:
                raise ConfigError(f"{word} needs a value")
            value = next_word
        key = key.replace("-", "_")
        if key in overrides:
            raise ConfigError(f"--{key} is given twice")
        overrides[key] = value
    return overrides
