"""The configuration of a run: one frozen, validated model a stage, read from TOML presets and overrides.

A preset is a TOML file under `bitgolf/presets/` (or any path ending in `.toml`); dotted overrides
(`--train.lr 0.02`) are applied on top; the whole resolved result is written to the run directory, where it
reproduces the run. Unknown keys and impossible values are `ConfigError`s that name the key, the value, what is
allowed and the nearest valid name. What depends on the data too (a sequence longer than the corpus, a tokenizer
of another size) is checked by the stage that reads the data.
"""

from bitgolf.config.data import DataConfig
from bitgolf.config.evaluate import LoraTarget, ScoreConfig, TTTConfig
from bitgolf.config.load import known_keys, load_config, preset_names, resolve
from bitgolf.config.model import ModelConfig
from bitgolf.config.pack import PackConfig
from bitgolf.config.section import Section
from bitgolf.config.train import QATConfig, TrainConfig
from bitgolf.config.whole import BudgetConfig, Config, ReportConfig

__all__ = [
    "BudgetConfig", "Config", "DataConfig", "LoraTarget", "ModelConfig", "PackConfig", "QATConfig", "ReportConfig",
    "ScoreConfig", "Section", "TTTConfig", "TrainConfig", "known_keys", "load_config", "preset_names", "resolve",
]  # fmt: skip
