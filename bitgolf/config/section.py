"""The base class of all sections, and the functions that change, flatten and compare configurations."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from bitgolf.config.earlier import translate
from bitgolf.config.units import read_quantity


class Section(BaseModel):
    """Base of every section. Sections are frozen, and an unknown key is an error.

    `earlier_name` is the name of the section in the tables of `bitgolf.config.earlier`.
    """

    # Pydantic before 2.10 warns of names such as `model_dim` unless no namespace is protected.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    earlier_name: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        """Rename earlier keys here too, because artifacts and codec files hold single sections; read units."""
        if not isinstance(values, Mapping):
            return values
        current = translate(cls.earlier_name, values) if cls.earlier_name else values
        return {key: read_quantity(key, value) for key, value in current.items()}

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A validated copy with other values for the dotted keys of `changes`, for example `{"lora.rank": 4}`."""
        return type(self).model_validate(with_values(self.model_dump(), changes))

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value, with the types of JSON (tuples become lists)."""
        return flatten(self.model_dump(mode="json"))


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested `values` with other values for the dotted keys of `changes`."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        inner = merged.get(head)
        merged[head] = with_values(inner if isinstance(inner, Mapping) else {}, {rest: value}) if rest else value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One mapping with dotted keys from nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def differing_keys(a: Section, b: Section) -> list[str]:
    """Dotted keys in which two sections of one type differ, in the order of the settings."""
    left, right = a.flat(), b.flat()
    return [key for key in left if left[key] != right[key]]
