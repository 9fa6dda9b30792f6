"""The four seed systems, end to end with three small layers: every part that their descriptions claim has an effect."""

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tiny_run import done, events, read_json, run_preset

from bitgolf.config import load_config

SMALL = {
    "model.num_layers": 3,
    "model.model_dim": 64,
    "model.bigram.rows": 64,
    "model.bigram.dim": 16,
    "train.seq_len": 64,
    "train.max_steps": 24,
    "train.measure.calibration_tokens": 512,
}
LAYERS = {  # settings that name layers, which have other numbers here
    "seed-348": {"pack.passthrough": '["embedding", "blocks.2.attention.key.weight"]'},
    "seed-576": {"model.attention.xsa_layers": 2, "model.value_embedding.layers": "[1, 2]"},
    "seed-585": {"model.attention.xsa_layers": 3, "model.value_embedding.layers": "[1, 2]"},
    "seed-693": {"model.attention.xsa_layers": 1, "model.value_embedding.layers": "[1, 2]"},
}


@pytest.mark.parametrize(
    ("preset", "kv_heads", "headline", "kinds", "average"),
    [
        (
            "seed-348",
            2,
            "documents+lora",
            {"mlp.up": "int5", "attention.query": "int6", "bigram.table": "int6"},
            "swa of 5",
        ),
        ("seed-576", 4, "sliding+ttt", {"mlp.up": "int5", "attention.query": "int5"}, "chosen of 3 on 512 held-out"),
        ("seed-585", 4, "sliding+ttt", {"mlp.up": "int5", "attention.query": "int5"}, "chosen of 3 on 512 held-out"),
        ("seed-693", 2, "sliding", {"mlp.up": "int6", "embedding": "int8"}, "0.5 x ema 0.997 + 0.5 x swa of"),
    ],
)
def test_a_seed_system_runs_from_text_to_report(
    preset: str, kv_heads: int, headline: str, kinds: dict[str, str], average: str, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = SMALL | LAYERS[preset] | {"model.num_kv_heads": kv_heads}
    if preset == "seed-348":
        changes["ttt.lora.chunk_tokens"] = 64
    else:
        changes["model.value_embedding.dim"] = 16
    if "ttt" in headline:
        changes |= {"ttt.weights.chunk_tokens": 1024, "ttt.weights.epochs": 1, "train.held_out_tokens": 512}
    run_preset(preset, run, corpus, changes)
    score = read_json(run / "score.json")
    assert score["headline"] == headline
    assert bool(score["diagnostic"]) == (preset == "seed-576")
    (late,) = events(run, "late")
    assert late["relative_change"] > 1e-5
    assert late["step"] == 0 if preset == "seed-348" else late["lr_scale"] < 0.51
    packed = read_json(run / "pack.json")
    by_group = {tensor["group"]: tensor["kind"] for tensor in packed["tensors"].values()}
    assert by_group | kinds == by_group
    with safe_open(run / "weights.safetensors", "pt") as weights:
        assert average in weights.metadata()["average"]
    check = {"seed-348": passed_through, "seed-693": replayed_and_pruned}.get(preset, chosen_on_training_text)
    check(run, packed)


def passed_through(run: Path, packed: dict[str, Any]) -> None:
    """PR 348 keeps the embedding and one key matrix in fp16."""
    kept = {"embedding", "blocks.2.attention.key.weight"}
    for name, tensor in packed["tensors"].items():
        if len(tensor["shape"]) == 2 and math.prod(tensor["shape"]) > 256:
            assert (tensor["kind"] == "fp16") == (name in kept), name


def chosen_on_training_text(run: Path, packed: dict[str, Any]) -> None:
    """PR 576 and 585 ship the best of their averages."""
    (choice,) = events(run, "choice")
    names = ["swa of ", "ema 0.997", "last weights"]
    assert all(name.startswith(start) for name, start in zip(choice["losses"], names, strict=True))
    assert choice["losses"][choice["chosen"]] == min(choice["losses"].values())
    assert packed["pruned_to_fit"] is None


def replayed_and_pruned(run: Path, packed: dict[str, Any]) -> None:
    """PR 693 replays its last batches, and zeroes codes of +-1 if the artifact is above the cap."""
    (burst,) = events(run, "replay")
    assert (burst["batches"], burst["first_batch"], burst["replay_steps"]) == (3, 21, 6)
    assert packed["pruned_to_fit"]["zeroed"] == 0
    done("pack", run, "--budget.artifact_bytes", str(packed["total_bytes"] + 50_000 - 300))
    again = read_json(run / "pack.json")
    assert again["total_bytes"] <= packed["total_bytes"] - 300
    assert 0 < again["pruned_to_fit"]["zeroed"] < again["pruned_to_fit"]["candidates"]


def test_the_tables_of_all_four_are_bf16_as_published() -> None:
    for name in ("seed-348", "seed-576", "seed-585", "seed-693"):
        assert load_config(name).train.table_dtype == "bf16"
