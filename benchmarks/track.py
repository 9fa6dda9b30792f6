"""Collect runs of the one-GPU track into `benchmarks/results/one-gpu-track/` and tabulate them.

The track: one GPU, 300 s of training with everything that reads training text inside it, at most 16,000,000 bytes,
bits per byte on the whole of `val` (and on its first documents up to 8,000,000 bytes, for comparison with day-to-day
runs). A run is made with `bitgolf run PRESET --out DIR --data.source ... --data.val_source ... `; then

    python benchmarks/track.py collect DIR [--into benchmarks/results/one-gpu-track] [--commit HASH]
    python benchmarks/track.py table

`collect` copies configuration, log, scores and audit, and writes `summary.json` from them; `table` writes README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from bitgolf.data.prepare import open_data
from bitgolf.evaluate.bits import bits_per_byte
from bitgolf.rundir import RunDirectory
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


def collect(path: Path, into: Path, commit: str) -> Path:
    """Copy what documents the run at `path` into a folder of `into` and write its summary."""
    run = RunDirectory.open(path)
    score, pack, audit = (json.loads(run.require(f"{name}.json").read_text()) for name in ("score", "pack", "audit"))
    events = {event["event"]: event for event in read_events(run.require("train.jsonl"))}
    quick, quick_bytes = quick_bpb(run)
    chunked = score["methods"].get("chunked", {})
    target = into / f"{run.config.name}-seed{run.config.seed}"
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
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
        "train_seconds": events["end"]["elapsed_seconds"],
        "calibration_seconds": events["calibration"]["seconds"],
        "eval_seconds": score["evaluation_seconds"],
        "bytes_total": pack["total_bytes"],
        "bytes_code": pack["code_bytes"],
        "last_chunked_bpb": score.get("last", {}).get("chunked", {}).get("bpb"),
        "float_chunked_bpb": score["float"].get("chunked", {}).get("bpb"),
        "packed_chunked_bpb": chunked.get("bpb"),
        "quantization_tax_bpb": score["quantization_tax"],
        "headline": score["headline"],
        "headline_bpb": score["headline_bpb"],
        "val_bytes": score["val_bytes"],
        "quick_bpb": quick,
        "quick_bytes": quick_bytes,
        "compressors": score["compressors"],
        "accounting": score["accounting"],
        "audit": {check["name"]: check["verdict"] for check in audit["checks"]},
    }
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return target


def table(results: Path) -> str:
    """Markdown of every summary under `results`."""
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*/summary.json"))]
    lines = [
        "# One-GPU track",
        "",
        "Made by `python benchmarks/track.py table` from the summaries beside it. Bits per byte are over the original",
        "bytes of the whole `val` unless the column says 8 MB; tax = packed minus float, both chunked.",
        "",
        "| run | commit | hardware | parameters | tokens/s | steps | float chunked | packed chunked | tax | headline | "
        "8 MB headline | bytes | train s (calibration) | eval s | peak MiB | audit |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        verdicts = list(row["audit"].values())
        lines.append(
            f"| [{row['preset']}, seed {row['seed']}]({row['preset']}-seed{row['seed']}/) | {row['commit']} | "
            f"{row['hardware']}, torch {row['torch']} | {row['parameters']:,} | {row['tokens_per_second']:,.0f} | "
            f"{row['steps']:,} | {row['float_chunked_bpb']:.4f} | {row['packed_chunked_bpb']:.4f} | "
            f"{row['quantization_tax_bpb']:.4f} | **{row['headline_bpb']:.4f}** {row['headline']} | "
            f"{row['quick_bpb']:.4f} | {row['bytes_total']:,} | {row['train_seconds']:.1f} "
            f"({row['calibration_seconds']:.1f}) | {row['eval_seconds']:.1f} | {row['peak_memory_mib']:,.0f} | "
            f"{verdicts.count('PASS')} of {len(verdicts)} PASS |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("collect")
    sub.add_argument("run", type=Path)
    sub.add_argument("--into", type=Path, default=RESULTS)
    sub.add_argument("--commit", default="unknown")
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        print(collect(arguments.run, arguments.into, arguments.commit))
    else:
        (RESULTS / "README.md").write_text(table(RESULTS))
        print(RESULTS / "README.md")


if __name__ == "__main__":
    main()
