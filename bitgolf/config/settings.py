"""The list of all settings: dotted key, allowed values, default and description.

Error messages, help texts and documentation are made from it. `nearest_setting` guesses the key that a user meant.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from bitgolf.config.config import Config
from bitgolf.config.section import Section

# Words of other programs -> words of the keys here.
_SYNONYMS = {
    "learning_rate": "lr",
    "batch_size": "batch_tokens",
    "context_length": "seq_len",
    "block_size": "seq_len",
    "window": "seq_len",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "model_dim",
    "hidden_size": "model_dim",
}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        allowed: the allowed values in words, for example "one of none, ste, soft_round" or "integer >= 1".
    """

    key: str
    allowed: str
    default: Any
    description: str


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Every setting by its dotted key, in the order of the sections."""
    return {setting.key: setting for setting in _settings(Config, "")}


def is_group(key: str) -> bool:
    """Whether `key` names a section or a group of settings, such as "ttt.lora"."""
    return any(name.startswith(f"{key}.") for name in all_settings())


def nearest_setting(key: str) -> str | None:
    """The setting that an unknown `key` probably means, or None.

    A key of the same group whose last part contains the given last word comes first: `train.lr` means
    `train.matrix_lr`. After it come typing errors, then such keys of any group, and then synonyms.
    """
    group, _, word = key.replace("-", "_").rpartition(".")
    names = sorted(all_settings(), key=lambda name: name.count("."))  # stable: the order of the sections is kept
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}

    def same_group(word: str) -> list[str]:
        parent = group
        while parent:
            if near := _with_word(word, [name for name in names if name.startswith(f"{parent}.")]):
                return near
            parent = parent.rpartition(".")[0]
        return []

    near = same_group(word)
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    near = near or _with_word(word, names)
    near = near or [by_last[last] for last in difflib.get_close_matches(word, by_last, n=1, cutoff=0.8)]
    if not near and word in _SYNONYMS:
        near = same_group(_SYNONYMS[word]) or _with_word(_SYNONYMS[word], names)
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    return near[0] if near else None


def _with_word(word: str, names: list[str]) -> list[str]:
    """The names whose last part is `word`, or ends or begins with it. Names with fewer dots come first."""

    def rank(name: str) -> tuple[int, int]:
        last = name.rpartition(".")[2]
        tests = (last == word, last.endswith(f"_{word}"), last.startswith(f"{word}_"))
        return name.count("."), tests.index(True) if any(tests) else len(tests)

    return sorted((name for name in names if rank(name)[1] < 3), key=rank)


def _settings(section: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _settings(annotation, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, _allowed(annotation, field), field.default, field.description or "")


def _allowed(annotation: Any, field: FieldInfo) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "a list, each " + _allowed(get_args(annotation)[0], field)
    kind = {int: "integer", float: "number", bool: "true or false", str: "text"}[annotation]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if hasattr(rule, name)
    ]
    return " ".join([kind, " and ".join(bounds)]).strip()
