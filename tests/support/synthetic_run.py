"""A run directory with every product, made of plain files: no model is trained and none is loaded.

The text is hostile on purpose (markup, a script, control characters, characters spread over tokens). The
tokenizer is one token a byte, with id 256 for the start of a document.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitgolf.artifact.generate import Continuation, Sampling
from bitgolf.config import Config, load_config
from bitgolf.grids.roles import role
from bitgolf.report import report as report_module
from bitgolf.run.directory import RunDirectory

BOS = 256
HOSTILE = "<script>alert('x')</script> & \"quotes\" </span> na\u00efve \u20ac\u0007 caf\u00e9\n\tdef f(x):\n"


class ByteTokenizer:
    """One token a byte."""

    bos_id = BOS

    def decode(self, ids: list[int] | np.ndarray) -> str:
        return bytes(i for i in np.asarray(ids).tolist() if i != BOS).decode("utf-8", errors="replace")

    def token_text_bytes(self, token: int) -> bytes:
        return b"" if token == BOS else bytes([token])

    def spell(self, ids: list[int]) -> list[bytes]:
        return [self.token_text_bytes(token) for token in ids]


@dataclass
class Tokens:
    """A token stream in memory."""

    tokens: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0 and start + length <= len(self.tokens)
        return self.tokens[start : start + length]


class EchoModel:
    """Continues a prompt with markup, and notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def generate(self, prompt: str, sampling: Sampling) -> Continuation:
        assert sampling.seed is not None
        self.calls.append((prompt, sampling.max_tokens, sampling.seed))
        return Continuation(f"<img src=x onerror=alert(1)> seed {sampling.seed}", [], False)


def stream(*documents: str) -> Tokens:
    """BOS before each document, then its bytes."""
    ids = [i for text in documents for i in (BOS, *text.encode())]
    return Tokens(np.array(ids, dtype=np.uint16))


def training_events(num_steps: int = 900, every: int = 20) -> list[dict[str, Any]]:
    """A plausible `train.jsonl`: a power law with noise, a warm-down over the last 40 %."""
    rng = np.random.default_rng(7)
    events: list[dict[str, Any]] = [
        {
            "event": "start",
            "step": 0,
            "elapsed_seconds": 0.0,
            "config_sha256": "0" * 64,
            "preset": "demo",
            "seed": 1337,
            "world_size": 1,
            "device": "cpu <x86_64>",
            "attention": "math",
            "compiled": False,
            "torch": "2.11.0",
            "train_tokens_available": 4_100_000,
            "vocab_size": 1024,
            "warm_up_seconds": 1.9,
            "warm_up_step_seconds": 0.08,
            "calibration_reserve_seconds": 1.2,
        }
    ]
    for step in [1, *range(every, num_steps + 1, every)]:
        share = step / num_steps
        loss = 2.35 + 4.6 * (1 + step / 6) ** -0.55 + rng.normal(0, 0.015) - 0.2 * max(0.0, share - 0.6)
        events.append(
            {
                "event": "step",
                "step": step,
                "loss": float(loss),
                "lr_scale": min(1.0, (1 - share) / 0.4),
                "tokens": step * 4096,
                "elapsed_seconds": step * 0.0813,
                "grad_norm": float(0.5 + rng.random()),
                "tokens_per_second": float(50_300 + rng.normal(0, 900)),
            }
        )
    seconds = num_steps * 0.0813
    events += [
        {"event": "calibration", "step": num_steps, "tokens": 65_536, "seconds": 1.1, "elapsed_seconds": seconds + 1.1},
        {
            "event": "end",
            "step": num_steps,
            "tokens": num_steps * 4096,
            "elapsed_seconds": seconds + 1.1,
            "steps_seconds": seconds,
            "tokens_per_second": 4096 / 0.0813,
            "peak_memory_mib": 0.0,
        },
    ]
    return events


