"""Stage `score`: the numbers on file against single forward passes, the clock, and the budget ledger."""

import lzma
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file
from tiny_run import documents, done, read_json

import bitgolf
from bitgolf.config import load_config
from bitgolf.data.prepare import PreparedData, open_data
from bitgolf.errors import ArtifactError, DataError, RunError
from bitgolf.evaluate.score import score
from bitgolf.model import GPT
from bitgolf.run.directory import RunDirectory
from bitgolf.run.ranks import World

ALONE = World(0, 1, torch.device("cpu"))
WINDOW, STRIDE = 64, 32


@pytest.fixture(scope="module")
def data(tiny_run: Path) -> PreparedData:
    return open_data(tiny_run / "data")


@pytest.fixture(scope="module")
def tokens(data: PreparedData) -> torch.Tensor:
    return torch.from_numpy(data.val.read(0, data.val.num_tokens).astype(np.int64))


def loss(model: GPT, tokens: torch.Tensor, begin: int, target: int) -> float:
    """Loss of target `target` (token target + 1) from tokens begin..target, by one forward pass."""
    with torch.no_grad():
        logits = model(tokens[None, begin : target + 1])[0, -1].double()
    return float(-torch.log_softmax(logits, -1)[tokens[target + 1]])


def test_each_loss_is_that_of_the_context_the_stride_promises(tiny_run: Path, tokens: torch.Tensor) -> None:
    model = bitgolf.load(tiny_run / "model.bitgolf", device="cpu").model
    nll = np.load(tiny_run / "nll.npy")
    assert len(nll) == len(tokens) - 1
    last = len(nll) - 1
    for target in [0, 1, 62, 63, 64, 65, 95, 96, 97, 1000, 5555, last - 1, last]:
        begin = 0 if target < WINDOW else ((target - WINDOW) // STRIDE + 1) * STRIDE
        assert nll[target] == pytest.approx(loss(model, tokens, begin, target), abs=1e-4), target


@pytest.mark.parametrize("weights", ["packed", "float"])
def test_the_chunked_score_is_the_sum_over_separate_windows(
    tiny_run: Path, tokens: torch.Tensor, data: PreparedData, weights: str
) -> None:
    if weights == "packed":
        model = bitgolf.load(tiny_run / "model.bitgolf", device="cpu").model
    else:
        model = GPT(load_config(str(tiny_run / "config.toml")).model, WINDOW)
        model.load_state_dict(load_file(tiny_run / "weights.safetensors"))
    nats = 0.0
    for begin in range(0, len(tokens) - 1, WINDOW):
        inputs, targets = tokens[begin : begin + WINDOW], tokens[begin + 1 : begin + WINDOW + 1]
        with torch.no_grad():
            logits = model(inputs[None, : len(targets)])[0].double()
        nats += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    raw_bytes = data.manifest["splits"]["val"]["raw_bytes"]
    stored = read_json(tiny_run / "score.json")
    result = stored["methods"]["chunked"] if weights == "packed" else stored["float"]["chunked"]
    assert result["bpb"] == pytest.approx(nats / math.log(2) / raw_bytes, rel=1e-5)
    assert result["loss_nats"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert result["bytes"] == raw_bytes


def test_compressors_are_given_the_same_held_out_text(tiny_run: Path, data: PreparedData, tokens: torch.Tensor) -> None:
    text = data.tokenizer.decode(tokens.tolist()).encode()  # control tokens decode to nothing
    assert len(text) == data.manifest["splits"]["val"]["raw_bytes"]
    compressors = read_json(tiny_run / "score.json")["compressors"]
    assert compressors["xz-9"] == pytest.approx(8 * len(lzma.compress(text, preset=9)) / len(text))
    usual = 8 * len(zstandard.ZstdCompressor(level=22).compress(text)) / len(text)
    assert compressors["zstd-22"] == pytest.approx(usual, rel=0.01)


def test_the_clock_covers_reading_and_every_method(tiny_run: Path) -> None:
    stored = read_json(tiny_run / "score.json")
    charges = [c for c in read_json(tiny_run / "budget.json")["charges"] if c["kind"] == "eval_seconds"]
    assert [c["what"] for c in charges] == ["read and decompress", "chunked", "sliding"]
    methods = sum(result["seconds"] for result in stored["methods"].values())
    assert methods < sum(c["amount"] for c in charges) <= stored["evaluation_seconds"] * 1.001


def test_the_tape_of_the_headline_covers_every_target(tiny_run: Path, tokens: torch.Tensor) -> None:
    tape = read_json(tiny_run / "tape.json")
    assert tape["events"] == [{"event": "score", "targets": [0, len(tokens) - 1], "state": 0}]
    assert read_json(tiny_run / "score.json")["headline"] == "sliding"


def rescored(run: Path, **overrides: str) -> dict[str, object]:
    """score.json after the configuration of a run is changed on disk and the run is scored again."""
    config = load_config(str(run / "config.toml"), {k.replace("__", "."): v for k, v in overrides.items()})
    (run / "config.toml").write_text(config.to_toml())
    score(RunDirectory.open(run), ALONE)
    stored = read_json(run / "score.json")
    assert isinstance(stored, dict)
    return stored


def test_a_window_given_to_the_scorer_replaces_that_of_training(run_copy: Path, tokens: torch.Tensor) -> None:
    stored = rescored(run_copy, score__seq_len="48", score__stride="16", score__methods='["sliding"]')
    assert stored["window"] == 48
    model = bitgolf.load(run_copy / "model.bitgolf", device="cpu").model
    nll = np.load(run_copy / "nll.npy")
    for target in [47, 48, 63, 64, 700]:
        begin = 0 if target < 48 else ((target - 48) // 16 + 1) * 16
        assert nll[target] == pytest.approx(loss(model, tokens, begin, target), abs=1e-4)


def test_the_last_weights_are_scored_beside_their_average_when_asked(untrained: Callable[..., Path]) -> None:
    run = untrained(train__average__ema_decay=0.9, score__last_reference="true")
    done("train", run)
    done("pack", run)
    table = done("score", run).stdout
    stored = read_json(run / "score.json")
    before, after = (stored[key]["chunked"]["bpb"] for key in ("last", "float"))
    assert before != after
    assert f"{before:.4f}" in table and "last weights, chunked" in table
    (run / "weights-last.safetensors").replace(run / "weights.safetensors")
    assert rescored(run, score__last_reference="false")["float"]["chunked"]["bpb"] == before
    assert read_json(run / "score.json")["last"] == {}


def test_without_float_weights_there_is_no_reference(run_copy: Path) -> None:
    (run_copy / "weights.safetensors").unlink()
    stored = rescored(run_copy)
    assert stored["float"] == {}
    assert stored["quantization_tax"] is None


def test_broken_float_weights_are_named_before_anything_is_scored(run_copy: Path) -> None:
    path = run_copy / "weights.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path)
    before = (run_copy / "score.json").read_bytes()
    with pytest.raises(
        RunError, match=rf"weights\.safetensors: tensor {next(iter(tensors))!r} has values .* not finite"
    ):
        rescored(run_copy)
    save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: tensors do not match"):
        rescored(run_copy)
    assert (run_copy / "score.json").read_bytes() == before


def test_scoring_again_replaces_the_charges(run_copy: Path) -> None:
    rescored(run_copy, score__methods='["chunked"]')
    charges = [c for c in read_json(run_copy / "budget.json")["charges"] if c["stage"] == "score"]
    assert [c["what"] for c in charges] == ["read and decompress", "chunked"]


def test_a_text_shorter_than_the_window_is_scored_whole(run_copy: Path, data: PreparedData) -> None:
    from bitgolf.data.shards import write_shard
    from bitgolf.run.seal import file_digest

    ids = [data.tokenizer.bos_id, *data.tokenizer.encode(documents()[0])][:21]
    shard = run_copy / "data" / "val_000000.bin"
    write_shard(shard, np.array(ids))
    manifest = read_json(run_copy / "data" / "manifest.json")
    manifest["splits"]["val"]["shards"] = [{"file": shard.name, "tokens": 21, "sha256": file_digest(shard)}]
    import json

    (run_copy / "data" / "manifest.json").write_text(json.dumps(manifest))
    rescored(run_copy)
    model = bitgolf.load(run_copy / "model.bitgolf", device="cpu").model
    nll = np.load(run_copy / "nll.npy")
    expected = [loss(model, torch.tensor(ids), 0, target) for target in range(20)]
    np.testing.assert_allclose(nll, expected, atol=1e-4)


def test_bad_products_leave_the_earlier_scores(run_copy: Path) -> None:
    run = RunDirectory.open(run_copy)
    before = (run / "score.json").read_bytes(), (run / "nll.npy").read_bytes()
    artifact = (run / "model.bitgolf").read_bytes()
    (run / "model.bitgolf").write_bytes(artifact[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        score(run, ALONE)
    (run / "model.bitgolf").unlink()
    with pytest.raises(RunError, match="bitgolf pack"):
        score(run, ALONE)
    (run / "model.bitgolf").write_bytes(artifact)
    shutil.copy(run / "data" / "train_000000.bin", run / "data" / "val_000000.bin")
    with pytest.raises(DataError, match="val_000000"):
        score(run, ALONE)
    assert ((run / "score.json").read_bytes(), (run / "nll.npy").read_bytes()) == before
