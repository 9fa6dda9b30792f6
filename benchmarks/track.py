"""Collect runs of the one-GPU track into `benchmarks/results/one-gpu-track/` and tabulate them.

    python benchmarks/track.py collect DIR [--into FOLDER] [--commit HASH] [--float-bpb BPB] [--note TEXT]
    python benchmarks/track.py table

The track: one GPU, 300 s of training with everything that reads training text inside it, at most 16,000,000 bytes,
bits per byte on the whole of `val`. A run is made with `bitgolf run PRESET --out DIR`, or several with
benchmarks/experiment.py. `collect` copies configuration, log, scores and audit of a run and writes `summary.json` from
them, with the score of the first documents up to 8,000,000 bytes for comparison with quick runs. `table` writes
README.md.

Runs that are compared with published systems use the challenge's lossy tokenizer and its byte accounting on the first
8 MB of `val`; they have a table of their own. `--float-bpb` gives the chunked score of the float weights where it was
measured apart from the run. `--note` adds a sentence to the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bitgolf.data.prepare import open_data
from bitgolf.evaluate.bits import bits_per_byte
from bitgolf.run.directory import RunDirectory
from bitgolf.train.metrics import read_events

RESULTS = Path(__file__).parent / "results" / "one-gpu-track"
KEPT = ("config.toml", "train.jsonl", "train.log", "pack.json", "score.json", "audit.json", "budget.json")
QUICK_BYTES = 8_000_000


def quick_bpb(run: RunDirectory) -> tuple[float, int]:
    """Headline bits per byte of the first documents until QUICK_BYTES are reached, and their bytes."""
    data = open_data(run.require("data"))
    tokens = data.val.read(0, data.val.num_tokens)
    costs = data.tokenizer.byte_costs(tokens)
    ends = (
        np.append(np.flatnonzero(tokens == data.tokenizer.bos_id)[1:], len(tokens)) - 1
    )  # last target of each document
    totals = np.cumsum(costs)[ends - 1]
    last = int(ends[min(np.searchsorted(totals, QUICK_BYTES), len(ends) - 1)])
    score = bits_per_byte(np.load(run.require("nll.npy"))[:last], costs[:last])
    return score.bpb, score.bytes


def folder_name(preset: str, seed: int, accounting: str) -> str:
    """Where a run is collected: a preset may be trained on the text of either tokenizer."""
    return f"{preset}-seed{seed}" + ("" if accounting == "challenge" else "-lossless")


def collect(path: Path, into: Path, commit: str, float_bpb: float | None = None, note: str = "") -> Path:
    """Copy what documents the run at `path` into a folder of `into` and write its summary."""
    run = RunDirectory.open(path)
    score, pack = (json.loads(run.require(f"{name}.json").read_text()) for name in ("score", "pack"))
    audit = json.loads((run / "audit.json").read_text()) if (run / "audit.json").exists() else {"checks": []}
    events = {event["event"]: event for event in read_events(run.require("train.jsonl"))}
    chunked = score["methods"]["chunked"]["bpb"]
    if score["float"]:
        float_bpb = score["float"]["chunked"]["bpb"]
    is_quick = score["val_bytes"] < 1.01 * QUICK_BYTES
    quick, quick_bytes = (score["headline_bpb"], score["val_bytes"]) if is_quick else quick_bpb(run)
    target = into / folder_name(run.config.name, run.config.seed, score["accounting"])
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (run / name).exists():
            shutil.copyfile(run / name, target / name)
    summary = {
        "preset": run.config.name,
        "seed": run.config.seed,
        "commit": commit,
        "hardware": events["start"]["device"],
        "torch": events["start"]["torch"],
        "attention": events["start"]["attention"],
        "parameters": pack["num_parameters"],
        "steps": events["end"]["step"],
        "tokens": events["end"]["tokens"],
        "tokens_per_second": events["end"]["tokens_per_second"],
        "peak_memory_mib": events["end"]["peak_memory_mib"],
        "warm_up_seconds": events["start"]["warm_up_seconds"],
        "train_seconds": events["end"]["elapsed_seconds"],
        "calibration_seconds": events["calibration"]["seconds"],
        "pack_seconds": pack["seconds"],
        "eval_seconds": score["evaluation_seconds"],
        "bytes_total": pack["total_bytes"],
        "bytes_code": pack["code_bytes"],
        "average": events["end"]["average"],
        "last_chunked_bpb": score.get("last", {}).get("chunked", {}).get("bpb"),
        "float_chunked_bpb": float_bpb,
        "packed_chunked_bpb": chunked,
        "quantization_tax_bpb": None if float_bpb is None else chunked - float_bpb,
        "methods": {name: result["bpb"] for name, result in score["methods"].items()},
        "headline": score["headline"],
        "headline_bpb": score["headline_bpb"],
        "stride": score["stride"],
        "val_bytes": score["val_bytes"],
        "quick_bpb": quick,
        "quick_bytes": quick_bytes,
        "compressors": score["compressors"],
        "accounting": score["accounting"],
        "audit": {check["name"]: check["verdict"] for check in audit["checks"]},
        "note": note,
    }
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return target


def figure(value: float | None) -> str:
    """Four digits, or a dash for what was not measured."""
    return "-" if value is None else f"{value:.4f}"


def rows_of(summaries: list[dict[str, Any]]) -> list[str]:
    """One table."""
    lines = [
        "| run | commit | parameters | tokens/s | steps | last weights | averaged | packed | tax | sliding (stride) | "
        "+ TTT | bytes | train s (calibration) | pack s | eval s | peak MiB | audit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in summaries:
        verdicts = list(row["audit"].values())
        audited = f"{verdicts.count('PASS')} of {len(verdicts)} PASS" if verdicts else "not made"
        methods = row.get("methods", {row["headline"]: row["headline_bpb"]})
        adapted = [bpb for method, bpb in methods.items() if method not in ("chunked", "sliding")]
        seconds = f"{row['pack_seconds']:.1f}" if row.get("pack_seconds") else "-"
        name = folder_name(row["preset"], row["seed"], row["accounting"])
        lines.append(
            f"| [{row['preset']}, seed {row['seed']}]({name}/) | {row['commit']} | {row['parameters']:,} | "
            f"{row['tokens_per_second']:,.0f} | {row['steps']:,} | {figure(row.get('last_chunked_bpb'))} | "
            f"{figure(row['float_chunked_bpb'])} | {figure(row['packed_chunked_bpb'])} | "
            f"{figure(row['quantization_tax_bpb'])} | {figure(methods.get('sliding'))} ({row.get('stride', 64)}) | "
            f"{figure(adapted[0] if adapted else None)} | {row['bytes_total']:,} | {row['train_seconds']:.1f} "
            f"({row['calibration_seconds']:.1f}) | {seconds} | "
            f"{row['eval_seconds']:.1f} | {row['peak_memory_mib']:,.0f} | {audited} |"
        )
    notes = [f"- {row['preset']}, seed {row['seed']}: {row['note']}" for row in summaries if row.get("note")]
    return [*lines, *(["", *notes] if notes else [])]


def table(results: Path) -> str:
    """Markdown of every summary under `results`."""
    summaries = [json.loads(path.read_text()) for path in sorted(results.glob("*/summary.json"))]
    hardware = sorted({f"{row['hardware']}, torch {row['torch']}" for row in summaries})
    lossy = [row for row in summaries if row["accounting"] == "challenge"]
    exact = [row for row in summaries if row["accounting"] != "challenge"]
    lines = [
        "# One-GPU track",
        "",
        "Made by `python benchmarks/track.py table` from the summaries beside it. One GPU, 300 s of training; tax =",
        f"packed minus averaged float weights, all three chunked. Hardware: {'; '.join(hardware)}.",
        "",
        "## Lossless tokenizer, original bytes, whole `val`",
        "",
        *rows_of(exact),
        "",
        "## Challenge-style tokenizer and accounting, first 8 MB of `val` (7,973,703 counted bytes)",
        "",
        "Comparable with what the published scripts score there, not with the table above.",
        "",
        *rows_of(lossy),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("collect")
    sub.add_argument("run", type=Path)
    sub.add_argument("--into", type=Path, default=RESULTS)
    sub.add_argument("--commit", default="unknown")
    sub.add_argument("--float-bpb", type=float)
    sub.add_argument("--note", default="")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        print(collect(arguments.run, arguments.into, arguments.commit, arguments.float_bpb, arguments.note))
    else:
        (RESULTS / "README.md").write_text(table(RESULTS))
        print(RESULTS / "README.md")


if __name__ == "__main__":
    main()
