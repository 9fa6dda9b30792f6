"""The configuration of a run: frozen, validated sections that are read from TOML presets and overrides.

A preset is a TOML file in `bitgolf/presets/`, or any path that ends in `.toml`. Dotted overrides such as
`--train.matrix_lr 0.02` are applied on top of it. `bitgolf run` writes the result to the run directory as config.toml,
and that file reproduces the run. An unknown key or an impossible value raises ConfigError. The message names the key,
the value, the allowed values and the nearest valid key. Limits that depend on the data, for example a sequence that is
longer than the corpus, are checked by the stage that reads the data.
"""

from bitgolf.config.config import BudgetConfig, Config, ReportConfig
from bitgolf.config.data import DataConfig
from bitgolf.config.evaluate import LoraTarget, ScoreConfig, TTTConfig
from bitgolf.config.load import load_config, preset_names, resolve
from bitgolf.config.model import ModelConfig
from bitgolf.config.pack import PackConfig
from bitgolf.config.qat import QATConfig
from bitgolf.config.section import Section, differing_keys
from bitgolf.config.settings import all_settings
from bitgolf.config.train import TrainConfig

__all__ = [
    "BudgetConfig", "Config", "DataConfig", "LoraTarget", "ModelConfig", "PackConfig", "QATConfig", "ReportConfig",
    "ScoreConfig", "Section", "TTTConfig", "TrainConfig", "all_settings", "differing_keys", "load_config",
    "preset_names", "resolve",
]  # fmt: skip
