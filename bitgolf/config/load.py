"""Loading: a preset or a TOML file plus dotted overrides become a `Config`, or a ConfigError with the nearest key."""

import difflib
import os
from collections.abc import Mapping
from importlib import resources
from typing import Any

from bitgolf.config.config import Config
from bitgolf.config.earlier import MOVED, NOTEBOOK, REMOVED, translate
from bitgolf.config.nearest import nearest_setting
from bitgolf.config.overrides import with_overrides
from bitgolf.config.section import flatten, with_values
from bitgolf.config.settings import all_settings, is_group
from bitgolf.errors import ConfigError, ForeignError, require_type
from bitgolf.foreign import parse_toml, read_bytes

_MAX_BYTES = 1_000_000


def preset_names() -> list[str]:
    """Names of the presets that ship with bitgolf, sorted."""
    files = resources.files("bitgolf.presets").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def load_config(preset: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> Config:
    """Resolve a preset name (or the path of a `.toml` file) and dotted overrides into a Config.

    Args:
        preset: a name of `preset_names()` or a path that ends in `.toml`. Such a file may have the key `base`, the name
            of a preset whose settings it changes.
        overrides: dotted key -> value as text, for example `{"train.matrix_lr": "0.02"}`. A value is read as TOML if
            it parses (numbers, booleans, lists, quoted strings), otherwise as a plain string. The items of a list may
            also be written with commas between them.

    Raises:
        TypeError: a value of another type.
        ConfigError: unknown preset or key (with the nearest valid name), or a value out of range.
    """
    require_type("preset", preset, (str, os.PathLike), "the name of a preset or the path of a .toml file")
    overrides = {} if overrides is None else overrides
    require_type("overrides", overrides, Mapping, "a dictionary of texts")
    for key, value in overrides.items():
        require_type("a key of overrides", key, str, "a text")
        require_type(f"the value of {key}", value, str, 'a text, as in {"train.matrix_lr": "0.02"}')
    return resolve(_preset_values(str(preset)), overrides, origin=str(preset))


def _preset_values(preset: str) -> dict[str, Any]:
    """The nested values of a preset or file, on top of those of the preset that its key `base` names."""
    try:
        values = parse_toml(_preset_bytes(preset), _MAX_BYTES)
    except ForeignError as error:
        raise ConfigError(f"{preset} is no configuration: {error}") from error
    base = values.pop("base", "")
    if base == "":
        return values
    if base not in preset_names() or base == preset:
        raise ConfigError(f"{preset}: base {base!r} is no preset; presets: {', '.join(preset_names())}")
    return with_values(_preset_values(base), flatten(values))


def _preset_bytes(preset: str) -> bytes:
    if preset.endswith(".toml"):
        try:
            return read_bytes(preset, _MAX_BYTES)
        except FileNotFoundError as error:
            raise ConfigError(f"configuration file {preset} does not exist") from error
    if preset not in preset_names():
        near = difflib.get_close_matches(preset, preset_names(), n=1)
        raise ConfigError(
            f"unknown preset {preset!r}{_did_you_mean(near[0] if near else None)}; "
            f"presets: {', '.join(preset_names())}, or the path of a .toml file"
        )
    return resources.files("bitgolf.presets").joinpath(f"{preset}.toml").read_bytes()


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
    for key in flatten(current):
        _require_setting(key, f"{origin}: ")
    return with_overrides(current, overrides)


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
    word = key.rpartition(".")[2]
    near = _did_you_mean(nearest_setting(key)) or f"; `bitgolf settings {word}` searches names and descriptions"
    raise ConfigError(f"{where}unknown key {key!r}{near}")


def _did_you_mean(name: str | None) -> str:
    return f", did you mean {name!r}?" if name else ""
