"""The preset golf-8192, end to end at reduced size: it fills its cap, adapters give the headline, the audit passes."""

from pathlib import Path

from tiny_run import done, events, read_json, run_preset

from bitgolf.quantize.fill_cap import SLACK

SMALL = {
    "model.num_layers": 2,
    "model.model_dim": 64,
    "model.num_kv_heads": 2,
    "model.attention.xsa_layers": 1,
    "model.bigram.rows": 64,
    "model.bigram.dim": 16,
    "model.value_embedding.layers": "[1]",
    "model.value_embedding.dim": 16,
    "train.seq_len": 64,
    "train.max_steps": 24,
    "train.held_out_tokens": 1024,
    "train.measure.calibration_tokens": 1024,
    "train.measure.fisher_tokens": 1024,
    "ttt.lora.rank": 4,
    "ttt.lora.chunk_tokens": 32,
}


def test_the_preset_runs_from_text_to_report_and_fills_its_cap(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "no effect" not in run_preset("golf-8192", run, corpus, SMALL).stderr
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
