"""The four seed systems, end to end at reduced size: every part that their descriptions claim takes effect."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_run import done, events, read_json

SMALL = {
    "model.vocab_size": 384,
    "model.model_dim": 64,
    "model.num_heads": 4,
    "model.bigram_dim": 16,
    "train.seq_len": 64,
    "train.batch_tokens": 512,
    "train.micro_batch_tokens": 512,
    "train.max_steps": 24,
    "train.calibration_tokens": 512,
    "train.checkpoint_seconds": 0,
    "pack.small_tensor": 256,
    "score.batch_tokens": 2048,
    "score.compressors": "false",
    "report.samples": 0,
    "data.val_fraction": 0.02,
}


@pytest.mark.parametrize(
    ("preset", "kv_heads", "headline", "bits", "average"),
    [
        ("seed-348", 2, "sliding", {"mlp.up": "int5", "attention.query": "int6"}, "swa of"),
        ("seed-576", 4, "sliding+ttt", {"mlp.up": "int5", "attention.query": "int5"}, "ema 0.997"),
        ("seed-585", 4, "sliding+ttt", {"mlp.up": "int5", "attention.query": "int5"}, "ema 0.997"),
        ("seed-693", 2, "sliding", {"mlp.up": "int6", "attention.query": "int6"}, "0.5 x ema 0.997 + 0.5 x swa of"),
    ],
)
def test_a_seed_system_runs_whole(
    preset: str, kv_heads: int, headline: str, bits: dict[str, str], average: str, corpus: Path, tmp_path: Path
) -> None:
    changes = SMALL | {"data.source": f"jsonl:{corpus}", "model.num_kv_heads": kv_heads, "model.bigram_rows": 64}
    if preset != "seed-348":
        changes["model.ve_dim"] = 16
    if "ttt" in headline:
        changes["ttt.chunk_tokens"] = 1024
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    result = done("run", preset, *words, "--out", tmp_path / "run", "--json").json
    assert result["audit_passed"]
    score = read_json(tmp_path / "run" / "score.json")
    assert score["headline"] == headline
    assert bool(score["diagnostic"]) == (preset == "seed-576")
    (late,) = events(tmp_path / "run", "late")
    assert late["relative_change"] > 1e-5
    assert late["step"] == 0 if preset == "seed-348" else late["lr_scale"] < 0.51
    tensors = read_json(tmp_path / "run" / "pack.json")["tensors"]
    kinds = {tensor["group"]: tensor["kind"] for tensor in tensors.values()}
    assert kinds | bits == kinds
    with safe_open(tmp_path / "run" / "weights.safetensors", "pt") as weights:
        assert average in weights.metadata()["average"]
