"""Settings typed on a command line: words become texts by key, and texts become values of a `Config`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from bitgolf.config.config import Config
from bitgolf.config.section import with_values
from bitgolf.errors import ConfigError, ForeignError
from bitgolf.foreign import MAX_NUMBER_LENGTH, parse_toml, printable


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


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, str]) -> Config:
    """The configuration of nested `values` with the texts of `overrides` for dotted keys.

    Raises ConfigError for an unknown key of `overrides`, and for values that do not fit.
    """
    defaults = Config().flat()
    if unknown := sorted(overrides.keys() - defaults.keys()):
        raise ConfigError(f"unknown key {unknown[0]!r}")
    changes = {key: _parse_value(key, text, isinstance(defaults[key], list)) for key, text in overrides.items()}
    try:
        return Config.model_validate(with_values(values, changes))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def _parse_value(key: str, text: str, is_list: bool) -> Any:
    """`text` as the value of a setting: TOML if it is one value, otherwise text, or a list of what commas separate.

    Raises ConfigError for numbers of too many digits.
    """
    if len(text) > MAX_NUMBER_LENGTH and not text.strip("+-._0123456789"):
        raise ConfigError(f"{key} = {printable(text)}: the number has too many digits")
    try:
        table = parse_toml(f"value = {text}")
    except ForeignError:
        table = {}
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
