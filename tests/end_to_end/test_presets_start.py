"""Every shipped preset starts on its own source: data are prepared and two steps are trained, at reduced size.

The published sources come from a loopback hub. Vocabulary and source are those of the preset.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import documents_repository, serving, shards_repository

from bitgolf.config import load_config, preset_names
from bitgolf.data import fineweb_docs
from bitgolf.data.prepare import prepare
from bitgolf.data.shards import write_shard
from bitgolf.data.train_tokenizer import train_tokenizer
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World
from bitgolf.train.attended import train_attended
from bitgolf.train.stage import is_finished

pytest.importorskip("huggingface_hub")

# Small enough for a second of one core; everything else is as the preset says.
REDUCED = {
    "device": '"cpu"', "model.num_layers": "2", "model.model_dim": "32", "model.num_heads": "2",
    "model.num_kv_heads": "1", "model.rope.dims": "8", "model.bigram.rows": "0", "model.attention.xsa_layers": "0",
    "model.bigram.every_layer": "false", "model.value_embedding.layers": "[]", "train.seq_len": "64",
    "train.batch_tokens": "128", "train.micro_batch_tokens": "128", "train.max_steps": "2", "train.warmup_steps": "1",
    "train.measure.calibration_tokens": "128", "score.seq_len": "64", "score.stride": "64",
    "ttt.lora.rank": "1", "ttt.lora.chunk_tokens": "32", "ttt.weights.freeze_blocks": "0", "pack.passthrough": "[]",
    "pack.small_tensor": "4096",
}  # fmt: skip


def _texts(count: int, num_words: int) -> list[str]:
    rng = random.Random(5)
    words = ["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
             for _ in range(num_words)]  # fmt: skip
    return [" ".join(rng.choices(words, k=120)) for _ in range(count)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Both published sources: shards of 1,024 tokens, and documents for other tokenizers."""
    shard = tmp_path_factory.mktemp("shards") / "shard.bin"
    tokenizer = train_tokenizer(_texts(400, 2_000), 1_024, lossless=False)

    def shard_of(texts: list[str]) -> bytes:
        write_shard(shard, tokenizer.encode_proven(texts).tokens)
        return shard.read_bytes()

    texts = _texts(60, 2_000)
    shards = shards_repository("sp1024", tokenizer.model_bytes, shard_of(texts[:20]), [shard_of(texts[20:])] * 10)
    return shards | documents_repository(_texts(1_500, 12_000))


@pytest.fixture
def hub(repository: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fineweb_docs, "VALIDATION_DOCUMENTS", 20)
    with serving(repository) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield


@pytest.mark.parametrize("name", preset_names())
def test_the_preset_prepares_its_source_and_trains(name: str, hub: None, tmp_path: Path) -> None:
    shipped = load_config(name)
    reduced = dict(REDUCED)
    for key in ("held_out_tokens", "measure.fisher_tokens"):
        section = shipped.train.flat()
        if section[key]:
            reduced[f"train.{key}"] = "128"
    if shipped.model.loop.repeats:  # three layers, the second looped, the third with lanes
        reduced |= {"model.num_layers": "3", "model.lanes_from": "2", "model.loop.first": "1", "model.loop.last": "1"}
        reduced |= {"train.kernels": "compiler", "model.attention.document_tokens": "32"}
    if shipped.model.attention.window:
        reduced |= {"model.attention.window": "16", "model.attention.full_layers": "[2]"}
    if shipped.data.source == "stdlib":
        reduced |= {"data.train_bytes": "300000", "data.val_bytes": "50000", "data.tokenizer_bytes": "300000"}
    config = load_config(name, reduced)
    assert (config.data.source, config.model.vocab_size) == (shipped.data.source, shipped.model.vocab_size)
    run = RunDirectory.create(tmp_path / "run", config)
    data = prepare(config.data, config.model.vocab_size, run / "data")
    assert data.tokenizer.vocab_size == shipped.model.vocab_size
    train_attended(run, World(0, 1, torch.device("cpu")))
    assert is_finished(run)