def pack_json(config: Config) -> dict[str, Any]:
    """Tensors of the configured model with the bytes they would take at their bits."""
    model, tensors = config.model, dict[str, dict[str, Any]]()
    width, hidden, kv = model.model_dim, model.mlp_dim, model.kv_dim

    def add(name: str, shape: list[int], bits: int) -> None:
        kind = "fp16" if bits == 16 else f"int{bits}"
        tensors[name] = {"shape": shape, "kind": kind, "group": role(name), "bytes": math.prod(shape) * bits // 8}

    add("embedding", [model.vocab_size, width], 8)
    add("skip_weights", [2, width], 16)
    for layer in range(model.num_layers):
        for part, shape in (
            ("attention.query", [width, width]),
            ("attention.key", [kv, width]),
            ("attention.value", [kv, width]),
            ("attention.out", [width, width]),
            ("mlp.up", [hidden, width]),
            ("mlp.down", [width, hidden]),
        ):
            add(f"blocks.{layer}.{part}.weight", shape, 6)
        add(f"blocks.{layer}.attn_scale", [width], 16)
    groups: dict[str, int] = {}
    for tensor in tensors.values():
        groups[tensor["group"]] = groups.get(tensor["group"], 0) + tensor["bytes"]
    model_bytes = sum(groups.values()) + 9_400 + 1_150
    code = 41_000
    return {
        "model_bytes": model_bytes,
        "code_bytes": code,
        "total_bytes": model_bytes + code,
        "cap_bytes": config.budget.artifact_bytes,
        "model_sha256": "ab" * 32,
        "seconds": 3.2,
        "num_parameters": 674_000,
        "bits_per_weight": 6.41,
        "method": "gptq",
        "compressor": "zstd",
        "header_bytes": 1_150,
        "stream_bytes": {"codes": model_bytes - 10_550, "tokenizer": 9_400},
        "group_bytes": groups,
        "tensors": tensors,
    }


def score_json(num_tokens: int, num_bytes: int) -> dict[str, Any]:
    """Scores by both methods with their references."""

    def result(bpb: float, seconds: float) -> dict[str, float]:
        return {
            "bpb": bpb,
            "loss_nats": bpb * 1.6,
            "tokens": num_tokens - 1,
            "bytes": num_bytes,
            "bpb_per_nat": 0.625,
            "seconds": seconds,
        }

    return {
        "methods": {"chunked": result(2.0711, 4.1), "sliding": result(2.0243, 15.8)},
        "headline": "sliding",
        "headline_bpb": 2.0243,
        "float": {"chunked": result(2.0663, 0.0)},
        "quantization_tax": 0.0048,
        "accounting": "original",
        "val_tokens": num_tokens,
        "val_bytes": num_bytes,
        "val_documents": 3,
        "model_sha256": "ab" * 32,
        "window": 256,
        "stride": 64,
        "evaluation_seconds": 20.3,
        "device": "cpu",
        "attention": "math",
        "world_size": 1,
        "compressors": {"zstd-22": 2.2105, "xz-9": 2.1888},
    }


def audit_json() -> dict[str, Any]:
    """One check of each outcome but FAIL."""
    checks = [
        {
            "name": "artifact-bytes",
            "rule": "B1",
            "title": "code and model fit the cap",
            "verdict": "PASS",
            "reason": "545,118 of 1,000,000 bytes",
            "evidence": {"model_bytes": 504_118, "code_bytes": 41_000},
        },
        {
            "name": "once",
            "rule": "C4",
            "title": "every target is scored exactly once",
            "verdict": "PASS",
            "reason": "all targets, one event <b>",
            "evidence": {"events": [{"targets": [0, 10]}]},
        },
        {
            "name": "future-flip",
            "rule": "C1",
            "title": "no score depends on a later token",
            "verdict": "PASS",
            "reason": "bit-identical in 8 trials",
            "evidence": {},
        },
    ]
    return {
        "bitgolf_version": "0.1.0",
        "passed": True,
        "complete": True,
        "exit_code": 0,
        "counts": {"PASS": 3, "FAIL": 0, "NOT RUN": 0},
        "checks": checks,
    }


@dataclass
class SyntheticRun:
    """A finished run with its texts and the model that continues them."""

    run: RunDirectory
    val: Tokens
    model: EchoModel

    def write(self, name: str, value: object) -> None:
        (self.run / name).write_text(json.dumps(value))


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SyntheticRun:
    """A run directory with all products; `open_data` and `load` give in-memory stand-ins."""
    config = load_config(
        "demo", {"report.surprisal_tokens": "300", "budget.train_seconds": "75", "budget.eval_seconds": "60"}
    )
    run = RunDirectory.create(tmp_path / "demo", config)
    val = stream(HOSTILE * 9, "The quick brown fox jumps over the lazy dog. " * 12, HOSTILE * 4)
    finished = SyntheticRun(run, val, EchoModel())
    (run / "data").mkdir()
    (run / "model.bitgolf").write_bytes(b"stand-in")
    (run / "train.jsonl").write_text("".join(json.dumps(event) + "\n" for event in training_events()))
    packed = pack_json(config)
    finished.write("pack.json", packed)
    finished.write("score.json", score_json(val.num_tokens, 1234))
    finished.write("audit.json", audit_json())
    nll = np.random.default_rng(3).gamma(0.6, 2.4, val.num_tokens - 1).astype(np.float32)
    np.save(run / "nll.npy", nll)
    budget = run.budget()
    for charge in (
        ("train_seconds", "train", "optimizer steps", 73.2),
        ("train_seconds", "train", "calibration", 1.1),
        ("artifact_bytes", "pack", "model", packed["model_bytes"]),
        ("artifact_bytes", "pack", "code", packed["code_bytes"]),
        ("untimed_seconds", "pack", "quantize and compress", 3.2),
        ("eval_seconds", "score", "read and decompress", 0.4),
        ("eval_seconds", "score", "chunked", 4.1),
        ("eval_seconds", "score", "sliding", 15.8),
    ):
        budget.charge(*charge)
    data = SimpleNamespace(tokenizer=ByteTokenizer(), val=val)
    monkeypatch.setattr(report_module, "open_data", lambda path: data)
    monkeypatch.setattr(report_module, "open_model", lambda path, device: finished.model)
    monkeypatch.setattr(report_module, "generate", lambda model, prompt, sampling: model.generate(prompt, sampling))
    return finished
