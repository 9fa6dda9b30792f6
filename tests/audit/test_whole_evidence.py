"""All that the audits of an honest run and of an honest submission put on record, computed from their files."""

import hashlib
import json
import math
import statistics
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import pytest
from synthetic_submission import CODE, CONSTANT, VAL_TOKENS, Folder
from tiny_run import read_json

from bitgolf.referee.run import audit_submission

ANY = ...  # drawn, or of the machine


def agrees(value: Any, expected: Any) -> bool:
    """Whether a record is the expected one; `...` stands for any value, and floats agree to a part in 10^9."""
    if isinstance(expected, EllipsisType):
        return True
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(agrees(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and value == (pytest.approx(expected) if type(value) is float else expected)


def test_the_audit_of_a_run(tiny_run: Path) -> None:
    pack, score, budget = (read_json(tiny_run / f"{name}.json") for name in ("pack", "score", "budget"))
    val = read_json(tiny_run / "data" / "manifest.json")["splits"]["val"]
    train = read_json(tiny_run / "data" / "manifest.json")["splits"]["train"]
    events = [json.loads(line) for line in (tiny_run / "train.jsonl").read_text().splitlines()]
    tokens = np.fromfile(tiny_run / "data" / "val_000000.bin", "<u2")[512:]
    nll = {name: np.load(tiny_run / score["losses"][name]["file"]) for name in ("chunked", "sliding")}
    artifact = (tiny_run / "model.bitgolf").read_bytes()
    spent = {kind: sum(c["amount"] for c in budget["charges"] if c["kind"] == kind) for kind in budget["limits"]}
    N, documents, num_bytes = len(tokens), int((tokens == tokens[0]).sum()), val["raw_bytes"]
    loss = float(nll["sliding"].mean(dtype=np.float64))
    ratio = (N - 1) / num_bytes / math.log(2)
    config_sha, code_sha = events[0]["config_sha256"], events[0]["code_sha256"]
    moments = next(event for event in events if event["event"] == "calibration")
    code = pack["code_bytes"]
    same = {"largest_nats": ANY, "mean_nats": ANY, "same_kernels": True, "tolerance_nats": 1e-4}
    flips = {"flipped_targets": ANY, "distributions_compared": ANY, "vocab_size": 384, "moved_later": ANY}
    flips |= {"noise_nats": 0.0, "leaks": []}
    claims = {"manifest tokens": N, "manifest documents": documents, "manifest bytes": num_bytes}
    claims |= {"score.json val_tokens": N, "score.json val_documents": documents, "score.json val_bytes": num_bytes}
    claims |= {"scored tokens": N - 1, "scored bytes": num_bytes}
    sealed = {"user": ANY, "reachable": [], "writable": [], "probed": ANY, "still_open": [], "refused": ANY}
    sealed |= {"files": ANY, "network": ANY, "closed": ANY, "limits": ANY, "attempts": [], "targets": ANY}
    expected: dict[str, tuple[str, dict[str, Any]]] = {
        "artifact-bytes": ("B1", {
            "model_bytes": len(artifact), "code_bytes": code, "total_bytes": len(artifact) + code,
            "limit_bytes": 1_000_000, "claimed_model_bytes": len(artifact), "claimed_code_bytes": code,
            "claimed_total_bytes": len(artifact) + code, "charged_bytes": float(len(artifact) + code)}),
        "train-clock": ("B4", {
            "charged_seconds": spent["train_seconds"], "limit_seconds": 120.0, "resumes": 0,
            "log_seconds": events[-1]["elapsed_seconds"], "timed_events": len(events),
            "calibration_end_seconds": moments["elapsed_seconds"]}),
        "eval-clock": ("B6", {
            "charged_seconds": spent["eval_seconds"], "limit_seconds": 120.0, "untimed_seconds": 0,
            "claimed_seconds": score["evaluation_seconds"],
            "method_seconds": {name: method["seconds"] for name, method in score["methods"].items()}}),
        "artifact-sealed": ("B7", dict.fromkeys(
            ("file_sha256", "scored_sha256"), hashlib.sha256(artifact).hexdigest())),
        "data-sealed": ("B7", {"files": 5}),
        "sealed-chain": ("B7", {
            "num_problems": 0, "code_sha256": dict.fromkeys(("train", "pack", "score", "audit"), code_sha)}),
        "one-configuration": ("config", {
            "trained": config_sha, "packed": config_sha, "config_toml": config_sha, "facts": ANY}),
        "train-log": ("B7", {
            "tokens": 40 * 1024, "train_tokens": train["tokens"], "calibration_tokens": 8192, "num_problems": 0}),
        "headline-pass": ("C4", {
            "configured": ["chunked", "sliding"], "reported": ["chunked", "sliding"], "headline": "sliding"}),
        "disjoint-splits": ("B7", {
            "num_train": train["documents"], "num_val": documents, "overlap": 0, "changed_files": [],
            "shard_documents": train["documents"], "shard_overlap": 0}),
        "one-order": ("order", {"documents": documents, "checked": documents, "shards": ["val_000000.bin"]}),
        "validation-complete": ("C4", {
            "documents": documents, "source_documents": documents, "raw_bytes": num_bytes, "tokenized": documents}),
        "byte-accounting": ("bytes", {
            "documents": documents, "bytes": num_bytes, "counted_bytes": num_bytes, "raw_bytes": num_bytes,
            "lossless": True, "num_problems": 0}),
        "near-duplicates": ("B7", {
            "halves": 0, "max_share_of_halves": 0.1, "share": 0.0, "in_pieces": 0, "max_share_in_pieces": 0.02,
            "copies": 0, "max_share": 0.01, "max_copies": 0.001, "compared": train["documents"], "indexed": documents,
            "worst": []}),
        "scored-once": ("C4", {
            "num_targets": N - 1, "num_tokens": N, "score_events": 1, "num_losses": N - 1, "num_problems": 0,
            "tokens_sha256": hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()}),
        "score-first": ("C3", {"updates": 0, "num_problems": 0}),
        "counts": ("C4", {"num_tokens": N, "num_documents": documents, "byte_total": num_bytes, "claims": claims}),
        "identity": ("identity", {
            "bpb": loss * ratio, "loss_nats": loss, "bpb_per_nat": ratio, "ratios": dict.fromkeys(nll, ratio)}),
        "numbers-agree": ("numbers", {
            "events": len(events), "charges": len(budget["charges"]), "num_problems": 0, "all_problems": []}),
        "future-flip": ("C1", flips),
        "target-flip": ("C1", flips),
        "length-blind": ("C1", {"moves": ANY, "borders": ANY, "largest_nats": "0.0", "tolerance": 1e-3}),
        "normalization": ("C2", {"positions": 128, "vocab_size": 384, "worst_sum": ANY, "tolerance": 1e-5}),
        "losses-match": ("C2", {"targets": 128, "largest_gap_nats": ANY, "tolerance": 5e-5}),
        "other-shapes": ("re-run", same | {
            "targets": 256, "mean_tolerance_nats": 1e-4 + 4 * 0.005 / 16, "ranks": 2, "ranks_with_work": ANY,
            "processes": 1}),
        "reproduction": ("re-run", same | {
            "targets": ANY, "mean_tolerance_nats": ANY, "blocks": ANY, "whole": False, "entropy": ANY}),
        "other-passes": ("re-run", same | {"targets": ANY, "mean_tolerance_nats": ANY, "passes": ["chunked"]}),
        "sealed-evaluation": ("B7", sealed | {"text_in_libraries": False}),
    }  # fmt: skip
    verdict = read_json(tiny_run / "audit.json")
    checks = {check["name"]: check for check in verdict["checks"]}
    assert list(checks) == list(expected), "in the order of docs/auditing.md"
    for name, (rule, evidence) in expected.items():
        assert agrees(checks[name]["evidence"], evidence), (name, checks[name]["evidence"], evidence)
        assert checks[name]["rule"] == rule, name
    assert checks["reproduction"]["evidence"]["entropy"] == verdict["entropy"]
    for name in ("reproduction", "other-passes"):
        shown = checks[name]["evidence"]
        assert shown["mean_tolerance_nats"] == pytest.approx(1e-4 + 0.02 / shown["targets"] ** 0.5)


def test_the_audit_of_a_submission(tmp_path: Path) -> None:
    folder = Folder()
    seeds = sorted(folder.seeds, key=lambda seed: str(seed.seed))
    names = [f"train_seed{seed.seed}.log" for seed in seeds]
    totals = dict(zip(names, map(folder.total, seeds), strict=True))
    counts = {"val_tokens": [VAL_TOKENS], "target_tokens": [], "documents": [50_000]}
    pairs = [f"{a} and {b}" for n, a in enumerate(names) for b in names[n + 1 :]]
    mean, spread = statistics.mean(seed.bpb for seed in seeds), statistics.stdev(seed.bpb for seed in seeds)
    expected: dict[str, tuple[str, dict[str, Any], str]] = {
        "files": ("section 5", {
            "files": ["README.md", "submission.json", "train_gpt.py", *names], "logs": names}, "6 files, 3 logs"),
        "json-schema": ("section 5", {"fields": sorted(folder.metadata())}, "16 fields; val_bpb 1.0616513"),
        "artifact-bytes": ("B1, B2", {
            "totals": totals, "claimed": [max(totals.values())], "shipped_code_bytes": len(CODE.encode()),
            "imported_files": {}, "notes": []}, f"{max(totals.values()):,} of 16,000,000 bytes at most"),
        "train-clock": ("B4", {
            "ends_seconds": {name: seed.stop_ms / 1000 for name, seed in zip(names, seeds, strict=True)}},
            "594.10 of 600 s"),
        "eval-clock": ("B6", {"eval_seconds": {
            name: max(seed.eval_ms, round(seed.eval_ms, -2)) / 1000 for name, seed in zip(names, seeds, strict=True)
            }}, "493.6 of 600 s"),
        "tokens-scored": ("C4", {"counted": dict.fromkeys(names, counts), "expected": VAL_TOKENS},
                          "47,851,520 validation tokens in 3 logs"),
        "seeds": ("section 4", {"bpb": {str(seed.seed): seed.bpb for seed in seeds}},
                  f"3 seeds, mean {mean:.5f} +- {spread:.5f} bpb"),
        "numbers-agree": ("section 5", {"num_problems": 0, "all_problems": []}, "figures of 3 seeds"),
        "identity": ("identity", {
            "constants": {name: seed.bpb / seed.loss for name, seed in zip(names, seeds, strict=True)},
            "published": 0.456961}, f"{CONSTANT:.6f} in 3 logs, that of caseops"),
        "logs-distinct": ("section 6", {"same_lines": dict.fromkeys(pairs, 0.0)}, "3 logs, no two alike"),
        "one-configuration": ("section 4", {"differing": {}}, "11 settings, the same in 3 logs"),
        "validation-unseen": ("B7", {}, "no violation was recognized"),
        "single-pass": ("C4", {}, "no violation was recognized"),
        "causal": ("C1, C3", {}, "no violation was recognized"),
        "distribution": ("C2", {}, "no violation was recognized"),
        "split": ("B7", {}, "no script that prepares data"),
        "settings-read": ("section 6", {
            "assigned": {"MATRIX_LR": "0.026", "TTT_LORA_RANK": "80", "SEED": "42"}, "ignored": []}, "3 settings"),
        "claims-agree": ("section 6", {"compared": 6}, "6 settings as the logs resolved them"),
        "self-contained": ("B7", {}, "5 imports"),
        "logged-source": ("section 5", {}, "the logs do not hold the source"),
    }  # fmt: skip
    checks = {check.name: check for check in audit_submission(folder.write(tmp_path / "stack")).checks}
    assert list(checks) == list(expected)
    for name, (rule, evidence, words) in expected.items():
        assert checks[name].rule == rule and words in checks[name].reason, checks[name]
        assert agrees(dict(checks[name].evidence), evidence), (name, checks[name].evidence, evidence)
