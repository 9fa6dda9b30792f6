"""What every section of the configuration is: frozen, strict about names, readable with the names of earlier "
"versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from bitgolf.config.earlier import translate


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown keys, no silent conversion.

    `earlier_name` is the dotted name under which `bitgolf.config.earlier` lists keys of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    earlier_name: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _translate_earlier_keys(cls, values: Any) -> Any:
        """Artifacts and codec files hold single sections that an earlier version wrote."""
        return translate(cls.earlier_name, values) if cls.earlier_name and isinstance(values, Mapping) else values

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A validated copy with the dotted keys of `changes` set, for example `{"lora.rank": 4}`."""
        return type(self).model_validate(with_values(self.model_dump(), changes))

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted key, lists and numbers as JSON has them."""
        return flatten(self.model_dump(mode="json"))


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `values` with the dotted keys of `changes` set; `values` itself stays as it is."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        inner = merged.get(head)
        merged[head] = with_values(inner if isinstance(inner, Mapping) else {}, {rest: value}) if rest else value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def differing_keys(a: Section, b: Section) -> list[str]:
    """Dotted keys in which two sections of one type differ, in the order of the settings."""
    left, right = a.flat(), b.flat()
    return [key for key in left if left[key] != right[key]]
