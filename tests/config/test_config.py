"""Presets, overrides, earlier keys, and the errors for wrong settings."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bitgolf.config import (
    Config,
    ModelConfig,
    QATConfig,
    all_settings,
    differing_keys,
    load_config,
    preset_names,
    resolve,
)
from bitgolf.config.earlier import MOVED, REMOVED
from bitgolf.config.idle import idle_packing, idle_training
from bitgolf.config.nearest import nearest_setting
from bitgolf.config.qat import CrownConfig
from bitgolf.config.section import with_values
from bitgolf.config.settings import is_group
from bitgolf.errors import ConfigError

RATE = {"pack.method": "rate", "pack.compressor": "range", "train.measure.fisher_tokens": "512"}
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


@pytest.mark.parametrize(
    ("text", "value"),
    [("chunked", ("chunked",)), ("chunked,sliding", ("chunked", "sliding")),
     ("[sliding, chunked]", ("sliding", "chunked")), ('["sliding"]', ("sliding",)),
     ("'sliding','chunked'", ("sliding", "chunked"))],
)  # fmt: skip
def test_a_list_needs_no_quotes(text: str, value: tuple[str, ...]) -> None:
    assert load_config("demo", {"score.methods": text}).score.methods == value


def test_a_list_may_hold_numbers_patterns_or_nothing() -> None:
    overrides = {
        "train.checkpoint.at": "0.5,0.85",
        "model.value_embedding.layers": "2",
        "pack.passthrough": "*.[ab], e",
    }
    config = load_config("demo", overrides)
    assert config.train.checkpoint.at == (0.5, 0.85)
    assert config.model.value_embedding.layers == (2,)
    assert config.pack.passthrough == ("*.[ab]", "e")
    assert load_config("demo", {"train.checkpoint.at": ""}).train.checkpoint.at == ()
    with pytest.raises(ConfigError, match=r"train\.checkpoint\.at\.0 = 'soon'"):
        load_config("demo", {"train.checkpoint.at": "soon"})


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
        ("train.seconds", "budget.train_seconds"),
        ("lora_rank", "ttt.lora.rank"),
        ("model.width", "model.model_dim"),
        ("budget.size", "budget.artifact_bytes"),
        ("model.depth", "model.num_layers"),
        ("data.path", "data.source"),
        ("train.time", "budget.train_seconds"),
        ("train.newton", "train.muon.steps"),  # by its description
        ("model.gate", "model.attention.gate"),
        ("trainseconds", "budget.train_seconds"),
        ("data.vocb_size", "model.vocab_size"),
        ("dropout", None),
        ("budget.money", None),  # less than 0.8 of "budget.min_steps"
        ("train.batchsize", None),
    ],
)
def test_an_unknown_key_gets_the_nearest_setting(key: str, nearest: str | None) -> None:
    assert nearest_setting(key) == nearest


def test_a_key_without_a_guess_is_searched_with_a_command() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'model\.dropout'; `bitgolf settings dropout` searches"):
        load_config("demo", {"model.dropout": "1"})


def test_every_setting_is_described_with_its_allowed_values() -> None:
    assert all(setting.description and setting.allowed for setting in all_settings().values())


def test_a_preset_changes_the_settings_of_its_base(tmp_path: Path) -> None:
    record, base = load_config("record"), load_config("pr-1855")
    assert record.model.loop == base.model.loop and record.score.canonical and not base.score.canonical
    assert (record.model.attention.window, base.model.attention.window) == (256, 0)
    assert load_config("record-4mb").model.rope == record.model.rope and load_config("record-4mb").ttt == record.ttt
    file = tmp_path / "mine.toml"
    file.write_text('base = "record"\nname = "mine"\n[model]\nmlp.multiple = 3.0\n')
    mine = load_config(str(file))
    assert (mine.name, mine.model.mlp.multiple, mine.model.mlp.leaky_slope) == ("mine", 3.0, 0.5)
    for wrong in ('"recrod"', '"mine.toml"', "3"):
        file.write_text(f"base = {wrong}\n")
        with pytest.raises(ConfigError, match="is no preset; presets: baseline"):
            load_config(str(file))


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
    with pytest.raises(ConfigError, match="it is not TOML"):
        load_config(str(path))
    path.write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"mine\.toml .*is not UTF-8: byte 0xE9"):
        load_config(str(path))
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(str(tmp_path / "none.toml"))


WITHOUT_EFFECT = {  # of settings that are removed
    "model.smear_gate_init": 0.0, "pack.column_rule": "pivot", "pack.lqer_rank": 0, "pack.lqer_tensors": 3,
    "pack.rate": 0.0, "pack.rescale": "none", "ttt.temperature": 1.0, "ttt.temperature_lr": 0.0,
    "train.curvature_tokens": None, "train.curvature_step": None, "train.measure.curvature_tokens": None,
    "train.measure.curvature_step": None,
}  # fmt: skip


def test_every_removed_setting_has_the_value_that_did_nothing() -> None:
    assert {key: neutral for key, (neutral, _) in REMOVED.items()} == WITHOUT_EFFECT


@pytest.mark.parametrize(("key", "neutral"), WITHOUT_EFFECT.items())
def test_a_removed_setting_loads_only_with_the_value_that_did_nothing(key: str, neutral: Any) -> None:
    assert resolve(with_values({}, {key: neutral}), {}) == resolve({}, {})
    other = "other" if isinstance(neutral, str) else (neutral or 0) + 1
    if neutral is None:
        assert resolve(with_values({}, {key: other}), {}) == resolve({}, {})
    else:
        with pytest.raises(ConfigError, match=rf"{key} = .* was removed.*lab-notebook"):
            resolve(with_values({}, {key: other}), {})
    with pytest.raises(ConfigError, match=rf"{key}. was removed|{key}. is a group"):
        load_config("demo", {key: str(other)})


def test_a_moved_setting_is_named_with_its_present_name_on_the_command_line() -> None:
    for key, current in MOVED.items():
        assert current in all_settings()
        if key not in all_settings() and not is_group(key):
            with pytest.raises(ConfigError, match=rf"^{key!r} has moved to {current!r}$"):
                load_config("demo", {key: "1"})


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("config.toml")), ids=lambda path: path.parent.name)
def test_configurations_of_earlier_runs_still_load(path: Path) -> None:
    assert load_config(str(path)).name


@pytest.mark.parametrize(
    "value", ["9" * 400, "9" * 5_000, "1.2.3.4", "[" * 9_999, "nan", "\ud800", "\x1b[2J", "1\nseed = 3"]
)
def test_strange_values_of_overrides_end_in_one_short_line(value: str) -> None:
    for key in ("train.seq_len", "train.matrix_lr", "pack.compressor"):
        with pytest.raises(ConfigError, match=key) as caught:
            load_config("demo", {key: value})
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_configurations_are_compared_and_changed_by_dotted_keys() -> None:
    config = load_config("demo")
    changed = config.updated({"ttt.lora.rank": 4, "seed": 3})
    assert (changed.ttt.lora.rank, changed.seed, config.ttt.lora.rank) == (4, 3, 8)
    assert changed.ttt.lora.alpha == config.ttt.lora.alpha
    assert differing_keys(config, changed) == ["seed", "ttt.lora.rank"]
    assert changed.flat()["ttt.lora.targets"] == ["q", "v", "head"]
    with pytest.raises(ValidationError):
        config.updated({"ttt.lora.rank": 0})
    with pytest.raises(ValidationError):
        config.updated({"ttt.lora.none": 1})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.muon.momentum_start": "0.99"}, "momentum_start 0.99 is above momentum 0.95"),
        ({"train.checkpoint.at": "[0.5, 0.3]"}, "must be increasing fractions"),
        ({"train.checkpoint.at": "[0.5, 0.5]"}, "must be increasing fractions"),
        ({"train.checkpoint.at": "[1.0]"}, "between 0 and 1"),
        ({"train.replay.epochs": "1", "train.warmdown": "0"}, "replay.lr_scale_below 0.2 is never reached"),
        ({"train.replay.epochs": "1", "train.min_lr": "0.2"}, "replay.lr_scale_below 0.2 is never reached"),
        ({"train.held_out_tokens": "255"}, "less than one row of seq_len 256"),
        ({"train.average.choose": "held_out", "train.held_out_tokens": "0", "train.watch.seconds": "0"},
         "needs held-out text"),
        ({"train.average.choose": "held_out", "train.held_out_tokens": "512", "train.average.ema_decay": "0"},
         "needs an average to choose"),
        ({"train.average.swa_weight": "0.5", "train.average.swa_start": "0.2", "train.min_lr": "0.2"}, "swa_start 0.2"),
        ({"qat.mode": "ste"}, "qat never starts"),
        ({"qat.mode": "ste", "qat.start_lr_scale": "0.1", "train.min_lr": "0.1"}, "qat never starts"),
        ({"pack.method": "rate"}, "set train.measure.fisher_tokens"),
        ({"train.measure.calibration_tokens": "0"}, "'gptq' rounds with Hessians"),
        (RATE | {"train.measure.calibration_tokens": "0"}, "'rate' rounds with Hessians"),
        ({"pack.grid.mlp_bits": "1"}, "mlp_bits 1"),
        ({"pack.passthrough": '["a", "a"]'}, "different, non-empty"),
        ({"pack.passthrough": '[" "]'}, "different, non-empty"),
        ({"train.average.choose": "val"}, "train.average.choose"),
        ({"train.replay.lr": "0"}, "train.replay.lr"),
        ({"train.table_dtype": "fp16"}, "train.table_dtype"),
        ({"train.checkpoint.at": "[0.0]"}, "between 0 and 1"),
        ({"qat.crown.weight": "0.01", "qat.start_lr_scale": "0.1", "train.warmdown": "0"}, "qat never starts"),
        (RATE | {"qat.mode": "ste", "qat.start_fraction": "0.5"}, "qat.mode"),
        (RATE | {"pack.rate.trellis": "4"}, "pack.rate.trellis"),
        (RATE | {"pack.fit.prune": "true"}, "pack.fit.prune"),
        ({"model.smear.gate": "v1", "model.attention.within_documents": "true"}, "= true: smear.gate 'v1'"),
        ({"model.smear.gate": "v2", "model.attention.within_documents": "true"}, "= true: smear.gate 'v2'"),
        ({"ttt.method": "slot"}, "ttt.method"),
        ({"ttt.weights.optimizer": "muon"}, "ttt.weights.optimizer"),
        ({"ttt.weights.momentum": "1.0"}, "ttt.weights.momentum"),
        ({"ttt.weights.epochs": "0"}, "ttt.weights.epochs"),
        ({"ttt.weights.lr": "0"}, "ttt.weights.lr"),
        ({"ttt.weights.batch_rows": "0"}, "ttt.weights.batch_rows"),
        ({"ttt.weights.freeze_blocks": "-1"}, "ttt.weights.freeze_blocks"),
        ({"ttt.weights.step_cosine_floor": "1.5"}, "ttt.weights.step_cosine_floor"),
        ({"ttt.weights.step_cosine_floor": "-0.1"}, "ttt.weights.step_cosine_floor"),
        ({"ttt.lora.rank": "0"}, "ttt.lora.rank"),
        ({"ttt.lora.targets": '["q", "embedding"]'}, "ttt.lora.targets"),
        ({"ttt.lora.targets": "[]"}, "must name at least one matrix, each once"),
        ({"ttt.method": "lora", "ttt.rescore_temperature": "0.98"}, "method is lora"),
        ({"ttt.method": "last_blocks", "ttt.weights.freeze_blocks": "1"}, "is a setting of method full"),
        ({"ttt.method": "lora", "ttt.weights.freeze_blocks": "1"}, "is a setting of method full"),
        ({"ttt.rescore_temperature": "0.9"}, "needs weights that test-time training changed"),
        ({"ttt.method": "full", "ttt.weights.chunk_tokens": "255"}, "below the window of 256"),
        ({"ttt.method": "last_blocks", "ttt.weights.last_blocks": "5"}, "last_blocks 5 is above num_layers 4"),
        ({"ttt.method": "full", "ttt.weights.freeze_blocks": "5"}, "freeze_blocks 5 is above num_layers 4"),
        ({"ttt.method": "lora", "ttt.lora.rank": "65"}, "rank 65 is above the width 64 of target 'v'"),
        ({"ttt.method": "lora", "ttt.lora.targets": '["q"]', "ttt.lora.rank": "129"}, "above the width 128 of"),
        ({"ttt.method": "lora", "ttt.lora.chunk_tokens": "257"}, "chunk_tokens 257 is above the window of 256"),
        ({"ttt.lora.targets": '["q", "q"]'}, "must name at least one matrix, each once"),
        ({"score.batch_tokens": "255"}, "does not hold one window of 256"),
        ({"score.seq_len": "512", "score.stride": "513"}, "above the window of 512"),
        ({"model.bigram.rows": "1"}, "leaves no row to hash into"),
        ({"model.attention.xsa_layers": "5"}, "xsa_layers 5 is above num_layers 4"),
        ({"model.attention.key_offset": "true", "model.rope.dims": "18"}, "rope.dims to an even number up to 16"),
        ({"model.value_embedding.layers": "[4]"}, "different layers from 0 to 3"),
        ({"model.value_embedding.layers": "[1, 1]"}, "different layers from 0 to 3"),
        ({"model.bigram.rows": "0", "model.bigram.every_layer": "true"}, "needs bigram.rows above 0"),
        ({"model.bigram.every_layer": "true", "model.bigram.dim": "9999"}, "bigram.dim 9999 up to model_dim"),
        ({"model.skips": "false", "model.skip_gates": "true"}, "skip_gates need skips"),
        ({"model.attention.within_documents": "true"}, "needs smear.document_mask = true"),
        ({"train.loader": "documents"}, "needs model.attention.within_documents = true"),
        ({"train.windows": "[[0.0, 64, 0]]"}, "train.windows needs model.attention.window"),
        ({"model.attention.window": "64", "train.windows": "[[0.0, 0, 0]]"}, "must have windows of 1 token and more"),
        ({"model.attention.window": "64", "train.windows": "[[0.0, 1, -1]]"}, "must have windows of 1 token and more"),
        ({"model.attention.window": "64", "train.windows": "[[0.5, 8, 0], [0.5, 9, 0]]"}, "increasing fractions"),
        ({"model.attention.window": "64", "train.windows": "[[1.0, 8, 0]]"}, "from 0 to below 1"),
        ({"model.attention.window": "64", "train.windows": "[[0.5, 8]]"}, "train.windows"),
        ({"model.attention.window": "-1"}, "model.attention.window"),
        ({"train.batch_ramp": "[[-0.1, 256, 1.0]]"}, "[[-0.1, 256, 1.0]] must begin at increasing fractions"),
        ({"train.batch_ramp": "[[0.5, 256, 1.0], [0.25, 512, 1.0]]"}, "must begin at increasing fractions"),
        ({"train.batch_ramp": "[[1.0, 256, 1.0]]"}, "from 0 to below 1"),
        ({"train.batch_ramp": "[[0.1, 255, 1.0]]"}, "multiples of seq_len 256 as tokens"),
        ({"train.batch_ramp": "[[0.1, 0, 1.0]]"}, "multiples of seq_len 256 as tokens"),
        ({"train.batch_ramp": "[[0.1, 256, 0.0]]"}, "multipliers above 0"),
        ({"train.batch_ramp": "3"}, "write a list of lists as"),
        ({"train.batch_tokens": "4097"}, "batch_tokens 4097 is not a multiple of seq_len 256"),
        ({"train.micro_batch_tokens": "4097"}, "micro_batch_tokens 4097 is not a multiple of seq_len 256"),
        ({"train.extra_targets.next_tokens": "[0.5, 0.0]"}, "must be weights above 0"),
        ({"train.average.ema_candidates": "[0.9, 0.9]"}, "must be different decays between 0 and 1"),
        ({"train.average.ema_candidates": "[0.99]", "train.average.ema_decay": "0.99"}, "must be different decays"),
        ({"train.average.ema_candidates": "[1.0]"}, "must be different decays between 0 and 1"),
        ({"train.average.ema_candidates": "[0.0]"}, "must be different decays between 0 and 1"),
        ({"train.average.ema_candidates": "[0.5]", "train.average.ema_decay": "0"}, "beside an ema_decay above 0"),
        ({"train.watch.seconds": "9", "train.held_out_tokens": "0"}, "measures the loss on held-out text"),
        ({"train.watch.seconds": "9", "train.held_out_tokens": "512", "train.watch.tokens": "255"}, "at least one row"),
        ({"ttt.lora.global_after": "[5, 3]"}, "rising numbers of documents, above 0"),
        ({"ttt.lora.global_after": "[5, 5]"}, "rising numbers of documents, above 0"),
        ({"ttt.lora.global_after": "[0]"}, "rising numbers of documents, above 0"),
        ({"model.attention.document_tokens": "64"}, "needs attention.within_documents = true"),
        ({"model.attention.full_layers": "[0]"}, "so they need attention.window"),
        ({"model.attention.window": "8", "model.attention.full_layers": "[4]"}, "different layers from 0 to 3"),
        ({"model.attention.window": "8", "model.attention.full_layers": "[1, 1]"}, "different layers from 0 to 3"),
        ({"model.loop.last": "1"}, "need loop.repeats of 1 or more"),
        ({"model.loop.repeats": "1", "model.loop.first": "2", "model.loop.last": "1"}, "in this order"),
        ({"model.loop.repeats": "1", "model.loop.last": "4"}, "must be layers from 0 to 3"),
        ({"model.lanes_from": "1"}, "must be one of the layers 2 to 3"),
        ({"model.lanes_from": "4"}, "must be one of the layers 2 to 3"),
        ({"model.loop.repeats": "1", "model.loop.last": "2", "model.lanes_from": "2"}, "one of the layers 3 to 3"),
        ({"model.num_heads": "128"}, "head width model_dim / num_heads = 1 must be even"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_do_not_fit_each_other_are_refused(overrides: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config("demo", overrides)


def test_settings_at_the_limit_are_accepted() -> None:
    for overrides in (
        {"train.held_out_tokens": "256"},
        {"score.stride": "256"}, {"score.batch_tokens": "256", "score.stride": "256"},
        {"ttt.method": "lora", "ttt.lora.rank": "64", "ttt.lora.chunk_tokens": "256"},
        {"ttt.method": "last_blocks", "ttt.weights.last_blocks": "4", "ttt.weights.chunk_tokens": "256"},
        {"model.attention.xsa_layers": "4"}, {"model.value_embedding.layers": "[0, 3]"}, {"model.bigram.rows": "2"},
        {"train.average.choose": "held_out", "train.held_out_tokens": "512", "train.average.ema_decay": "0",
         "train.average.swa_weight": "0.5"},
        {"train.batch_ramp": "[[0.0, 256, 0.5], [0.99, 512, 2.0]]"},
        {"model.attention.window": "64", "train.windows": "[[0.0, 1, 0], [0.5, 64, 0]]"},
        {"train.average.ema_decay": "0.9", "train.average.ema_candidates": "[0.99, 0.5]"},
        {"train.watch.seconds": "9", "train.held_out_tokens": "256", "train.watch.tokens": "256"},
        {"ttt.lora.global_after": "[1, 5]"}, {"train.min_lr": "0.1", "train.replay.epochs": "1"},
        {"model.attention.window": "8", "model.attention.full_layers": "[0, 3]"},
        {"model.loop.repeats": "1", "model.loop.first": "1", "model.loop.last": "1", "model.lanes_from": "2"},
        {"train.muon.momentum_start": "0.95"}, {"qat.mode": "ste", "qat.start_fraction": "0.9"},
    ):  # fmt: skip
        load_config("demo", overrides)


def test_quantized_training_starts_below_a_multiplier_or_from_a_fraction() -> None:
    qat = QATConfig(mode="ste", start_lr_scale=0.3, start_fraction=0.8)
    assert [qat.is_on(f, s) for f, s in ((0.1, 0.3), (0.1, 0.29), (0.8, 1.0), (0.79, 1.0))] == [
        False,
        True,
        True,
        False,
    ]
    assert not QATConfig().is_on(1.0, 0.0)
    assert QATConfig(crown=CrownConfig(weight=0.1), start_fraction=0.5).is_on(0.5, 1.0)


def test_the_window_is_that_of_training_unless_scoring_has_one() -> None:
    assert load_config("demo").window == 256
    assert load_config("demo", {"score.seq_len": "512"}).window == 512
    model = load_config("demo", {"model.mlp.multiple": "2.5"}).model
    assert (model.head_dim, model.kv_dim, model.mlp_dim, model.rotary_dims) == (32, 64, 320, 8)
    assert ModelConfig().rotary_dims == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [1], {"a": 1}], ids=str)
def test_values_of_another_kind_are_refused(value: Any) -> None:
    for values in ({"train": {"muon": value}}, {"train": {"matrix_lr": value}}, {"name": value}):
        with pytest.raises(ConfigError):
            resolve(values, {})


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("FALSE", False), ("false", False)])
def test_truth_values_of_overrides(text: str, value: bool) -> None:
    assert load_config("demo", {"model.skips": text}).model.skips is value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("300KB", 300_000), ("16 MB", 16_000_000), ("1GiB", 2**30), ("1.5kb", 1_500), ("12", 12),
        ("16_000_000B", 16_000_000), ('"2MiB"', 2 * 2**20),
    ],
)  # fmt: skip
def test_sizes_take_units(text: str, number: int) -> None:
    assert load_config("demo", {"budget.artifact_bytes": text}).budget.artifact_bytes == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5min", 300), ("90s", 90), ("1h30min", 5400), ("1.5 h", 5400), ("250ms", 0.25), ("7", 7), ('"1min 5s"', 65)],
)
def test_durations_take_units(text: str, seconds: float) -> None:
    assert load_config("demo", {"budget.train_seconds": text}).budget.train_seconds == pytest.approx(seconds)
    assert load_config("demo", {"train.checkpoint.seconds": text}).train.checkpoint.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("budget.artifact_bytes", "300KX", "artifact_bytes '300KX' is not a size; write bytes, or a unit as in 300KB"),
        ("budget.artifact_bytes", "1.5B", "not a whole number of bytes"),
        ("budget.artifact_bytes", "-5KB", "is not a size"),
        ("budget.train_seconds", "5 fortnights", "train_seconds '5 fortnights' is not a duration"),
        ("budget.train_seconds", "5min5min", "is not a duration"),
        ("budget.train_seconds", '""', "is not a duration"),
    ],
)
def test_a_unit_that_does_not_exist_is_named(key: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config("demo", {key: text})


# --- settings without effect -----------------------------------------------------------------------------------------


RATE: dict[str, object] = {"pack.method": "rate", "train.measure.fisher_tokens": 2_048}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"pack.fit.margin_bytes": 17}, ["pack.fit.margin_bytes"]),
        ({"pack.fit.margin_bytes": 17, "pack.fit.prune": True}, []),
        ({"pack.method": "lossless", "pack.fit.prune": True}, ["pack.fit.prune"]),
        ({"pack.grid.mlp_bits": 3}, []),
        (RATE | {"pack.grid.mlp_bits": 3}, ["pack.grid.mlp_bits"]),
    ],
)  # fmt: skip
def test_settings_of_packing_without_effect_are_named(changes: dict[str, object], named: list[str]) -> None:
    sentences = idle_packing(Config().updated(changes).pack)
    assert [sentence.split(" ")[0].rstrip(":") for sentence in sentences] == named
    assert all("no effect" in sentence or "only" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"train.replay.batches": 7}, ["train.replay.batches"]),
        ({"train.replay.batches": 7, "train.replay.epochs": 1}, []),
        ({"train.held_out_tokens": 65_536}, ["train.held_out_tokens"]),
        ({"train.measure.fisher_tokens": 2_048}, ["train.measure.fisher_tokens"]),
    ],
)  # fmt: skip
def test_settings_of_training_without_effect_are_named(changes: dict[str, object], named: list[str]) -> None:
    config = Config().updated(changes)
    sentences = idle_training(config.train, config.pack)
    assert [sentence.split(" ")[0].rstrip(":") for sentence in sentences] == named


def test_every_setting_of_a_method_that_is_off_is_named() -> None:
    grid = {"matrix_bits": 7, "attention_bits": 5, "mlp_bits": 5, "embed_bits": 7, "clip_sigmas": 9.0,
            "embed_clip_sigmas": 9.0}  # fmt: skip
    rate = Config().updated(RATE | {f"pack.grid.{key}": value for key, value in grid.items()}).pack
    assert [line.split(" ")[0] for line in idle_packing(rate)] == [f"pack.grid.{key}" for key in grid]
    other = {"trellis": 0, "column_steps": False, "hessian": "fisher"}
    plain = Config().updated({f"pack.rate.{key}": value for key, value in other.items()}).pack
    assert {line.split(" ")[0] for line in idle_packing(plain)} == {f"pack.rate.{key}" for key in other}
    assert set(other) == set(type(plain.rate).model_fields)
    replay = {"batches": 7, "lr_scale_below": 0.5, "lr": 0.5}
    config = Config().updated({f"train.replay.{key}": value for key, value in replay.items()})
    named = [line.split(" ")[0] for line in idle_training(config.train, config.pack)]
    assert named == [f"train.replay.{key}" for key in replay]
    kept = {"train.held_out_tokens": 65_536, "train.measure.fisher_tokens": 64, "pack.method": "rate"}
    used = {"train.average.choose": "held_out", "train.average.ema_decay": 0.9}
    for changes in ({"train.watch.seconds": 1.0}, used):
        config = Config().updated(kept | changes)
        assert idle_training(config.train, config.pack) == []


def test_a_number_has_at_most_64_characters() -> None:
    assert load_config("demo", {"train.matrix_lr": "0." + 62 * "1"}).train.matrix_lr == pytest.approx(1 / 9)
    with pytest.raises(ConfigError, match="the number has too many digits"):
        load_config("demo", {"train.matrix_lr": "0." + 63 * "1"})


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("budget.train_seconds", "number > 0, or text with a unit, as 5min"),
        ("data.val_bytes", "integer >= 0, or text with a unit, as 300KB"),
        ("model.skips", "true or false"),
        ("name", "text"),
        ("train.kernels", "one of compiler, triton"),
        ("model.rope.base", "number > 1"),
        ("report.samples", "integer >= 0 and <= 20"),
        ("train.warmdown", "number >= 0 and <= 1"),
        ("train.average.ema_decay", "number >= 0 and < 1"),
        ("train.checkpoint.at", "a list, each number"),
        ("train.batch_ramp", "a list, each (number, integer, number)"),
    ],
)
def test_the_allowed_values_of_a_setting_are_described(key: str, allowed: str) -> None:
    assert all_settings()[key].allowed == allowed
