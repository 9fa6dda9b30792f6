"""The file of a sweep: which settings are tried, in which range, on top of which configuration.

    question = "What is asked"
    base = "golf-8192"                     preset, .toml file, or the config.toml of a run
    trials = 20                            number of trainings
    [settings]                             settings of every trial, with dotted keys
    [search]
    "train.matrix_lr" = {low = 0.01, high = 0.05, log = true}
    "train.muon.momentum" = {choices = [0.95, 0.97]}

A sweep may choose what training does. It may not choose the seed, the text, the budget or how text is scored, because
such a choice would be luck or would change the task. Its measure is the loss on held-out training text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgolf.config import Config, load_config, resolve
from bitgolf.config.section import flatten, with_values
from bitgolf.errors import ConfigError, ForeignError
from bitgolf.foreign import as_object, parse_toml, read_bytes

SEARCHED = ("model.", "train.", "qat.")
KEPT = ("train.held_out_tokens", "train.max_steps", "train.average.choose", "model.vocab_size")
_KEYS = {"question", "base", "trials", "settings", "search"}


@dataclass(frozen=True)
class SweepStudy:
    """A sweep as its file describes it."""

    question: str
    trials: int
    base: Config  # the configuration with the settings of every trial
    # range of each searched setting by dotted key: `low` and `high` (and `log`), or `choices`.
    search: dict[str, dict[str, Any]]

    def config(self, values: Mapping[str, Any]) -> Config:
        """The configuration of a trial with these values of the searched settings."""
        return resolve(with_values(self.base.model_dump(mode="json"), values), {}, origin="sweep")


def read_sweep(path: Path) -> SweepStudy:
    """Read the file of a sweep. Raises ConfigError that names what is missing, unknown or not allowed."""
    try:
        values = parse_toml(read_bytes(path))
        settings = flatten(as_object(values.get("settings", {}), "settings"))
    except ForeignError as error:
        raise ConfigError(f"{path}: {error}") from error
    if unknown := values.keys() - _KEYS:
        raise ConfigError(f"{path}: unknown key {sorted(unknown)[0]!r}; a sweep has {', '.join(sorted(_KEYS))}")
    search, trials = values.get("search"), values.get("trials", 20)
    if not isinstance(search, dict) or not search:
        raise ConfigError(f"{path}: [search] names no setting to try")
    if type(trials) is not int or trials < 1:
        raise ConfigError(f"{path}: trials {trials!r} must be a whole number of at least 1")
    preset = load_config(str(values.get("base", "demo")))
    base = resolve(with_values(preset.model_dump(mode="json"), settings), {}, origin=str(path))
    if base.train.average.choose != "held_out":
        raise ConfigError(
            f'{path}: a sweep compares losses on held-out training text; set train.average.choose = "held_out" and '
            "train.held_out_tokens in [settings]"
        )
    study = SweepStudy(str(values.get("question", "")).strip() or path.stem, trials, base, search)
    for key, tried in search.items():
        _check_range(path, key, tried)
        for value in tried.get("choices", [tried.get("low"), tried.get("high")]):
            study.config({key: value})
        if type(base.flat()[key]) is int and not all(type(tried.get(end, 0)) is int for end in ("low", "high")):
            raise ConfigError(f"{path}: {key} = {tried!r} must have whole numbers as low and high")
    return study


def _check_range(path: Path, key: str, tried: Any) -> None:
    if not key.startswith(SEARCHED) or key in KEPT:
        raise ConfigError(
            f"{path}: {key!r} cannot be searched; a sweep searches settings of {', '.join(SEARCHED)} but "
            f"{', '.join(KEPT)}"
        )
    if not isinstance(tried, dict) or not (_is_range(**tried) if "low" in tried else _is_choice(**tried)):
        raise ConfigError(
            f"{path}: {key} = {tried!r} must have low and high (numbers, the lower one first), log = true only for "
            "low above 0; or choices (a list)"
        )


def _is_range(low: Any = None, high: Any = None, log: Any = False, **more: Any) -> bool:
    is_number = {type(low), type(high)} <= {int, float} and type(log) is bool
    return is_number and not more and low <= high and (low > 0 or not log)


def _is_choice(choices: Any = None, **more: Any) -> bool:
    return isinstance(choices, list) and bool(choices) and not more
