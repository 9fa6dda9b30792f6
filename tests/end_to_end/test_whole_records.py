"""Every entry of the records of a run (train.jsonl, pack.json, score.json), computed from its other files."""

import hashlib
import json
import math
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import read_json

import bitgolf

STAMPS = {"event", "step", "elapsed_seconds", "seal"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_training_log(tiny_run: Path) -> None:
    events = [json.loads(line) for line in (tiny_run / "train.jsonl").read_text().splitlines()]
    manifest = read_json(tiny_run / "data" / "manifest.json")
    start, *steps, calibration, end = events
    assert [event["event"] for event in events] == ["start", *["step"] * 5, "calibration", "end"]
    assert start.keys() - STAMPS == {
        "config_sha256", "preset", "seed", "train_seconds_limit", "eval_seconds_limit", "world_size", "device",
        "attention", "kernels", "compiled", "bitgolf", "python", "torch", "cuda", "train_tokens_available",
        "vocab_size", "data_seal", "code_sha256", "warm_up_seconds", "warm_up_step_seconds",
        "calibration_reserve_seconds", "reserve_seconds", "replay_reserve_seconds", "settings",
    }  # fmt: skip
    assert (start["step"], start["elapsed_seconds"], start["preset"], start["seed"]) == (0, 0.0, "tiny", 7)
    assert (start["train_seconds_limit"], start["eval_seconds_limit"], start["world_size"]) == (120.0, 120.0, 1)
    assert (start["kernels"], start["compiled"], start["cuda"]) == ("pytorch", False, torch.version.cuda)
    versions = (bitgolf.__version__, platform.python_version(), torch.__version__)
    assert (start["bitgolf"], start["python"], start["torch"]) == versions
    assert start["train_tokens_available"] == manifest["splits"]["train"]["tokens"]
    assert (start["vocab_size"], start["data_seal"]) == (384, manifest["seal"])
    assert 0 < start["warm_up_step_seconds"] < start["warm_up_seconds"]
    assert 0 < start["calibration_reserve_seconds"] < start["reserve_seconds"] and start["replay_reserve_seconds"] == 0
    assert (
        start["settings"].items() >= {"train.max_steps": 40, "model.num_layers": 2, "data.val_fraction": 0.08}.items()
    )
    before, clock = 1, 0.0
    for event, step in zip(steps, (1, 10, 20, 30, 40), strict=True):
        assert event.keys() - STAMPS == {"loss", "lr_scale", "tokens", "grad_norm", "tokens_per_second"}
        assert (event["step"], event["tokens"]) == (step, step * 1024)
        assert event["lr_scale"] == pytest.approx(min(1.0, (1 - (step - 1) / 40) / 0.4))
        assert event["loss"] < math.log(384) + 0.1 and event["grad_norm"] > 0
        if step > 1:
            speed = 1024 * (step - before) / (event["elapsed_seconds"] - clock)
            assert event["tokens_per_second"] == pytest.approx(speed, rel=1e-4)
        before, clock = step, event["elapsed_seconds"]
    assert calibration.keys() - STAMPS == {"tokens", "seconds"} and calibration["tokens"] == 8192
    assert end.keys() - STAMPS == {
        "tokens", "steps_seconds", "tokens_per_second", "average", "peak_memory_mib", "products",
    }  # fmt: skip
    assert (end["step"], end["tokens"], end["average"], end["peak_memory_mib"]) == (40, 40 * 1024, "ema 0.8", 0.0)
    assert end["tokens_per_second"] == pytest.approx(40 * 1024 / end["steps_seconds"])
    assert end["elapsed_seconds"] == pytest.approx(end["steps_seconds"] + calibration["seconds"])
    assert end["products"] == {
        name: sha256(tiny_run / name) for name in ("weights.safetensors", "calibration/hessians.safetensors")
    }


def test_the_record_of_packing(tiny_run: Path) -> None:
    pack, weights = read_json(tiny_run / "pack.json"), load_file(tiny_run / "weights.safetensors")
    artifact, end = tiny_run / "model.bitgolf", json.loads((tiny_run / "train.jsonl").read_text().splitlines()[-1])
    assert pack.keys() == {
        "model_bytes", "code_bytes", "total_bytes", "cap_bytes", "model_sha256", "seconds", "num_parameters",
        "bits_per_weight", "method", "compressor", "header_bytes", "stream_bytes", "group_bytes", "pruned_to_fit",
        "allocation", "tensors", "inputs", "code_sha256", "settings", "config", "part_seconds", "seal",
    }  # fmt: skip
    assert (pack["model_bytes"], pack["model_sha256"]) == (artifact.stat().st_size, sha256(artifact))
    assert pack["total_bytes"] == pack["model_bytes"] + pack["code_bytes"] <= pack["cap_bytes"] == 1_000_000
    assert pack["num_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert pack["header_bytes"] + sum(pack["stream_bytes"].values()) == pack["model_bytes"]
    assert pack["bits_per_weight"] == pytest.approx(8 * pack["model_bytes"] / pack["num_parameters"], rel=0.02)
    assert (pack["method"], pack["compressor"], pack["inputs"]) == ("gptq", "zstd", end["products"])
    assert pack["seconds"] > 0 and all(part >= 0 for part in pack["part_seconds"].values())
    groups: dict[str, int] = {}
    assert pack["tensors"].keys() == weights.keys()
    for name, entry in pack["tensors"].items():
        assert entry["shape"] == list(weights[name].shape)
        groups[entry["group"]] = groups.get(entry["group"], 0) + entry["bytes"]
        rounded = entry["kind"] != "fp16"
        assert rounded == (weights[name].dim() == 2 and weights[name].numel() > 1024), name
        if not rounded:
            assert entry.keys() == {"shape", "kind", "group", "bytes"}
            continue
        table = name in ("embedding", "bigram.table", "value_embedding.table")
        assert entry["kind"] == ("int8" if table else "int6") and 0 < entry["code_bits"] < (8 if table else 6)
        assert 0 < entry["weight_error"] < 0.01
        if table and name != "embedding":
            assert entry["hessian_error"] is None and entry["rtn_hessian_error"] is None
        else:
            assert 0 < entry["hessian_error"] < entry["rtn_hessian_error"]
    assert groups == pack["group_bytes"]


def test_the_record_of_scoring(tiny_run: Path) -> None:
    score = read_json(tiny_run / "score.json")
    val = read_json(tiny_run / "data" / "manifest.json")["splits"]["val"]
    assert score.keys() == {
        "methods", "headline", "headline_bpb", "diagnostic", "last", "float", "quantization_tax", "accounting",
        "val_tokens", "val_bytes", "val_documents", "model_sha256", "window", "stride", "evaluation_seconds", "device",
        "attention", "world_size", "compressors", "data_seal", "losses", "tape_sha256", "code_sha256", "settings",
        "seal",
    }  # fmt: skip
    constant = (val["tokens"] - 1) / val["raw_bytes"] / math.log(2)
    for name, entry in score["methods"].items():
        nll = np.load(tiny_run / score["losses"][name]["file"]).astype(np.float64)
        assert entry["loss_nats"] == pytest.approx(nll.mean()) and entry["bpb"] == pytest.approx(nll.mean() * constant)
        assert (entry["tokens"], entry["bytes"]) == (val["tokens"] - 1, val["raw_bytes"]) and entry["seconds"] > 0
        assert entry["bpb_per_nat"] == pytest.approx(constant)
        assert score["losses"][name]["sha256"] == sha256(tiny_run / score["losses"][name]["file"])
    assert (score["headline"], score["headline_bpb"]) == ("sliding", score["methods"]["sliding"]["bpb"])
    tax = score["methods"]["chunked"]["bpb"] - score["float"]["chunked"]["bpb"]
    assert score["quantization_tax"] == pytest.approx(tax, abs=1e-12) and abs(tax) < 0.01
    assert (score["diagnostic"], score["last"]) == ({}, {})
    counts = (score["val_tokens"], score["val_bytes"], score["val_documents"])
    assert counts == (val["tokens"], val["raw_bytes"], val["documents"])
    assert (score["window"], score["stride"], score["world_size"], score["accounting"]) == (64, 32, 1, "original")
    assert score["evaluation_seconds"] >= sum(entry["seconds"] for entry in score["methods"].values())
    assert score["model_sha256"] == sha256(tiny_run / "model.bitgolf")
    assert score["tape_sha256"] == sha256(tiny_run / "tape.json")
    assert score["compressors"].keys() == {"zstd-22", "xz-9"}
