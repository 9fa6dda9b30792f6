"""The list of all settings: dotted key, allowed values, default and description.

Error messages, help texts and documentation are made from it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from bitgolf.config.config import Config
from bitgolf.config.section import Section


@dataclass(frozen=True)
class Setting:
    key: str
    allowed: str  # the allowed values in words, for example "one of none, ste, soft_round" or "integer >= 1"
    default: Any
    description: str

    @property
    def is_list(self) -> bool:
        return isinstance(self.default, tuple)


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Every setting by its dotted key, in the order of the sections."""
    return {setting.key: setting for setting in _settings(Config, "")}


def is_group(key: str) -> bool:
    """Whether `key` names a section or a group of settings, such as "ttt.lora"."""
    return any(name.startswith(f"{key}.") for name in all_settings())


def as_text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        items = ",".join(map(as_text, value))
        return f"[{items}]" if value and isinstance(value[0], tuple) else items
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _settings(section: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _settings(annotation, f"{prefix}{name}.")
        else:
            allowed = _allowed(annotation, field)
            if name.endswith(("bytes", "seconds")):
                allowed += ", or text with a unit, as " + ("300KB" if name.endswith("bytes") else "5min")
            yield Setting(prefix + name, allowed, field.default, field.description or "")


def _allowed(annotation: Any, field: FieldInfo) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        first, *rest = get_args(annotation)
        if rest != [...]:
            return f"({', '.join(_allowed(kind, field) for kind in (first, *rest))})"
        return "a list, each " + _allowed(first, field)
    kind = {int: "integer", float: "number", bool: "true or false", str: "text"}[annotation]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, name):.12g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if hasattr(rule, name)
    ]
    return " ".join([kind, " and ".join(bounds)]).strip()
