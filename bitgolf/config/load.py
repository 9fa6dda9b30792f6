"""Loading: a preset or a TOML file plus dotted overrides become a `Config`, or a ConfigError with the nearest key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitgolf.config.config import Config
from bitgolf.config.earlier import MOVED, NOTEBOOK, REMOVED, translate
from bitgolf.config.section import flatten, with_values
from bitgolf.config.settings import all_settings, is_group, nearest_setting
from bitgolf.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the presets that ship with bitgolf, sorted."""
    files = resources.files("bitgolf.presets").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def load_config(preset: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Resolve a preset name (or the path of a `.toml` file) and dotted overrides into a Config.

    Args:
        preset: a name of `preset_names()` or a path that ends in `.toml`.
        overrides: dotted key -> value as text, for example `{"train.matrix_lr": "0.02"}`. A value is read as TOML if
            it parses (numbers, booleans, lists, quoted strings), otherwise as a plain string.

    Raises:
        ConfigError: unknown preset or key (with the nearest valid name), or a value out of range.
    """
    try:
        values = tomllib.loads(_preset_text(preset))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{preset} is not valid TOML: {error}") from error
    return resolve(values, overrides or {}, origin=preset)


def _preset_text(preset: str) -> str:
    if preset.endswith(".toml"):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"configuration file {preset} does not exist")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{preset} is not UTF-8, the encoding of TOML: {error}") from error
    if preset not in preset_names():
        near = difflib.get_close_matches(preset, preset_names(), n=1)
        raise ConfigError(
            f"unknown preset {preset!r}{_did_you_mean(near[0] if near else None)}; "
            f"presets: {', '.join(preset_names())}, or the path of a .toml file"
        )
    return resources.files("bitgolf.presets").joinpath(f"{preset}.toml").read_text(encoding="utf-8")


def resolve(values: Mapping[str, Any], overrides: Mapping[str, str], origin: str = "configuration") -> Config:
    """Validate nested `values` with dotted `overrides` on top. Raises ConfigError (see `load_config`).

    `values` may hold keys of earlier versions. The keys of `overrides` must be current ones.
    """
    for key in overrides:
        _require_setting(key, "")
    try:
        current = {
            name: translate(name, value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error
    merged = with_values(current, {key: _parse_value(text) for key, text in overrides.items()})
    for key in flatten(merged):
        _require_setting(key, f"{origin}: ")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def _require_setting(key: str, where: str) -> None:
    """Raise ConfigError unless `key` is a setting. The message begins with `where`."""
    if key in all_settings():
        return
    if is_group(key):
        raise ConfigError(f"{where}{key!r} is a group of settings, not a value; use for example {key}.KEY")
    if key in MOVED:
        raise ConfigError(f"{where}{key!r} has moved to {MOVED[key]!r}")
    if key in REMOVED:
        raise ConfigError(f"{where}{key!r} was removed. {REMOVED[key][1]} {NOTEBOOK}")
    raise ConfigError(f"{where}unknown key {key!r}{_did_you_mean(nearest_setting(key))}")


def _did_you_mean(name: str | None) -> str:
    return f", did you mean {name!r}?" if name else ""


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']!s}"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower() + error['msg'][1:]}"
