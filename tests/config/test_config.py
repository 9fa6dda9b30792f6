"""Presets, overrides, earlier keys, and the errors for wrong settings."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bitgolf.config import all_settings, load_config, preset_names, resolve
from bitgolf.config.earlier import REMOVED
from bitgolf.config.settings import nearest_setting
from bitgolf.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_round_trips_through_toml(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert resolve(tomllib.loads(config.to_toml()), {}) == config
    assert resolve(tomllib.loads(config.to_toml()), {}).digest() == config.digest()


def test_overrides_replace_values_and_change_the_digest() -> None:
    config = load_config("demo", {"train.matrix_lr": "0.02", "seed": "7", "pack.grid.percentiles": "[1.0]"})
    assert (config.train.matrix_lr, config.seed, config.pack.grid.percentiles) == (0.02, 7, (1.0,))
    assert config.digest() != load_config("demo").digest()


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_config("demo").train.seq_len = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.matrx_lr": "1"}, ["train.matrx_lr", "did you mean 'train.matrix_lr'"]),
        ({"train.matrix_lr": "-1"}, ["train.matrix_lr", "-1", "greater than 0"]),
        ({"train.seq_len": "many"}, ["train.seq_len", "many", "integer"]),
        ({"model.num_heads": "3"}, ["num_heads 3", "model_dim 128"]),
        ({"model.num_kv_heads": "3"}, ["num_kv_heads 3", "num_heads 4"]),
        ({"model.rope.dims": "7"}, ["rope.dims 7", "even"]),
        ({"model.rope.dims": "64"}, ["rope.dims 64", "head width 32"]),
        ({"model.rope.dims": "2", "model.rope.train_length": "64"}, ["rope.dims 2", "singular"]),
        ({"train.batch_tokens": "1000"}, ["batch_tokens 1000", "multiple of seq_len 256"]),
        ({"score.stride": "512"}, ["stride 512", "256"]),
        ({"pack.compressor": "rar"}, ["pack.compressor", "rar", "zstd"]),
        ({"score.methods": "[]"}, ["score: methods []", "chunked", "sliding"]),
        ({"score.methods": '["sliding", "sliding"]'}, ["score: methods", "each once"]),
        ({"pack.grid.percentiles": "[]"}, ["pack.grid: percentiles []", "one or more"]),
        ({"pack.grid.percentiles": "[0.99, 1.5]"}, ["pack.grid: percentiles [0.99, 1.5]", "at most 1"]),
        ({"pack.grid.percentiles": "[0]"}, ["pack.grid: percentiles [0.0]", "above 0"]),
        ({"budget.artifact_bytes": "0"}, ["budget.artifact_bytes", "greater than or equal to 1"]),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(overrides: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("demo", overrides)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.lr", "train.matrix_lr"),
        ("lr", "train.matrix_lr"),
        ("train.muon.lr", "train.matrix_lr"),
        ("train.learning_rate", "train.matrix_lr"),
        ("train.matrix-lr", "train.matrix_lr"),
        ("train.matrx_lr", "train.matrix_lr"),
        ("trian.seq_len", "train.seq_len"),
        ("train.steps", "train.max_steps"),
        ("batch_size", "train.batch_tokens"),
        ("model.layers", "model.num_layers"),
        ("model.vocab", "model.vocab_size"),
        ("ttt.rank", "ttt.lora.rank"),
        ("pack.bits", "pack.grid.matrix_bits"),
        ("pack.block_size", "pack.gptq.block_size"),
        ("artifact_bytes", "budget.artifact_bytes"),
        ("score.method", "score.methods"),
        ("sed", "seed"),
        ("dropout", None),
    ],
)
def test_an_unknown_key_gets_the_nearest_setting(key: str, nearest: str | None) -> None:
    assert nearest_setting(key) == nearest


def test_every_setting_is_described_with_its_allowed_values() -> None:
    settings = all_settings()
    assert all(setting.description and setting.allowed for setting in settings.values())
    assert settings["qat.mode"].allowed == "one of none, ste, soft_round"
    assert settings["model.rope.base"].allowed == "number > 1"
    assert settings["report.samples"].allowed == "integer >= 0 and <= 20"
    assert settings["train.checkpoint.at"].allowed == "a list, each number"


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'baseline'"):
        load_config("baselin")


def test_a_toml_file_is_a_preset_and_its_unknown_keys_are_errors(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[train]\nseq_len = 64\nbatch_tokens = 128\nmicro_batch_tokens = 128\n')
    assert load_config(str(path)).train.seq_len == 64
    path.write_text("[trian]\nseq_len = 64\n")
    with pytest.raises(ConfigError, match=r"unknown key 'trian\.seq_len'.*train\.seq_len"):
        load_config(str(path))
    path.write_text("train = 3\n")
    with pytest.raises(ConfigError, match="'train' is a group"):
        load_config(str(path))
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(str(path))
    path.write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"mine\.toml is not UTF-8"):
        load_config(str(path))
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(("key", "neutral"), [(key, neutral) for key, (neutral, _) in REMOVED.items()])
def test_a_removed_setting_loads_only_with_the_value_that_did_nothing(key: str, neutral: Any) -> None:
    section, leaf = key.split(".")
    assert resolve({section: {leaf: neutral}}, {}) == resolve({}, {})
    other = not neutral if isinstance(neutral, bool) else "other" if isinstance(neutral, str) else neutral + 1
    with pytest.raises(ConfigError, match=rf"{key} = .* was removed.*lab-notebook"):
        resolve({section: {leaf: other}}, {})
    with pytest.raises(ConfigError, match=rf"{key}. was removed|{key}. is a group"):
        load_config("demo", {key: str(other)})


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("config.toml")), ids=lambda path: path.parent.name)
def test_configurations_of_earlier_runs_still_load(path: Path) -> None:
    assert load_config(str(path)).name
