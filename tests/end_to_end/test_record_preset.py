"""Preset `record` from end to end at reduced size, with what it has from `pr-1855` and more targets on the same logits:
loop, tables, attention windows, packing by rate, canonical pairs, adapters, audit, codec, single file; and marks for
capitals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import done, environment, events, read_json, run_preset, weights_digest

from bitgolf.artifact.container import read_artifact
from bitgolf.bundle.single_file import make_bundle
from bitgolf.run.directory import RunDirectory

SMALL = {
    "data.tokenizer": "lossless-case",
    "model.num_layers": 4,
    "model.attention.xsa_layers": 4,
    "model.loop.first": 1,
    "model.loop.last": 1,
    "model.lanes_from": 3,
    "model.model_dim": 32,
    "model.num_kv_heads": 2,
    "model.rope.dims": 4,
    "model.attention.document_tokens": 48,
    "model.attention.window": 12,
    "model.attention.key_offset": "true",
    "model.attention.full_layers": "[2]",
    "model.value_embedding.gated": "true",
    "model.value_embedding.layers": "[1, 3]",
    "model.bigram.every_layer": "true",
    "model.bigram.rows": 64,
    "model.bigram.dim": 8,
    "train.muon.cautious_decay": "true",
    "train.muon.decay_falls": "true",
    "train.extra_targets.next_tokens": "[0.5]",
    "train.extra_targets.prefix": 0.25,
    "train.muon.two_rails_from": 0.6,
    "train.seq_len": 128,
    "train.batch_ramp": "[[0.6, 1024, 1.2]]",
    "train.windows": "[[0, 6, 20], [0.4, 12, 0]]",
    "train.max_steps": 5,
    "train.warmup_steps": 1,
    "train.held_out_tokens": 512,
    "train.measure.calibration_tokens": 512,
    "train.measure.fisher_tokens": 512,
    "pack.rate.trellis": 0,
    "score.seq_len": 64,
    "ttt.method": "lora",
    "ttt.lora.rank": 2,
    "ttt.lora.chunk_tokens": 64,
    "ttt.lora.targets": '["q", "o"]',
    "data.val_fraction": 0.005,
}
ADAPTERS = ("--ttt", "--ttt.method=lora", "--ttt.lora.rank=2", "--ttt.lora.chunk_tokens=16")
TEXT = "Letter 9 from the golden lantern. The quiet river finds the garden near the old harbor."


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_preset_runs_whole(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "no effect" not in run_preset("record", run, corpus, SMALL).stderr
    assert [event["tokens"] for event in events(run, "end")] == [3 * 512 + 2 * 1024]
    (switch,) = events(run, "loop")
    assert (switch["step"], switch["fraction"]) == (4, 0.8)
    score, pack = read_json(run / "score.json"), read_json(run / "pack.json")
    assert score["headline"] == "documents+lora"
    assert (pack["method"], pack["compressor"]) == ("rate", "range")
    decodes(run, tmp_path)
    repeats(run, tmp_path)


def decodes(run: Path, folder: Path) -> None:
    """The codec gives the text back, without and with adapters."""
    (folder / "text").write_text(TEXT)
    model = ("--model", run / "model.bitgolf")
    for adapters in ((), ADAPTERS):
        done("compress", folder / "text", "-o", folder / "coded", *model, *adapters)
        done("decompress", folder / "coded", "-o", folder / "again", *model)
        assert (folder / "again").read_text() == TEXT


def repeats(run: Path, folder: Path) -> None:
    """The single file gives the same weights, artifact and losses."""
    file, again = folder / "alone" / "train_gpt.py", folder / "repeated"
    file.parent.mkdir()
    file.write_bytes(make_bundle(RunDirectory.open(run).config).data)
    arguments = ["--data", str(run / "data"), "--out", str(again), "--seed", "1337"]
    outcome = subprocess.run(
        [sys.executable, file.name, *arguments], cwd=file.parent, env=environment(), capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr
    assert weights_digest(again) == weights_digest(run)
    ours, theirs = (read_artifact(folder / "model.bitgolf").tensors for folder in (run, again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(np.load(run / "nll.npy"), np.load(again / "nll.npy"))
