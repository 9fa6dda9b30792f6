"""The configuration of a run: frozen, validated sections, read from TOML presets and overrides.

A preset is a TOML file under `bitgolf/presets/`, or any path that ends in `.toml`. Dotted overrides
(`--train.matrix_lr 0.02`) are applied on top of it. The whole result is written to the run directory, where it
reproduces the run. Unknown keys and impossible values are `ConfigError`s that name the key, the value, what is
allowed and the nearest valid name. The stage that reads the data checks what depends on the data too, such as a
sequence longer than the corpus or a tokenizer of another size.
"""

from bitgolf.config.data import DataConfig
from bitgolf.config.evaluate import LoraTarget, ScoreConfig, TTTConfig
from bitgolf.config.load import load_config, preset_names, resolve
from bitgolf.config.model import ModelConfig
from bitgolf.config.pack import PackConfig
from bitgolf.config.section import Section, differing_keys
from bitgolf.config.settings import all_settings
from bitgolf.config.train import QATConfig, TrainConfig
from bitgolf.config.whole import BudgetConfig, Config, ReportConfig

__all__ = [
    "BudgetConfig", "Config", "DataConfig", "LoraTarget", "ModelConfig", "PackConfig", "QATConfig", "ReportConfig",
    "ScoreConfig", "Section", "TTTConfig", "TrainConfig", "all_settings", "differing_keys", "load_config",
    "preset_names", "resolve",
]  # fmt: skip
