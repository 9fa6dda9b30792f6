"""From a preset or a TOML file and dotted overrides to a `Config`, or an error that names the nearest valid key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitgolf.config.earlier import MOVED, NOTEBOOK, REMOVED, translate
from bitgolf.config.section import flatten, with_values
from bitgolf.config.settings import all_settings, is_group
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
    """Validate nested `values` with dotted `overrides` on top. Raises ConfigError (see `load_config`).

    Keys of earlier versions in `values` are read under their names of today. An override must use the name of today.
    """
    known = all_settings()
    try:
        today = {
            name: translate(name, value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error
    for key in overrides:
        _require_known(key, known, "")
    merged = with_values(today, {key: _parse_value(text) for key, text in overrides.items()})
    for key in flatten(merged):
        _require_known(key, known, f"{origin}: ")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def _require_known(key: str, known: Mapping[str, object], where: str) -> None:
    """Raise ConfigError unless `key` is a setting."""
    if key in known:
        return
    if is_group(key):
        raise ConfigError(f"{where}{key!r} is a group of settings, not a value; give for example {key}.KEY")
    if key in MOVED:
        raise ConfigError(f"{where}{key!r} has moved: it is {MOVED[key]!r} now")
    if key in REMOVED:
        raise ConfigError(f"{where}{key!r} was removed. {REMOVED[key][1]} {NOTEBOOK}")
    raise ConfigError(f"{where}unknown key {key!r}{_nearest(key, known)}")


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        lowered = text.lower()
        return {"true": True, "false": False}.get(lowered, text)


def _nearest(key: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for the closest known name, trying the last part of a dotted key too."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:
        by_leaf = {name.rsplit(".", 1)[-1]: name for name in names}
        leaves = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.6)
        close = [by_leaf[leaf] for leaf in leaves]
    return f", did you mean {close[0]!r}?" if close else ""


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']!s}"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower() + error['msg'][1:]}"
