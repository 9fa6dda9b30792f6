"""The preset golf-8192, end to end at reduced size: it fills its cap, adapters give the headline, the audit passes."""

from __future__ import annotations

from pathlib import Path

from tiny_run import done, events, read_json

from bitgolf.quantize.fill_cap import SLACK

SMALL = {
    "model.vocab_size": 384,
    "model.num_layers": 2,
    "model.model_dim": 64,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.attention.xsa_layers": 1,
    "model.bigram.rows": 64,
    "model.bigram.dim": 16,
    "model.value_embedding.layers": "[1]",
    "model.value_embedding.dim": 16,
    "train.seq_len": 64,
    "train.batch_tokens": 512,
    "train.micro_batch_tokens": 512,
    "train.max_steps": 24,
    "train.held_out_tokens": 1024,
    "train.measure.calibration_tokens": 1024,
    "train.measure.fisher_tokens": 1024,
    "train.checkpoint.seconds": 0,
    "pack.small_tensor": 256,
    "score.batch_tokens": 2048,
    "score.compressors": "false",
    "ttt.lora.rank": 4,
    "ttt.lora.chunk_tokens": 32,
    "report.samples": 0,
    "data.val_fraction": 0.01,
}


def test_the_preset_runs_from_text_to_report_and_fills_its_cap(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = SMALL | {"data.source": f"jsonl:{corpus}"}
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    result = done("run", "golf-8192", *words, "--out", run, "--json")
    assert result.json["audit_passed"]
    assert "no effect" not in result.stderr
    score, pack = read_json(run / "score.json"), read_json(run / "pack.json")
    assert score["headline"] == "documents+lora"
    (choice,) = events(run, "choice")
    assert choice["losses"][choice["chosen"]] == min(choice["losses"].values())
    assert not events(run, "late") and not events(run, "replay")
    cap = pack["total_bytes"] - pack["model_bytes"] // 2  # 6.6 bits per weight
    done("pack", run, "--budget.artifact_bytes", cap)
    again = read_json(run / "pack.json")
    assert (again["method"], again["compressor"]) == ("rate", "range")
    assert cap - SLACK <= again["total_bytes"] <= cap
