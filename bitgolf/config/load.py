"""Loading: a preset or a TOML file plus dotted overrides become a `Config`, or a ConfigError with the nearest key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import ValidationError

from bitgolf.config.config import Config
from bitgolf.config.earlier import MOVED, NOTEBOOK, REMOVED, translate
from bitgolf.config.nearest import nearest_setting
from bitgolf.config.section import flatten, with_values
from bitgolf.config.settings import all_settings, is_group
from bitgolf.errors import ConfigError, ForeignError, require_type
from bitgolf.foreign import MAX_NUMBER_LENGTH, parse_toml, printable, read_bytes

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
    merged = with_values(current, {key: _parse_value(key, text) for key, text in overrides.items()})
    for key in flatten(merged):
        _require_setting(key, f"{origin}: ")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


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


def _parse_value(key: str, text: str) -> Any:
    """`text` as the value of a setting: TOML if it is one value, otherwise text, or a list of what commas separate.

    Raises ConfigError for numbers of too many digits.
    """
    if len(text) > MAX_NUMBER_LENGTH and not text.strip("+-._0123456789"):
        raise ConfigError(f"{key} = {printable(text)}: the number has too many digits")
    try:
        table = parse_toml(f"value = {text}")
    except ForeignError:
        table = {}
    is_list = all_settings()[key].is_list
    if table.keys() == {"value"} and (not is_list or isinstance(table["value"], list)):
        return table["value"]
    if is_list:
        items = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [item.strip(" \"'") for item in items.split(",") if item.strip()]
    return {"true": True, "false": False}.get(text.lower(), text)


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":
        return f"{where + ': ' if where else ''}{error['ctx']['error']!s}"
    if error["type"] == "tuple_type":
        return (
            f"{where} = {printable(repr(error['input']))}: this must be a list; write a list of lists as [[...],[...]]"
        )
    return f"{where} = {printable(repr(error['input']))}: {error['msg'][0].lower() + error['msg'][1:]}"
