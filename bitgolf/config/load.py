"""From a preset or a TOML file and dotted overrides to a `Config`, or an error that names the nearest valid key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitgolf.config.removed import REMOVED, drop_removed_
from bitgolf.config.section import Section
from bitgolf.config.whole import Config
from bitgolf.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the presets that ship with bitgolf, sorted."""
    files = resources.files("bitgolf.presets").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def load_config(preset: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Resolve a preset name (or the path of a `.toml` file) and dotted overrides into a Config.

    Args:
        preset: a name of `preset_names()` or a path ending in `.toml`.
        overrides: dotted key -> value as text, e.g. `{"train.matrix_lr": "0.02"}`; values are read as TOML
            where they parse (numbers, booleans, lists, quoted strings) and as plain strings otherwise.
    Raises:
        ConfigError: unknown preset or key (with the nearest valid name), or a value out of range.
    """
    if preset.endswith(".toml"):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"configuration file {preset} does not exist")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{preset} is not UTF-8, as TOML is: {error}") from error
    else:
        if preset not in preset_names():
            raise ConfigError(
                f"unknown preset {preset!r}{_nearest(preset, preset_names())}; "
                f"presets: {', '.join(preset_names())}, or the path of a .toml file"
            )
        text = resources.files("bitgolf.presets").joinpath(f"{preset}.toml").read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{preset} is not valid TOML: {error}") from error
    return resolve(values, overrides or {}, origin=preset)


def resolve(values: Mapping[str, Any], overrides: Mapping[str, str], origin: str = "configuration") -> Config:
    """Validate nested `values` with dotted `overrides` on top. Raises ConfigError (see `load_config`)."""
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    known = known_keys()
    for key, text in overrides.items():
        if key not in known and key not in REMOVED:
            raise ConfigError(f"unknown key {key!r}{_nearest(key, known)}")
        *section, leaf = key.split(".")
        target = merged.setdefault(section[0], {}) if section else merged
        target[leaf] = _parse_value(text)
    drop_removed_(merged, origin)
    for key in _flatten(merged):
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {key!r}{_nearest(key, known)}")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def known_keys() -> dict[str, str]:
    """Every dotted key with its description."""
    keys: dict[str, str] = {}
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            for leaf, leaf_field in annotation.model_fields.items():
                keys[f"{name}.{leaf}"] = leaf_field.description or ""
        else:
            keys[name] = field.description or ""
    return keys


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        lowered = text.lower()
        return {"true": True, "false": False}.get(lowered, text)


def _flatten(values: Mapping[str, Any]) -> Iterable[str]:
    for name, value in values.items():
        field = Config.model_fields.get(name)
        is_section = field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if is_section and not isinstance(value, Mapping):
            raise ConfigError(f"{name!r} is a section of settings, not a value; give for example {name}.KEY")
        if isinstance(value, Mapping):
            yield from (f"{name}.{leaf}" for leaf in value)
        else:
            yield name


def _nearest(key: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the closest known name, trying the last part of a dotted key too."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:
        leaves = {name.rsplit(".", 1)[-1]: name for name in names}
        found = difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.6)
        close = [leaves[found[0]]] if found else []
    return f", did you mean {close[0]!r}?" if close else ""


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']!s}"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower() + error['msg'][1:]}"
